"""Choose places by what several steps agree on (coherent contextual decoding, Chen et al., 2025).

The buffer holds, for each of the last steps, the laws at the places that the step was surest of. A place that was
among them in every step is a candidate, and is judged by the average of its laws: a token that only the present context
favours loses to one that earlier contexts favoured too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outpace.canvas.reading import Reading
from outpace.canvas.row import CanvasRow, Ids
from outpace.canvas.rules.rule import Choice, Rule, eligible, surest

__all__ = ["Coherent", "Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """What one step was surest of.

    Attributes:
        places: [K] ascending.
        probs: [K, V] the model's own laws there.
    """

    places: Ids
    probs: Tensor


@dataclass(frozen=True, slots=True)
class Coherent(Rule):
    """Write the candidate with the best average, and with it those that all steps agree on.

    Attributes:
        history: steps that are averaged, the present one included; 1 = plain confidence, one place per step.
        top: places that each step keeps.
        is_adaptive: write every candidate whose likeliest token was the same in all `history` steps and is the one
            drawn now; False = one place per step.
    """

    history: int = 2
    top: int = 4
    is_adaptive: bool = True

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        """Decide for one row."""
        is_open = eligible(reading, row)
        past: tuple[Snapshot, ...] = memo if row.step and memo else ()
        kept = np.flatnonzero(surest(reading.confidence, is_open, self.top))
        now = Snapshot(reading.places[kept], reading.probs[torch.from_numpy(kept)])
        kept_on = (*past, now)[1 - self.history :] if self.history > 1 else ()
        for snapshot in past:
            kept = kept[np.isin(reading.places[kept], snapshot.places)]
        if not past or not len(kept):
            return Choice(surest(reading.confidence, is_open, 1), memo=kept_on)
        return Choice(self._coherent(reading, kept, (*past, now)), memo=kept_on)

    def _coherent(self, reading: Reading, kept: Ids, snapshots: tuple[Snapshot, ...]) -> np.ndarray:
        laws = torch.stack([_laws(snapshot, reading.places[kept]) for snapshot in snapshots]).double()  # [steps, K, V]
        drawn = torch.from_numpy(reading.tokens[kept]).to(laws.device)
        score = laws.mean(0).gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        writes = np.zeros(len(reading.places), dtype=np.bool_)
        writes[kept[int(np.argmax(score.cpu().numpy()))]] = True
        if self.is_adaptive and len(snapshots) == self.history:
            agreed = (laws.argmax(-1) == drawn).all(0)
            writes[kept[agreed.cpu().numpy()]] = True
        return writes


def _laws(snapshot: Snapshot, places: Ids) -> Tensor:
    return snapshot.probs[torch.from_numpy(np.searchsorted(snapshot.places, places))]
