"""What the lossless methods on a canvas share: guesses in `propose`, the walk along them in `accept`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import numpy as np

from outpace.canvas import Canvas, CanvasRow, Reading, Schedule, Window, propose_windows, read
from outpace.canvas.reach import Reach
from outpace.canvas.reading import reread
from outpace.canvas.report import report
from outpace.canvas.rules import Ranked
from outpace.canvas.verify import Branch, Copy, Reference, Verified, grow, lay_copies, verify
from outpace.errors import ConfigError
from outpace.methods.base import Method
from outpace.methods.diffusion.base import CanvasMethod, CanvasState
from outpace.methods.registry import load_method
from outpace.methods.speculative.ranked import ORDERS
from outpace.types import Context, Decision, Guarantee, Needs, Outcome, Proposal, Report, Scores, View

__all__ = ["VerifiedCanvas"]


@dataclass(frozen=True)
class VerifiedCanvas(CanvasMethod):
    """Base of the methods that forward guessed states beside the row's own; a subclass gives `branches`.

    Attributes:
        order: what is written first: "confidence", "margin", "entropy", "random" or "left".
        copies: states per forward at most, the row's own among them; 1 = no guesses.

    Raises:
        ConfigError: an unknown order, or fewer than 1 copies.
    """

    order: str = "confidence"
    copies: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ORDERS:
            raise ConfigError(f"order is {self.order!r}.", f"Use one of {', '.join(ORDERS)}.")
        if self.copies < 1:
            raise ConfigError(f"copies is {self.copies}.", "copies must be 1 or more; 1 guesses nothing.")

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
        return Needs(attention="canvas", has_mask=True, has_tree=True, copies=self.copies)

    @property
    def guarantee(self) -> Guarantee:
        """Nothing is kept that the reference would not have written."""
        return Guarantee.EXACT

    def reference(self) -> Method:
        """Return the decoding that is reproduced: the same blocks, order and cache, one token per step."""
        shared = {field.name: getattr(self, field.name) for field in fields(CanvasMethod)}
        return load_method("masked-diffusion")(**shared, order=self.order)  # type: ignore[call-arg]

    def branches(self, reference: Reference, row: CanvasRow, reading: Reading) -> Iterable[tuple[float, Branch]]:
        """Return what may come of a state and a reading, each with a weight up to 1."""
        raise NotImplementedError

    def start(self, context: Context) -> CanvasState:
        """Return the rows' canvases; nothing has been said of them yet."""
        state = super().start(context)
        known: list[Reading | None] = [None] * len(state.canvases)
        return replace(state, extra=known)

    def propose(self, view: View, state: CanvasState) -> Proposal:
        """Propose what the reference would forward, and guesses beside it."""
        self._take_over(view, state)
        room = view.cache.capacity - max(view.cache.lengths)
        rows = [self._grow(index, view, state, room) for index in range(len(state.canvases))]
        windows = [lay_copies(copies, state.canvas) for copies in rows]
        if all(len(copies) == 1 for copies in rows):
            windows = [replace(window, visible=None) for window in windows]
        proposal = propose_windows(windows, self._device(view), self.name)
        proposal.carry = rows
        return self.shape(proposal, view, state)

    def _reference(self, state: CanvasState) -> Reference:
        canvas = state.canvas
        return Reference(canvas, self.rule, self.schedule(canvas), self.policy(canvas))

    def _grow(self, index: int, view: View, state: CanvasState, room: int) -> list[Copy]:
        known = state.extra[index]

        def guess_from(row: CanvasRow, window: Window) -> Reading | None:
            if known is None or not np.isin(window.asked, known.places).all():
                return None
            return reread(known, np.searchsorted(known.places, window.asked), row, state.canvas)

        copies = 1 if known is None else self.copies
        return grow(state.canvases[index], self._reference(state), guess_from, self.branches, copies, room)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: CanvasState) -> Decision:
        """Take every row as far as its guesses were right, and one step further."""
        reference, verified = self._reference(state), []
        for index, copies in enumerate(proposal.carry):
            logits, sampler, banned = scores.logits[index], view.sampler.rows([index]), state.banned[index]

            def read_copy(copy: Copy) -> Reading:
                asked = copy.window.asked
                part = logits[copy.asked : copy.asked + len(asked)]  # noqa: B023
                return read(part, asked, copy.row, state.canvas, sampler, banned)  # noqa: B023

            verified.append(verify(copies, reference, read_copy))
        decision = self.decide([None if one is None else one.step for one in verified], state)
        decision.carry = verified
        return decision

    def observe(self, outcome: Outcome, view: View, state: CanvasState) -> CanvasState:
        """Take the rows as they are after the step, and what was last said of them."""
        del view
        if outcome.decision is None:
            return state
        verified: list[Verified | None] = outcome.decision.carry
        rows = [old if one is None else one.row for old, one in zip(state.canvases, verified, strict=True)]
        return replace(state, canvases=rows, extra=[None if one is None else one.reading for one in verified])

    def report(self, outcome: Outcome, view: View, state: CanvasState) -> list[Report]:
        """Tell which places were written in which step of the reference, and how many states were guessed."""
        del view
        carry: list[Verified | None] = [] if outcome.decision is None else outcome.decision.carry
        pairs = zip(state.canvases, carry, strict=True)
        return [report(row, ()) if one is None else report(row, one.rows, one.guessed) for row, one in pairs]
