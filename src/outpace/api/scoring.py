"""What a model makes of a given text: log-probabilities of its tokens, and the likeliest ones beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from outpace.errors import CapabilityError, ConfigError
from outpace.types import Adapter, Capabilities

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["Scored", "check_causal", "check_pairs", "check_top", "rescored", "score_pairs", "score_tokens"]

_CHUNK = 256  # tokens per forward
_PAIRS = 32  # pairs per forward


@dataclass(slots=True)
class Scored:
    """A text and how likely a model finds it.

    Attributes:
        model: its name.
        tokens: ids of the text, as the tokenizer frames it.
        log_probs: natural log-probability of each token after those before it, under the model's own law; None for the
            first, which nothing comes before (a start token, where the tokenizer gives one).
        log_prob: their sum.
        num_scored: how many tokens it is a sum of.
        num_bytes: UTF-8 bytes that those tokens write; 0 without a tokenizer.
        bits_per_byte: bits that the model needs per byte, -log_prob / ln 2 / num_bytes; None where there are no bytes.
        notes: what a user should know.
        samples: maskings that the figures were estimated from, of a masked model: `log_prob` is then a lower bound and
            `log_probs` are each token's share of it; 0 = the figures are exact.
        error: standard error of `log_prob`, in nats; None where nothing is estimated, or from one sample.
    """

    model: str
    tokens: list[int]
    log_probs: list[float | None]
    log_prob: float
    num_scored: int
    num_bytes: int
    bits_per_byte: float | None
    notes: list[str] = field(default_factory=list)
    samples: int = 0
    error: float | None = None

    @classmethod
    def told(
        cls, model: str, ids: list[int], found: list[float | None], total: float, tokenizer: Tokenizer | None
    ) -> Scored:
        """Return figures of a text behind its first token, with its bytes where a tokenizer tells them."""
        num_bytes = 0
        if tokenizer is not None:  # what the first token writes has no price
            whole, first = (tokenizer.decode(part).encode() for part in (ids, ids[:1]))
            num_bytes = len(whole) - len(first)
        bits = -total / math.log(2) / num_bytes if num_bytes > 0 else None
        return cls(model, list(ids), found, total, len(ids) - 1, max(0, num_bytes), bits)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def check_causal(capabilities: Capabilities) -> None:
    """Refuse a model under which a text has no such log-probabilities.

    Raises:
        CapabilityError: it does not write from left to right, token by token.
    """
    if capabilities.attention != "causal" or capabilities.is_encoder_decoder:
        raise CapabilityError(
            "The model gives no log-probability of a text: it does not write one from left to right.",
            "Score a target behind its source (--pairs)."
            if capabilities.is_encoder_decoder
            else "Use a causal model, such as stories.",
        )


def check_pairs(capabilities: Capabilities) -> None:
    """Refuse a model that reads no source.

    Raises:
        CapabilityError: it is no encoder-decoder.
    """
    if not capabilities.is_encoder_decoder:
        raise CapabilityError(
            "The model has no encoder, so it scores no pairs of source and target.",
            "Use an encoder-decoder, such as translate; or score the whole text.",
        )


def check_top(num: int, capabilities: Capabilities) -> None:
    """Refuse to note the likeliest tokens where that cannot be done.

    Raises:
        ConfigError: more than the vocabulary holds.
        CapabilityError: the model writes on a canvas, where tokens are drawn before they are written.
    """
    if num > capabilities.vocab_size:
        raise ConfigError(f"top_log_probs is {num}.", f"The model has {capabilities.vocab_size} tokens.")
    if num and capabilities.is_canvas:
        raise CapabilityError("A canvas has no likeliest tokens to note.", "Leave out top_log_probs.")


@torch.no_grad()
def score_tokens(target: Adapter, ids: list[int], name: str = "model", tokenizer: Tokenizer | None = None) -> Scored:
    """Return the log-probability of each token of a text, from forwards of a chunk each.

    Args:
        target: a causal model.
        ids: the text's tokens, at least one.
        name: shown in the result.
        tokenizer: tells the bytes.
    """
    found, chunk = list[float | None]([None]), _CHUNK
    if len(ids) > 1:
        cache = target.new_cache(1, len(ids) + chunk)
        device = cache.device
        for at in range(0, len(ids) - 1, chunk):
            piece = torch.tensor([ids[at : min(at + chunk, len(ids) - 1)]], device=device)
            position = torch.arange(at, at + piece.shape[1], device=device).unsqueeze(0)
            law = target.score(piece, position, None, cache).logits[0].double().log_softmax(-1)
            cache.keep([range(piece.shape[1])])
            after = torch.tensor(ids[at + 1 : at + 1 + piece.shape[1]], device=law.device)
            found += law.gather(-1, after.unsqueeze(-1)).squeeze(-1).tolist()
    total = math.fsum(value for value in found if value is not None)
    scored = Scored.told(name, ids, found, total, tokenizer)
    scored.notes = list(target.notes)
    return scored


@torch.no_grad()
def score_pairs(
    target: Adapter,
    pairs: Sequence[tuple[list[int], list[int]]],
    name: str = "model",
    tokenizer: Tokenizer | None = None,
) -> list[Scored]:
    """Return the log-probability of each target given its source, token by token; many pairs in one forward.

    This is the feature by which Cho et al. (2014, arXiv:1406.1078, section 3.1) rescore a table of phrase pairs.

    Args:
        target: an encoder-decoder.
        pairs: tokens of each source and target; the target as the model would write it, end token included.
        name: shown in the result.
        tokenizer: tells the bytes.

    Raises:
        CapabilityError: the model has no encoder.
        ConfigError: a target that does not fit the decoder's context, or a source the encoder's.
    """
    check_pairs(target.capabilities)
    first = [] if target.start_token is None else [target.start_token]
    longest = max((len(written) for _, written in pairs), default=0) + len(first)
    if longest > target.capabilities.max_positions:
        raise ConfigError(
            f"A target has {longest} tokens, but the decoder's context is {target.capabilities.max_positions}.",
            "Shorten it.",
        )
    found = list[Scored]()
    for at in range(0, len(pairs), _PAIRS):
        part = pairs[at : at + _PAIRS]
        for tokens, scores in zip(part, _pair_scores(target, part, first), strict=True):
            ids = [*first, *tokens[1]]
            num_bytes = 0 if tokenizer is None else len(tokenizer.decode(ids).encode())
            total = math.fsum(scores)
            bits = -total / math.log(2) / num_bytes if num_bytes else None
            notes = list(target.notes)
            found.append(Scored(name, ids, [None, *scores][-len(ids) :], total, len(scores), num_bytes, bits, notes))
    return found


def _pair_scores(target: Adapter, pairs: Sequence[tuple[list[int], list[int]]], first: list[int]) -> list[list[float]]:
    """Return the log-probability of every token behind the first one that the decoder reads."""
    texts = [[*first, *written] for _, written in pairs]
    size = max(map(len, texts)) - 1
    cache = target.new_cache(len(pairs), size + 1)
    target.encode([source for source, _ in pairs], cache)
    read = torch.tensor([[*text[:-1], *[text[0]] * (size + 1 - len(text))] for text in texts], device=cache.device)
    held = torch.tensor([len(text) - 1 for text in texts], device=cache.device).unsqueeze(1)
    places = torch.arange(size, device=cache.device).expand_as(read)
    law = target.score(read, torch.where(places < held, places, -1), None, cache).logits.double().log_softmax(-1)
    found = list[list[float]]()
    for row, text in zip(law, texts, strict=True):
        after = torch.tensor(text[1:], device=law.device)
        found.append(row[: len(after)].gather(-1, after.unsqueeze(-1)).squeeze(-1).tolist())
    return found


def rescored(
    candidates: Sequence[str], scores: Sequence[float], features: Sequence[float], weight: float = 1.0
) -> list[tuple[str, float]]:
    """Return candidates with `score + weight * feature`, best first: one more feature of a log-linear model.

    Args:
        candidates: texts, as an n-best list or the entries of a phrase table for one source.
        scores: what they were ranked by, in nats, larger is better.
        features: log-probabilities of `score_pairs`.
        weight: of the feature.
    """
    summed = [(text, score + weight * more) for text, score, more in zip(candidates, scores, features, strict=True)]
    return sorted(summed, key=lambda entry: -entry[1])
