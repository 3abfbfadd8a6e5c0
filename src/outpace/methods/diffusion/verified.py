"""What the lossless methods on a canvas share: guesses in `propose`, the walk along them in `accept`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from outpace.canvas import ORDERS, Canvas, CanvasRow, Copy, Parts, Ranked, Reading, Schedule
from outpace.canvas.reach import Reach
from outpace.canvas.reading import reread
from outpace.canvas.row import Floats
from outpace.canvas.verify import Guess, Verified, grow, verify
from outpace.canvas.window import CanvasWindow
from outpace.methods.base import Method
from outpace.methods.diffusion.base import CanvasBatch, CanvasMethod, ReadCopy
from outpace.methods.registry import load_method
from outpace.methods.setting import setting
from outpace.types import Context, Guarantee, Needs, Outcome, View

__all__ = ["VerifiedCanvas"]

_CPU_LEAD = 0.4  # nine guesses in ten are right from here on (stories-mask and stories-block, greedy and sampled)


@dataclass(frozen=True)
class VerifiedCanvas(CanvasMethod):
    """Base of the methods that forward guessed states beside the row's own; a subclass gives `branches`.

    Attributes:
        order: what is written first: "confidence", "margin", "entropy", "random" or "left".
        copies: states per forward at most, the row's own among them; 1 = no guesses.
        min_lead: how far the surest place must lead the next, in confidence, for a guess: a narrow lead is often
            overtaken once a token is written. 0 = always guess; -1 = 0.4 on a CPU, where a copy costs as much as the
            forward that it may save, and 0 elsewhere.

    Raises:
        ConfigError: a setting outside its range.
    """

    order: str = setting("confidence", among=ORDERS)
    copies: int = setting(4, least=1, note="1 guesses nothing")
    min_lead: float = setting(0.0, least=-1, most=1, note="-1 = by device")

    @property
    def rule(self) -> Ranked:
        """The best-ranked place."""
        return Ranked(self.order)

    def schedule(self, canvas: Canvas) -> Schedule:
        """Return the blocks; where it costs logits only, laws are asked beyond them, to guess across their ends."""
        blocks, policy = super().schedule(canvas), self.policy(canvas)
        is_free = policy.name == "none" and not canvas.block_size and canvas.ahead < 0
        return Reach(blocks, self.copies) if is_free and self.copies > 1 else blocks

    @property
    def needs(self) -> Needs:
        """A masked model that honours a mask between nodes, and room for the copies."""
        return replace(super().needs, has_tree=True, copies=self.copies)

    @property
    def guarantee(self) -> Guarantee:
        """Nothing is kept that the reference would not have written."""
        return Guarantee.EXACT

    def reference(self) -> Method:
        """Return the decoding that is reproduced: the same blocks, order and cache, one token per step."""
        shared = {field.name: getattr(self, field.name) for field in fields(CanvasMethod)}
        return load_method("masked-diffusion")(**shared, order=self.order)  # type: ignore[call-arg]

    def branches(self, parts: Parts, row: CanvasRow, reading: Reading) -> Iterable[tuple[float, Guess]]:
        """Return what may come of a state and a reading, each with a weight up to 1."""
        raise NotImplementedError

    def start(self, context: Context) -> CanvasBatch:
        """Return the rows' canvases; nothing has been said of them yet."""
        state = super().start(context)
        known: list[Reading | None] = [None] * len(state.canvases)
        return replace(state, extra=known)

    def forwarded(self, index: int, view: View, state: CanvasBatch) -> Sequence[Copy]:
        """Return what the reference would forward of a row, and guesses beside it."""
        known: Reading | None = state.extra[index]
        if known is None or self.copies == 1:
            return super().forwarded(index, view, state)
        min_lead = self.min_lead if self.min_lead >= 0 else _CPU_LEAD * (view.device.type == "cpu")

        def guess_from(row: CanvasRow, window: CanvasWindow) -> Reading | None:
            at = np.searchsorted(known.places, window.asked)
            if not len(at) or at[-1] >= len(known.places) or (known.places[at] != window.asked).any():
                return None
            # Looked at before anything is drawn anew, so that a step without guesses costs what the reference's does.
            if min_lead and _lead(known.confidence[at[: _in_block(row, window)]]) < min_lead:
                return None
            return reread(known, at, row, state.parts.canvas)

        room = view.cache.capacity - max(view.cache.lengths)
        return grow(state.canvases[index], state.parts, guess_from, self.branches, self.copies, room)

    def take(self, copies: Sequence[Copy], reader: ReadCopy, parts: Parts) -> Verified | None:
        """Return a row as far as its guesses were right, and one step further."""
        return verify(copies, parts, reader)

    def observe(self, outcome: Outcome, view: View, state: CanvasBatch) -> CanvasBatch:
        """Take the rows as they are after the step, and what was last said of them."""
        if outcome.decision is None:
            return state
        verified: list[Verified | None] = outcome.decision.carry
        said = [None if one is None else one.reading for one in verified]
        return replace(super().observe(outcome, view, state), extra=said)

    def to_certify(self) -> Method:
        """Return the method guessing at every step, on every device."""
        return replace(self, min_lead=0.0)


def _in_block(row: CanvasRow, window: CanvasWindow) -> int:
    """Return how many of the asked places lie in the block in work; all, where a new one begins."""
    return int(np.searchsorted(window.asked, row.end)) if row.end > row.base else len(window.asked)


def _lead(confidence: Floats) -> float:
    """Return the distance of the two greatest confidences; a single one has nothing behind it."""
    if len(confidence) < 2:
        return 1.0
    second, first = np.partition(confidence, -2)[-2:]
    return float(first - second)
