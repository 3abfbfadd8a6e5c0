"""What methods on a canvas with a small causal guide have in common: it reads, once per step, what was drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from torch import Tensor

from outpace.canvas import Advance, Ranked, Reading, Rule, advance
from outpace.canvas.guide import Guide
from outpace.canvas.row import Bools
from outpace.canvas.rules.agreed import Agreed
from outpace.methods.diffusion.base import CanvasBatch, CanvasMethod
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
        return replace(super().needs, models=("guide",), model_attention={"guide": "causal"})

    @property
    def rule(self) -> Rule:
        """What is written where nothing is asked of the guide: one place, from the left."""
        return Ranked("left")

    def agrees(self, reading: Reading, expected: Tensor, banned: Tensor, sampler: Sampler) -> Bools:
        """Return [A'] bool: which of the first A' drawn tokens the guide agrees with.

        Args:
            reading: of one row.
            expected: [A', V] the guide's logits at its first A' places.
            banned: [K] int64 tokens that the row may not write.
            sampler: the row's.
        """
        raise NotImplementedError

    def start(self, context: Context) -> CanvasBatch:
        """Return the rows' canvases, and an empty cache of the guide."""
        state = super().start(context)
        if "guide" not in self.needs.models:
            return state
        return replace(state, extra=Guide(context.models["guide"], context.cache_for("guide")))

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: CanvasBatch) -> Decision:
        """Let the guide read what was drawn, then advance every row by one step."""
        if state.extra is None:
            return super().accept(proposal, scores, view, state)
        # All rows are read before the guide is asked: it reads them in one forward.
        rows = [copies[0] for copies in proposal.carry]
        readings = [reader(row) for row, reader in zip(rows, self.readers(scores, view, state), strict=True)]
        expected, steps = state.extra.read(state.canvases, readings), list[Advance | None]()
        for index, (row, reading) in enumerate(zip(rows, readings, strict=True)):
            if reading.is_broken:
                steps.append(None)
                continue
            agrees = np.zeros(len(reading.places), dtype=np.bool_)
            said = self.agrees(reading, expected[index], state.banned[index], reading.sampler)
            agrees[: len(said)] = said
            parts = replace(state.parts, rule=Agreed(agrees, self.is_open_ended))
            steps.append(advance(row.row, reading, row.window, parts))
        return self.decide(steps, state)
