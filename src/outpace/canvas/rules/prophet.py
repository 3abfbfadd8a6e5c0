"""Commit all that is left once the two likeliest tokens lie far enough apart (Prophet, Li et al., 2025, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from outpace.canvas.blocks import Schedule
from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, Canvas, CanvasRow, Floats
from outpace.canvas.rules.rule import Rule
from outpace.canvas.table import FAR, RowTable

__all__ = ["EarlyCommit"]

STAGES = (0.33, 0.67)  # shares of progress at which the next gap applies


@dataclass(frozen=True, slots=True)
class EarlyCommit(Rule):
    """Another rule, until the mean gap over a region passes what the progress asks for.

    Attributes:
        inner: writes until then; stated over arrays.
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

    def writes(self, reading: Reading, row: CanvasRow | RowTable, memo: Any) -> Bools:
        """Return all that is left of the region, or what the inner rule writes."""
        region = reading.within(FAR if self.is_whole else row.end)
        limit = np.array(self.gaps)[np.searchsorted(STAGES, self.progress(reading, row, region), side="right")]
        commits = np.isfinite(limit) & (mean_gap(reading, region)[..., np.newaxis] >= limit)
        rest = region if reading.waits is None else region & ~reading.waits
        return np.where(commits, rest, self.inner.writes(reading, row, memo))

    def progress(self, reading: Reading, row: CanvasRow | RowTable, region: Bools) -> Floats:
        """Return the decided share [..., 1], from 0 to 1, of the block or of the whole text.

        Places of the text that the model cannot see yet (later blocks under block attention) count as undecided.
        """
        live, masked = row.live(), region.sum(-1, keepdims=True)
        if not self.is_whole:
            return np.asarray(1 - masked / (np.minimum(row.end, live) - row.base))
        last = np.where(region, reading.places, -1).max(-1, keepdims=True)
        unseen = np.maximum(live - np.maximum(row.end, last + 1), 0)
        return np.asarray(1 - (masked + unseen) / (live - row.prompt))


def mean_gap(reading: Reading, region: Bools) -> Floats:
    """Return the mean [...] over a region [..., A] of the difference between the two greatest logits."""
    # Added one by one, so that a row that asks for fewer places than others has the sum that it has alone.
    total = np.where(region, reading.gap, 0.0).cumsum(-1)[..., -1]
    found: Floats = total / np.maximum(region.sum(-1), 1)
    return found
