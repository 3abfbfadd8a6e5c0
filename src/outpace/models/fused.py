"""A model whose next-token scores are summed with those of a causal language model of the same vocabulary.

Source: Gulcehre et al. (2015), On Using Monolingual Corpora in Neural Machine Translation, arXiv 1503.03535, section
4.1 (shallow fusion): log p(y | x, before) + weight * log p_lm(y | before), summed along a text by a search. The sums
are no probabilities: a search takes them as they are, a sampler draws from their softmax.

Cost: a forward of the language model beside each of the target. Both keep their entries in one cache, side by side, so
that beams fork, drafts branch and rejected tokens leave in both at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from outpace.cache import Cache, Counter, Part
from outpace.errors import CapabilityError, ConfigError
from outpace.types import NO_OUTPUTS, Adapter, Outputs, Scores

__all__ = ["FusedTarget", "Layers"]


class Layers(Part):
    """Some buffers of a cache: those of one of the models that share it."""

    def __init__(self, base: Cache, span: slice, counter: Counter) -> None:
        super().__init__(base, range(len(base.lengths)))
        self._span, self.counter = span, counter

    @property
    def buffers(self) -> list[Tensor]:
        """Those of the model."""
        return self._base.buffers[self._span]

    @buffers.setter
    def buffers(self, values: list[Tensor]) -> None:
        raise TypeError("Buffers of a part are not replaced.")

    @property
    def extra(self) -> list[Tensor]:
        """What never grows."""
        return self._base.extra

    @extra.setter
    def extra(self, values: list[Tensor]) -> None:
        raise TypeError("A part is not encoded anew.")

    def stage(self, position: Tensor) -> None:
        """Make room in the whole cache."""
        self._base.stage(position)

    @contextmanager
    def dense(self, size: int) -> Iterator[Cache]:
        """Lend the model's buffers of what the whole cache lends."""
        with self._base.dense(size) as lent:
            yield Layers(lent, self._span, self.counter)


class FusedTarget(Adapter):
    """A target beside a language model. Laws over both derive from it and say how to `combine` them.

    Args:
        target: an encoder-decoder, or a causal model.
        other: a causal model of the same vocabulary.
        weight: of its scores; at 0 it is not run, and the scores are the target's own.
        start: what a text begins with, for the language model.

    Raises:
        CapabilityError: the two cannot stand side by side.
        ConfigError: the weight is no finite number.
    """

    is_summed = True
    """Whether a search takes the scores as they are."""

    def __init__(self, target: Adapter, other: Adapter, weight: float, start: int) -> None:
        if weight - weight != 0:
            raise ConfigError(f"The weight of the language model is {weight}.", "Give a finite number.")
        one, two = target.capabilities, other.capabilities
        if two.attention != "causal" or two.is_encoder_decoder or two.turns_at or one.attention != "causal":
            raise CapabilityError(
                "Scores are summed along a text that both models write from left to right.",
                "Fuse an encoder-decoder with a causal language model.",
            )
        if one.vocab_size != two.vocab_size:
            raise CapabilityError(
                f"The language model has {two.vocab_size} tokens, the target {one.vocab_size}.",
                "Train it in the target's vocabulary (`outpace train english-no-positions`).",
            )
        caches = target.new_cache(1, 8), other.new_cache(1, 8)
        if caches[0].slot_axis != caches[1].slot_axis or not all(cache.buffers for cache in caches):
            raise CapabilityError("The models keep their entries in different ways.", "Use models that load natively.")
        self.target, self.other, self.weight, self.start = target, other, weight, start
        self._count = len(caches[0].buffers)
        most = min(one.max_positions, two.max_positions)
        self.capabilities = replace(one, max_positions=most, has_tree=one.has_tree and two.has_tree, has_skip=False)
        self.notes = [*target.notes, f"Scores are summed with {weight:g} times those of a language model."]
        self.device, self.dtype, self.tokenizer = target.device, target.dtype, target.tokenizer
        self.path, self.is_invariant = target.path, target.is_invariant and other.is_invariant
        self.start_token, self.max_source = target.start_token, target.max_source
        self.shape = f"{target.shape} beside {other.shape}"

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return a cache whose buffers are the target's, then the language model's."""
        first, second = (model.new_cache(rows, capacity, counter) for model in (self.target, self.other))
        slots = max(first.slots, second.slots)
        first.reserve(slots)
        second.reserve(slots)
        joint = Cache([*first.buffers, *second.buffers], first.slot_axis, counter, [0] * rows, first.extra, capacity)
        return joint

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the target's embeddings."""
        return self.target.embed(tokens)

    def head(self, hidden: Tensor) -> Tensor:
        """Return the target's own logits."""
        return self.target.head(hidden)

    def encode(self, sources: Sequence[list[int]], cache: Cache) -> None:
        """Run the target's encoder."""
        self.target.encode(sources, cache)

    def check_prompts(self, prompts: Sequence[int]) -> None:
        """Refuse what the target does."""
        self.target.check_prompts(prompts)

    def note_prompts(self, cache: Cache, prompts: Sequence[int]) -> None:
        """Let the target take note."""
        self.target.note_prompts(cache, prompts)

    def score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS,
        inputs: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Scores:
        """Run one forward of both; what comes of their logits is `combine`'s."""
        if inputs is not None:
            raise CapabilityError("Two models read no soft embeddings at once.", "Leave the language model out.")
        own = Layers(cache, slice(0, self._count), cache.counter)
        scores = self.target.score(tokens, position, visible, own, ask, outputs, None, skip)
        if not self.weight:
            return scores
        read = torch.where(position == 0, self.start, tokens) if self.capabilities.is_encoder_decoder else tokens
        beside = Layers(cache, slice(self._count, None), Counter())
        asked = Outputs(has_logits=outputs.has_logits)
        more = self.other.score(read, position, visible, beside, ask, asked)
        if not outputs.has_logits:
            return scores
        both = [part.float() if part.dtype.itemsize < 4 else part for part in (scores.logits, more.logits)]
        return replace(scores, logits=self.combine(*both), is_summed=self.is_summed)

    def combine(self, own: Tensor, other: Tensor) -> Tensor:
        """Return the next-token scores [B, A, V] of the logits of both: here the weighted sum of log-probabilities."""
        return own.log_softmax(-1) + self.weight * other.log_softmax(-1)
