"""Commit all that is left once the two likeliest tokens lie far enough apart (Prophet, Li et al., 2025, section 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from outpace.canvas.blocks import Schedule
from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, Canvas, CanvasRow
from outpace.canvas.rules.rule import Choice, Rule

__all__ = ["EarlyCommit"]

STAGES = (0.33, 0.67)  # shares of progress at which the next gap applies


@dataclass(frozen=True, slots=True)
class EarlyCommit(Rule):
    """Another rule, until the mean gap over a region passes what the progress asks for.

    Attributes:
        inner: writes until then.
        gaps: the mean difference of the two greatest logits that commits, up to 0.33, up to 0.67 and beyond;
            infinite = never.
        is_whole: the region is every undecided place that was asked, not the block in work alone.
    """

    inner: Rule
    gaps: tuple[float, float, float]
    is_whole: bool = False

    def start(self, row: CanvasRow, canvas: Canvas, schedule: Schedule) -> Any:
        """Return what the inner rule remembers."""
        return self.inner.start(row, canvas, schedule)

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        """Decide for one row."""
        region = np.ones(len(reading.places), dtype=np.bool_) if self.is_whole else reading.within(row.end)
        limit = self.gaps[int(np.searchsorted(STAGES, self.progress(reading, row, region), side="right"))]
        if math.isfinite(limit) and mean_gap(reading, region) >= limit:
            return Choice(region if reading.waits is None else region & ~reading.waits, memo=memo)
        return self.inner.choose(reading, row, memo)

    def progress(self, reading: Reading, row: CanvasRow, region: Bools) -> float:
        """Return the decided share, from 0 to 1, of the block or of the whole text.

        Places of the text that the model cannot see yet (later blocks under block attention) count as undecided.
        """
        live = row.live()
        begin, end = (row.prompt, live) if self.is_whole else (row.base, min(row.end, live))
        reached = max(row.end, int(reading.places[-1]) + 1) if self.is_whole else end
        return 1 - (int(region.sum()) + max(end - reached, 0)) / (end - begin)


def mean_gap(reading: Reading, region: Bools) -> float:
    """Return the mean over a region [A] of the difference between the two greatest logits."""
    best = reading.logits[region].double().topk(2, dim=-1).values
    return float((best[:, 0] - best[:, 1]).mean())
