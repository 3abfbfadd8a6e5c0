"""A small causal model that reads what a diffusion model drew, from left to right.

The guide sees the decided tokens of a row and, at the undecided places, the tokens drawn there in this step. What it
says of place p is what it expects after the text before p, drawn tokens included: one forward for all places and rows.
Its cache holds the final text only, since everything behind it may still change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.canvas.reading import Reading
from outpace.canvas.row import CanvasRow
from outpace.run.layout import lay_out
from outpace.run.prefill import catch_up
from outpace.types import Adapter, Proposal

__all__ = ["Guide"]

_LAG = 32  # tokens behind the text from which on the cache catches up in forwards of their own (prompts)


@dataclass
class Guide:
    """A causal model and its cache, valid up to a prefix of each row's final text, which it never holds whole."""

    adapter: Adapter
    cache: Cache

    def read(self, rows: Sequence[CanvasRow], readings: Sequence[Reading]) -> list[Tensor]:
        """Return what the guide expects at each row's asked places: [A', V] logits, A' <= A.

        A' is less than A where the guide's context ends before the last places.

        Args:
            rows: as they were forwarded.
            readings: of the same rows; their drawn tokens fill the undecided places.
        """
        context = self.adapter.capabilities.max_positions
        texts = [row.tokens[: row.base].tolist() for row in rows]
        for text, held in zip(texts, self.cache.lengths, strict=True):
            if len(text) > context:  # nothing can be said of this row any more
                del text[held + 1 :]
        pairs = zip(texts, self.cache.lengths, strict=True)
        far = [text if len(text) - held > _LAG else text[:held] for text, held in pairs]
        for _ in catch_up(self.adapter, self.cache, far):
            pass
        runs = [_fill(row, reading, context) for row, reading in zip(rows, readings, strict=True)]
        width = max(len(run) for run in runs)
        device = self.cache.device
        tokens = torch.tensor([run + [0] * (width - len(run)) for run in runs], dtype=torch.int64, device=device)
        proposal = Proposal(tokens.view(len(rows), width), [len(run) for run in runs])
        pending = [text[held:] for text, held in zip(texts, self.cache.lengths, strict=True)]
        layout = lay_out(pending, self.cache.lengths, proposal)
        scores = self.adapter.score(layout.tokens, layout.position, layout.visible, self.cache, layout.ask)
        # The last final token stays pending: the next forward begins with it.
        self.cache.keep([range(len(tail) - 1) for tail in pending])
        both = enumerate(zip(rows, readings, strict=True))
        return [scores.logits[index, _entries(row, reading, context, device)] for index, (row, reading) in both]


def _fill(row: CanvasRow, reading: Reading, context: int) -> list[int]:
    """Return the tokens from the row's base to the one before the last asked place, drawn ones filled in."""
    last = min(int(reading.places[-1]), context) if len(reading.places) else row.base
    filled = row.tokens.copy()
    filled[reading.places] = np.maximum(reading.tokens, 0)
    return [int(token) for token in filled[row.base : last]]


def _entries(row: CanvasRow, reading: Reading, context: int, device: torch.device) -> Tensor:
    """Return the entries of the guide's forward that speak of the asked places; the first is that of `base`."""
    within = reading.places[reading.places <= context] - row.base
    return torch.from_numpy(within if row.base <= context else within[:0]).to(device)
