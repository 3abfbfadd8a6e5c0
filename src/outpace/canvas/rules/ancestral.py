"""Ancestral sampling by time steps, as masked diffusion was defined, with and without re-masking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from outpace.canvas.reading import Reading, order_noise
from outpace.canvas.row import Bools, CanvasRow, Floats, Ids
from outpace.canvas.rules.rule import Choice, Rule, eligible

__all__ = ["Ancestral", "written_places"]


@dataclass(frozen=True, slots=True)
class Ancestral(Rule):
    """From time t to s every masked place is written by chance, and every written one may be masked again by chance.

    With T steps, alpha_t = 1 - t and step i going from t = 1 - i/T to s = 1 - (i+1)/T, a masked place is written with
    probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), which is (t - s) / t where sigma, the probability of
    masking again, is 0 (Sahoo et al. 2024, MDLM, arXiv 2406.07524, section 3; Wang et al. 2025, ReMDM,
    arXiv 2503.00307, sections 3 and 4.1). sigma is at most (1 - alpha_s) / alpha_t, hence 0 in the last step: T steps
    always end a block. Steps in which nothing happens reuse the law at hand, so they cost no forward (MDLM's caching).
    The memo is (base of the block, time steps done).

    Attributes:
        steps: T, time steps per block; 0 = as many as the block has places to write.
        eta: strength of re-masking; 0 = none.
        strategy: "cap": sigma = min(eta, its maximum); "rescale": eta times its maximum; "conf": the same, shared out
            over the written places by softmax(-p), p the probability each had when it was written.
    """

    steps: int = 0
    eta: float = 0.0
    strategy: str = "cap"

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        """Decide for one row; in a step that masks places again nothing may be written."""
        steps = self.steps or int((~row.given[row.base : row.end]).sum())
        base, time = memo or (-1, 0)
        time = time if base == row.base else 0
        is_open, inside = eligible(reading, row), reading.within(row.end)
        held = written_places(reading, row)
        sure = np.exp(row.log_probs[held])
        while True:
            time = min(time, steps - 1)
            chance = self._write_chance(time, steps)
            writes = is_open & (reading.noise(2 * time) < chance)
            again = self._again(reading, held, sure, time, steps)
            time += 1
            if not again.any() and bool((writes == inside).all()):
                time, back = self._idle(reading, writes, held, sure, time, steps)
                writes &= ~back[len(held) :]
                again = back[: len(held)]
            if writes.any() or again.any():
                return Choice(writes, masked=held[again], memo=(row.base, time))

    def _idle(
        self, reading: Reading, writes: Bools, held: Ids, sure: Floats, time: int, steps: int
    ) -> tuple[int, Bools]:
        """Go on in time while no place is masked; return the time, and [held + A] which places are masked then."""
        places, both = np.concatenate([held, reading.places]), np.concatenate([sure, reading.confidence])
        is_written = np.concatenate([np.ones(len(held), dtype=np.bool_), writes])
        back = np.zeros(len(places), dtype=np.bool_)
        while self.eta and time < steps and not back.any():
            back[is_written] = self._again(reading, places[is_written], both[is_written], time, steps)
            time += 1
        return time, back

    def _again(self, reading: Reading, held: Ids, sure: Floats, time: int, steps: int) -> Bools:
        """Return [H] which of the written places are masked again in a time step."""
        if not self.eta or not len(held) or not time:
            return np.zeros(len(held), dtype=np.bool_)
        chance: Floats | float = self._sigma(time, steps)
        if self.strategy == "conf":
            weight = np.exp(-sure)
            chance = chance * weight / weight.sum()
        return np.asarray(order_noise(reading.sampler, held, 2 * time + 1) < chance)

    def _sigma(self, time: int, steps: int) -> float:
        most = min(1.0, (steps - time - 1) / time) if time else 1.0
        return min(self.eta, most) if self.strategy == "cap" else self.eta * most

    def _write_chance(self, time: int, steps: int) -> float:
        # With sigma by place ("conf") a masked place has none, as in the authors' code.
        sigma = 0.0 if self.strategy == "conf" or not self.eta else self._sigma(time, steps)
        return (1 + sigma * time) / (steps - time)


def written_places(reading: Reading, row: CanvasRow) -> Ids:
    """Return the places of the block that the sampler, not the caller, has written."""
    stop = min(row.end, row.live())
    is_own = ~row.given[row.base : stop]
    inside = reading.places[reading.places < stop]
    is_own[inside - row.base] = False
    return row.base + np.flatnonzero(is_own)
