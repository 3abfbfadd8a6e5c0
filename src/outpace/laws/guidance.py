"""A model beside itself: the same text behind its prompt, and behind another one.

Paper: Sanchez et al. (2023), "Stay on topic with Classifier-Free Guidance", arXiv 2306.17806:
    log p(x | other) + weight (log p(x | prompt) - log p(x | other)).
Guarantee: that law exactly; drafts obey it. `weight=1` leaves the target's texts as they are, token for token.
Cost: a second forward of the model over the same places (the prompt's apart), and a second cache.
Differences: none; without a negative prompt, the other text begins with the prompt's last token, as in transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from outpace.cache import Cache, Counter
from outpace.errors import CapabilityError, ConfigError
from outpace.laws.base import Control, Site
from outpace.models.fused import FusedTarget, Layers
from outpace.papers import Paper
from outpace.setting import setting
from outpace.types import NO_OUTPUTS, Adapter, Outputs, Scores

__all__ = ["Guidance", "Guided"]

PAPERS = (
    Paper(
        "Stay on topic with Classifier-Free Guidance",
        "Sanchez, Fan, Spangher, Levi, Ammanamanchi, Biderman",
        2023,
        "2306.17806",
        command='outpace generate "Once upon a time" --law cfg:weight=1.5',
    ),
)


class _Shifted(Layers):
    """The second model's entries of rows whose second texts begin `offset` slots behind the first ones.

    They lie in the slots of the tokens that both texts share, so that whatever moves one moves the other.
    """

    def __init__(self, base: Cache, span: slice, counter: Counter, offset: int, cut: int) -> None:
        super().__init__(base, span, counter)
        self._offset, self._cut = offset, cut

    @property
    def buffers(self) -> list[Tensor]:
        """Views that begin with the second text."""
        held = self._base.buffers[self._span]
        return [one.narrow(self.slot_axis, self._offset, one.shape[self.slot_axis] - self._offset) for one in held]

    @buffers.setter
    def buffers(self, values: list[Tensor]) -> None:
        raise TypeError("Buffers of a part are not replaced.")

    @property
    def lengths(self) -> list[int]:
        """Valid entries of the second texts."""
        return [max(0, length - self._offset) for length in self._base.lengths]

    @lengths.setter
    def lengths(self, values: list[int]) -> None:
        raise TypeError("The first text says what is valid.")

    @property
    def capacity(self) -> int:
        """Slots per row that there may be behind the offset."""
        return self._base.capacity - self._offset

    @property
    def slots(self) -> int:
        """Slots per row behind the offset."""
        return self._base.slots - self._offset

    @property
    def page_size(self) -> int:
        """As `slots`: the cache is static."""
        return self.slots

    def reserve(self, slots: int) -> None:
        """Do nothing: the first text made room."""

    def stage(self, position: Tensor) -> None:
        """Do nothing: the first text made room."""

    @contextmanager
    def dense(self, size: int) -> Iterator[Cache]:
        """Lend the same slots of what the whole cache lends."""
        with self._base.dense(size + self._cut) as lent:
            yield _Shifted(lent, self._span, self.counter, self._offset, self._cut)


class Guided(FusedTarget):
    """A target beside itself, which reads another prompt there.

    Args:
        target: a causal model whose cache is static.
        weight: of the prompt's law against the other one.
        other: tokens of the other prompt; empty = the prompt's own last token.
    """

    is_summed = False

    def __init__(self, target: Adapter, weight: float, other: Sequence[int]) -> None:
        if target.capabilities.is_encoder_decoder:
            raise CapabilityError("Guidance by another prompt needs a model that goes on with its prompt.")
        super().__init__(target, target, weight, 0)
        self.notes, self.prompt = list(target.notes), list(other)

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return a cache of both texts, and where each row's second text begins."""
        cache = super().new_cache(rows, capacity, counter)
        cache.extra = [torch.zeros(rows, 1, dtype=torch.int64, device=cache.device)]
        return cache

    def check_prompts(self, prompts: Sequence[int]) -> None:
        """Refuse prompts that are shorter than the other one.

        Raises:
            ConfigError: there is one.
        """
        if min(prompts) < (size := len(self.prompt) or 1):
            raise ConfigError(
                f"The negative prompt has {size} tokens, the prompt {min(prompts)}.",
                "Shorten it to the prompt's length.",
            )

    def note_prompts(self, cache: Cache, prompts: Sequence[int]) -> None:
        """Note where second texts begin; errors are those of `check_prompts`."""
        self.check_prompts(prompts)
        size = len(self.prompt) or 1
        offsets = [[length - size] for length in prompts]
        cache.extra = [torch.tensor(offsets, dtype=torch.int64, device=cache.device)]

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
        """Run one forward of the texts, and one of the second texts for each distance between both."""
        if inputs is not None:
            raise CapabilityError("Two texts read no soft embeddings at once.", "Leave the law out.")
        given = Layers(cache, slice(0, self._count), cache.counter)
        scores = self.target.score(tokens, position, visible, given, ask, outputs, None, skip)
        offsets, groups = cache.extra[-1][:, 0].tolist(), dict[tuple[int, int], list[int]]()
        for row, (offset, length) in enumerate(zip(offsets, cache.lengths, strict=True)):
            if (cut := max(0, offset - length)) < tokens.shape[1]:
                groups.setdefault((offset, cut), []).append(row)
        logits = scores.logits.float() if scores.logits.dtype.itemsize < 4 else scores.logits.clone()
        for (offset, cut), rows in groups.items():
            held = cache if len(rows) == len(offsets) else cache.part(rows)
            own = None if visible is None else visible[rows, cut:, cut:]
            asked = ask[rows] if ask is not None else None
            places = (position[rows, cut:] - offset).masked_fill(position[rows, cut:] < 0, -1)
            wanted = None if asked is None else (asked - cut).clamp(min=0)
            beside = _Shifted(held, slice(self._count, None), Counter(), offset, cut)
            read = self._read(tokens[rows, cut:], held.lengths, offset, cut)
            told = Outputs(has_logits=outputs.has_logits)
            more = self.target.score(read, places, own, beside, wanted, told).logits.to(logits.dtype)
            if outputs.has_logits:
                self._lay(logits, rows, cut, asked, more)
        return replace(scores, logits=logits) if outputs.has_logits else scores

    def _read(self, tokens: Tensor, lengths: Sequence[int], offset: int, cut: int) -> Tensor:
        """Return the tokens of the second texts: the other prompt's where they have one, then the same."""
        read = tokens.clone()
        for row, length in enumerate(lengths):
            first = length + cut - offset  # its place in the second text
            rest = self.prompt[first : first + read.shape[1]]
            read[row, : len(rest)] = torch.tensor(rest, dtype=torch.int64)
        return read

    def _lay(self, logits: Tensor, rows: list[int], cut: int, asked: Tensor | None, more: Tensor) -> None:
        """Put the law's logits where both texts were read; elsewhere the target's own stay."""
        if asked is None:
            logits[rows, cut:] = self.combine(logits[rows, cut:], more)
            return
        both = self.combine(logits[rows], more)
        logits[rows] = torch.where((asked >= cut).unsqueeze(-1), both, logits[rows])

    def combine(self, own: Tensor, other: Tensor) -> Tensor:
        """Return the guided logits."""
        own, less = own.log_softmax(-1), other.log_softmax(-1)
        guided = less + self.weight * (own - less)
        return torch.where(own.isfinite() & less.isfinite(), guided, own)  # another law may forbid what both forbid


@dataclass(frozen=True)
class Guidance(Control):
    """The prompt's law against that of a negative prompt, or of none."""

    name: ClassVar[str] = "cfg"
    summary: ClassVar[str] = "classifier-free guidance: the prompt against a negative one"
    is_model: ClassVar[bool] = True

    weight: float = setting(1.5, is_finite=True)
    negative: str = ""

    def target(self, site: Site) -> Adapter:
        """Return the model beside itself.

        Raises:
            ConfigError: a negative prompt without a tokenizer.
        """
        if self.weight == 1:
            return site.target
        if self.negative and site.tokenizer is None:
            raise ConfigError("A negative prompt needs a tokenizer.", "Use a model that has one.")
        other = site.tokenizer.encode(self.negative) if self.negative and site.tokenizer is not None else []
        return Guided(site.target, self.weight, other)
