"""An encoder-decoder behind the `Adapter` contract: the decoder is a `Transformer`, the encoder another one.

The prompt of a text is its source. Each row's source is encoded once, and every layer's keys and values of it are kept
in the cache, so that a step reads them and computes nothing of the source.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.errors import ConfigError
from outpace.models.graphs import Graphs
from outpace.models.kernel_contract import Kernels
from outpace.models.seq2seq.pair import PairSpec
from outpace.models.transformer import Transformer
from outpace.models.weights import Weights
from outpace.types import Outputs

__all__ = ["EncoderDecoder"]

_STATES = Outputs(has_last=True, has_logits=False)
_NUMBERS = itertools.count()  # of sources that were read, in all caches


class EncoderDecoder(Transformer):
    """A decoder that reads a source through an encoder.

    A cache's `extra` holds the sources' lengths [B, 1] int64, then per decoder layer the keys and the values of the
    cross-attention, each [B, S, K, D]; what lies behind a row's length is never read.

    Args:
        pair: the shapes of both sides.
        encoder, decoder: their weights, which may share an embedding.
        pack: as of `Transformer`.
    """

    start_token: int

    def __init__(self, pair: PairSpec, encoder: Weights, decoder: Weights, pack: bool | None = None) -> None:
        super().__init__(pair.decoder, decoder, pack)
        self.encoder = Transformer(pair.encoder, encoder, pack)
        self.pair, self.start_token, self.shape = pair, pair.start_token, str(pair)
        self.max_source, self.capabilities = pair.max_source, pair.capabilities

    def compile(self, kernels: Kernels, pack: bool | None = None) -> bool:
        """Hand the weights of both sides to compiled kernels; see `Transformer.compile`.

        Returns whether both are served: only then do a token's logits not depend on what stands beside it.
        """
        is_shared = self.weights.is_tied and self.encoder.weights.embed is self.weights.embed
        is_served = kernels.supports(self.pair.decoder) and super().compile(kernels, pack)
        if not is_served:
            self._pack(pack)
        elif is_shared and kernels.supports(self.pair.encoder):  # the packed head embeds for both sides
            self.encoder.weights.table, self.encoder.weights.embed = self.weights.head, self.weights.embed
        is_read = kernels.supports(self.pair.encoder) and self.encoder.compile(kernels, pack)
        if not is_read:
            self.encoder._pack(pack)
        self.is_invariant = is_read and is_served
        return self.is_invariant

    def use_graphs(self, graphs: Graphs | None) -> None:
        """Do nothing: a recorded forward has no place for sources of other lengths."""
        del graphs

    @torch.no_grad()
    def encode(self, sources: Sequence[list[int]], cache: Cache) -> None:
        """Run the encoder once over all different sources, and keep in `cache` what the decoder's layers read of them.

        Raises:
            ConfigError: a source is empty, longer than the encoder's positions, or of another vocabulary.
        """
        if not all(sources):
            raise ConfigError("A source is empty.", "Give at least one token.")
        words = self.pair.encoder.vocab_size
        if any(not 0 <= token < words for source in sources for token in source):
            raise ConfigError(
                "A source holds a token that the encoder does not know.", f"Ids go from 0 to {words - 1}."
            )
        longest = max(len(source) for source in sources)
        if longest > self.max_source:
            raise ConfigError(
                f"The source has {longest} tokens, but the encoder's positions end at {self.max_source}.",
                "Shorten the source, or write it part by part.",
            )
        # Samples and beams of a text come with one source each: it is read once.
        places = {source: at for at, source in enumerate(dict.fromkeys(map(tuple, sources)))}
        lengths = torch.tensor([[len(source)] for source in places], device=self.device)
        extra = [lengths, *self.entries(self._read([list(source) for source in places], lengths, longest))]
        if len(places) < len(sources):
            index = torch.tensor([places[tuple(source)] for source in sources], device=self.device)
            extra = [tensor.index_select(0, index) for tensor in extra]
        numbers = [next(_NUMBERS) for _ in places]
        cache.extra, cache.origins = extra, tuple(numbers[places[tuple(source)]] for source in sources)

    def _read(self, sources: Sequence[list[int]], lengths: Tensor, longest: int) -> Tensor:
        """Return the encoder's states [B, S, hidden]."""
        padded = [[*source, *([0] * (longest - len(source)))] for source in sources]
        tokens, slots = torch.tensor(padded, device=self.device), torch.arange(longest, device=self.device)
        position = torch.where(slots < lengths, slots, -1)
        scratch = self.encoder.new_scratch(len(sources), longest)
        states = self.encoder.score(tokens, position, None, scratch, outputs=_STATES).last
        assert states is not None
        return states

    def entries(self, states: Tensor) -> list[Tensor]:
        """Return per layer the keys and the values of the states, each [B, S, K, D]."""
        flat, shape = states.flatten(0, 1), (*states.shape[:2], 2 * self.spec.num_kv_heads, self.spec.head_dim)
        if self._compiled is not None:
            both = self._compiled.cross(flat)
        else:
            both = [layer.cross.kv(flat) for layer in self.weights.layers if layer.cross is not None]
        return [part.contiguous() for one in both for part in one.view(shape).chunk(2, dim=2)]
