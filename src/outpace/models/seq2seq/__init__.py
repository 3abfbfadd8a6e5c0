"""Encoder-decoders that run natively: two specs, their weights, and one adapter."""

from outpace.models.seq2seq.adapter import EncoderDecoder
from outpace.models.seq2seq.families import PAIRS, is_pair, make_pair
from outpace.models.seq2seq.loading import load_pair, pair_capabilities
from outpace.models.seq2seq.pair import PairSpec

__all__ = ["PAIRS", "EncoderDecoder", "PairSpec", "is_pair", "load_pair", "make_pair", "pair_capabilities"]
