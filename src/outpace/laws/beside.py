"""A model in the target's place: one that is run with another and combined, or one that is read in two places."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from outpace.cache import Cache, Counter, Pages
from outpace.models.fused import FusedTarget
from outpace.types import NO_OUTPUTS, Adapter, Outputs, Scores

__all__ = ["Around", "Beside", "Early", "Mix", "Retold", "against", "as_logs"]

Mix = Callable[[Tensor, Tensor], Tensor]
"""What makes log-probabilities [..., V] of two models one law's logits; -inf where it forbids."""


def against(own: Tensor, other: Tensor, weight: float, floor: float) -> Tensor:
    """Return (1 + weight) * own - weight * other, of log-probabilities, where own is plausible.

    Args:
        own, other: [..., V] log-probabilities.
        weight: how much of the difference is added.
        floor: tokens less likely than this share of the likeliest are forbidden; 0 = none is.
    """
    found = own + weight * (own - other)
    if floor <= 0:
        return found
    cut = own.amax(-1, keepdim=True) + torch.tensor(floor, dtype=own.dtype).log().to(own.device)
    return found.masked_fill(own < cut, float("-inf"))


class Beside(FusedTarget):
    """A target and another causal model of its vocabulary, in one cache; every place of a forward is read by both.

    Args:
        target, other: the models.
        mix: their law.

    Raises:
        CapabilityError: the two cannot stand side by side.
    """

    is_summed = False

    def __init__(self, target: Adapter, other: Adapter, mix: Mix) -> None:
        super().__init__(target, other, 1.0, 0)
        self.notes, self.mix = list(target.notes), mix

    def combine(self, own: Tensor, other: Tensor) -> Tensor:
        """Return the law's logits."""
        return self.mix(own.log_softmax(-1), other.log_softmax(-1))


class Around(Adapter):
    """A model that does as its target does; what differs, others derive.

    Args:
        target: the model.
    """

    def __init__(self, target: Adapter) -> None:
        self.target = target
        self.capabilities = replace(target.capabilities, has_skip=False)
        for name in ("device", "dtype", "notes", "path", "is_invariant", "is_quantised", "tokenizer", "start_token"):
            setattr(self, name, getattr(target, name))
        self.max_source, self.shape = target.max_source, target.shape

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return a cache of the target."""
        return self.target.new_cache(rows, capacity, counter)

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


class Retold(Around):
    """A target whose logits are changed by what else it says of the same place: `more` is asked for, `retell` changes.

    It keeps nothing of its own, so that its entries are the target's, in pages where those have them.
    """

    more: Outputs = NO_OUTPUTS

    @abstractmethod
    def retell(self, scores: Scores) -> Tensor:
        """Return the law's logits [..., V] of scores that hold `more`."""

    def new_pool(self, num_pages: int, page_size: int = 32) -> Pages | None:
        """Return pages of the target."""
        return self.target.new_pool(num_pages, page_size)

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
        """Run one forward; what is asked of every place is told anew."""
        self.check(outputs, skip)
        wanted = outputs | replace(self.more, has_logits=outputs.has_logits)
        scores = self.target.score(tokens, position, visible, cache, ask, wanted, inputs)
        return replace(scores, logits=self.retell(scores)) if outputs.has_logits else scores


def as_logs(logits: Tensor) -> Tensor:
    """Return log-probabilities [..., V], in float32 at least."""
    return (logits.float() if logits.dtype.itemsize < 4 else logits).log_softmax(-1)


class Early(Retold):
    """A target whose last layer and earlier ones say something together.

    Args:
        target: a model that gives hidden states and reads them early.
        layers: states entering these are read.
        mix: of log-probabilities [..., V] and, per layer, [..., V] others.

    Raises:
        CapabilityError: the target gives no hidden states, or cannot be read early.
    """

    def __init__(self, target: Adapter, layers: Sequence[int], mix: Callable[[Tensor, list[Tensor]], Tensor]) -> None:
        super().__init__(target)
        self.layers, self.mix = tuple(layers), mix
        self.more = Outputs(layers=self.layers)
        target.check(self.more)
        target.early(target.embed(torch.zeros(1, 1, dtype=torch.int64, device=target.device)))

    def retell(self, scores: Scores) -> Tensor:
        """Return what all layers say together."""
        own, *others = map(as_logs, [scores.logits, *(self.target.early(scores.taps[layer]) for layer in self.layers)])
        return self.mix(own, others)
