"""What methods on a canvas with a small causal guide have in common: it reads, once per step, what was drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from torch import Tensor

from outpace.canvas import Advance, Reading, advance
from outpace.canvas.guide import Agreed, Guide
from outpace.canvas.row import Bools
from outpace.methods.diffusion.base import CanvasMethod, CanvasState
from outpace.sampling import Sampler
from outpace.types import Context, Decision, Needs, Proposal, Scores, View

__all__ = ["GuidedCanvas"]


@dataclass(frozen=True)
class GuidedCanvas(CanvasMethod):
    """Writes from left to right as far as a causal guide agrees; a subclass says what agreement is.

    Attributes:
        guide: the guide: the name, directory or hub id of a causal model of the same vocabulary.
    """

    guide: str = "stories"

    is_open_ended: ClassVar[bool] = False
    """Places beyond the block in work are written as well."""

    @property
    def needs(self) -> Needs:
        """A masked model, and a causal one of its vocabulary."""
        return Needs(attention="canvas", has_mask=True, models=("guide",), model_attention={"guide": "causal"})

    def agrees(self, reading: Reading, expected: Tensor, state: CanvasState, index: int, sampler: Sampler) -> Bools:
        """Return [A'] bool: which of the first A' drawn tokens the guide agrees with.

        Args:
            reading: of one row.
            expected: [A', V] the guide's logits at its first A' places.
            state: of all rows.
            index: the row.
            sampler: the row's.
        """
        raise NotImplementedError

    def start(self, context: Context) -> CanvasState:
        """Return the rows' canvases, and an empty cache of the guide."""
        state = super().start(context)
        if "guide" not in self.needs.models:
            return state
        return replace(state, extra=Guide(context.models["guide"], context.cache_for("guide")))

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: CanvasState) -> Decision:
        """Let the guide read what was drawn, then advance every row by one step."""
        if state.extra is None:
            return super().accept(proposal, scores, view, state)
        schedule, policy = self.schedule(state.canvas), self.policy(state.canvas)
        windows = proposal.carry
        readings = [
            self.reading(scores.logits[index, : len(window.asked)], window, index, view, state)
            for index, window in enumerate(windows)
        ]
        expected = state.extra.read(state.canvases, readings)
        steps: list[Advance | None] = []
        for index, (row, window, reading) in enumerate(zip(state.canvases, windows, readings, strict=True)):
            if reading.is_broken:
                steps.append(None)
                continue
            agrees = np.zeros(len(reading.places), dtype=np.bool_)
            said = self.agrees(reading, expected[index], state, index, view.sampler.rows([index]))
            agrees[: len(said)] = said
            rule = Agreed(agrees, self.is_open_ended)
            steps.append(advance(row, reading, window, state.canvas, rule, schedule, policy))
        return self.decide(steps, state)
