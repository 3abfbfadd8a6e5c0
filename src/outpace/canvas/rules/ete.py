"""Write what is sure wherever it lies, and when nothing is, write what tells most (explore-then-exploit, Fu et al.).

Sure tokens carry next to no information. When they run out, the rule also settles a place whose law is wide: the laws
around it change, and sure tokens appear again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, CanvasRow
from outpace.canvas.rules.rule import Choice, Rule, eligible, surest

__all__ = ["Explore", "Tentative"]


@dataclass(frozen=True)
class Tentative:
    """A place to be tried with several tokens in the next forward.

    Attributes:
        place: where.
        tokens: the candidates; the one drawn comes first.
        log_probs: of each under the model's own law.
    """

    place: int
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Explore(Rule):
    """Exploit all that is sure, in later blocks as well; else explore.

    Attributes:
        threshold: confidence from which a place is written; above 1 = none.
        places: places explored when nothing is sure, beside the surest one that is written anyway: those of the
            widest laws among the block's places that follow a decided one; 0 = none, which is threshold decoding.
        candidates: tokens tried at the explored place (only one place then); 1 = the drawn one is written at once.
    """

    threshold: float = 0.9
    places: int = 1
    candidates: int = 1

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        """Decide for one row; the memo is the place to be tried next, if any."""
        del memo
        sure = self.sure(reading, row)
        if sure.any():
            return Choice(sure)
        is_open = eligible(reading, row)
        writes = surest(reading.confidence, is_open, 1)
        if not self.places:
            return Choice(writes)
        # Nowhere else is a wide law a matter of choice: in the open it only says that the words around are missing.
        follows = ~np.isin(reading.places - 1, reading.places)
        unsure = surest(reading.entropy, is_open & follows & ~writes, self.places)
        can_compare = is_open.sum() > 2  # else nothing of the block is left to tell candidates apart
        if self.candidates == 1 or not can_compare or not unsure.any():
            return Choice(writes | unsure)
        return Choice(writes, memo=self._tentative(reading, int(np.flatnonzero(unsure)[0])))

    def sure(self, reading: Reading, row: CanvasRow) -> Bools:
        """Return [A] the places whose drawn token reaches the threshold.

        Beyond the block in work no end token counts: it would cut the text while the block is still open.
        """
        beyond = ~reading.within(row.end)
        may_write = eligible(reading, row) | (beyond & ~np.isin(reading.tokens, row.ends))
        return (reading.confidence >= self.threshold) & may_write & (self.threshold <= 1)

    def _tentative(self, reading: Reading, index: int) -> Tentative:
        """Return the drawn token and the likeliest others of one place."""
        logits = reading.sampler.process(reading.logits[index : index + 1], None)[0]
        best = logits.topk(min(self.candidates + 1, len(logits)))
        alive = [int(token) for token, value in zip(best.indices, best.values, strict=True) if value > float("-inf")]
        drawn = int(reading.tokens[index])
        tokens = [drawn, *(token for token in alive if token != drawn)][: self.candidates]
        probs = reading.probs[index][tokens].double().clamp(min=1e-300)
        return Tentative(int(reading.places[index]), tuple(tokens), tuple(probs.log().tolist()))
