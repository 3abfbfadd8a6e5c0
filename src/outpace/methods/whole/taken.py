"""How a whole text is taken: what the laws that a cache holds pick is proposed as a chain, and the loop checks it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from outpace.methods.base import Method, chain
from outpace.models.one_pass import whole_laws
from outpace.sampling import Sampler
from outpace.setting import setting
from outpace.types import Capabilities, Context, Needs, Proposal, View

__all__ = ["TakenWhole"]


@dataclass(frozen=True)
class TakenWhole(Method):
    """Base of the methods that take a whole text of a one-pass model.

    Attributes:
        window: most tokens taken in a step.

    Raises:
        ConfigError: a window below 1.
    """

    window: int = setting(256, least=1)

    family: ClassVar[str] = "parallel"
    reads: ClassVar[frozenset[str]] = frozenset({"law"})

    @property
    def needs(self) -> Needs:
        """A one-pass model."""
        return Needs(has_rollback=True, is_one_pass=True, width=self.window)

    def fitted(self, offered: Capabilities) -> tuple[TakenWhole, str]:
        """Return the method with a window no wider than the model's context."""
        is_wide = self.window > offered.max_positions
        return (replace(self, window=offered.max_positions) if is_wide else self), ""

    def start(self, context: Context) -> list[Tensor]:
        """Return per row the laws of its text, [N, V]."""
        assert context.cache is not None
        return whole_laws(context.cache)

    def propose(self, view: View, state: list[Tensor]) -> Proposal:
        """Propose what the rows' own laws and noise pick at every place that is left."""
        drafts: list[list[int]] = [[] for _ in state]
        for index, sampler in view.sampler.parts or [([at], view.sampler.rows([at])) for at in range(len(state))]:
            for place, row in enumerate(index):
                first = len(view.texts[row]) - 1
                laws = state[row][first : first + min(self.window, view.room[row] - 1)]
                drafts[row] = _picks(sampler.rows([place]), laws, first + 1)
        return chain(view, drafts, self.name)


def _picks(sampler: Sampler, laws: Tensor, first: int) -> list[int]:
    """Return the tokens that a row picks from laws [N, V] at its places from `first` on, as far as there are any."""
    if not len(laws):
        return []
    places = torch.arange(first, first + len(laws), device=laws.device)
    picked = sampler.pick(sampler.process(laws.unsqueeze(0), None), places.unsqueeze(0))
    return [max(token, 0) for token in picked[0].tolist()]  # where there is no law, anything is as good
