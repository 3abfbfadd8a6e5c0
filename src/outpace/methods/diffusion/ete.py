"""Write what is sure across blocks; when nothing is, settle an uncertain place to make others sure.

Paper: Fu et al. (2025), arXiv 2511.21103 (ETE): cross-block decoding with targeted exploration of uncertain tokens, and
    the bits-to-rounds principle (`outpace.trace.bits`). Read: the abstract and summaries; the text and the authors'
    code were not at hand.
Guarantee: approximate. With explore=0 and reach=0 it is confidence-threshold decoding, with threshold=1 as well plain
    confidence, one token per step.
Cost: one forward per round; with `candidates` above 1 a forward after an exploring round holds that many copies of what
    the cache does not.
Differences: the place explored has the greatest entropy among those of the block in work that follow a decided place,
    beside the surest one, which a threshold rule would write in such a round: wide laws in the open are wide for want
    of context, and settling them cost quality. Of several candidates the one that leaves most places sure is kept
    (ties: the greater sum of its own and the block's log-probabilities, then the token drawn). No text ends beyond the
    block in work. Under block attention nothing beyond the model's own block is written, since it is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from outpace.canvas import (
    Advance,
    Canvas,
    CanvasRow,
    Reading,
    Schedule,
    Window,
    advance,
    propose_windows,
    read,
)
from outpace.canvas.copies import Copies, lay_copies, shifted
from outpace.canvas.obey import may_write
from outpace.canvas.reach import Reach
from outpace.canvas.rule_ete import Explore, Tentative
from outpace.errors import ConfigError
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import CanvasMethod, CanvasState
from outpace.types import Context, Decision, Needs, Proposal, Scores, View

__all__ = ["ExploreThenExploit"]


@dataclass(frozen=True)
class ExploreThenExploit(CanvasMethod):
    """Explore-then-exploit decoding.

    Attributes:
        threshold: confidence from which a place is written; 1 = none.
        reach: places behind the block in work that are written when sure; -1 = all, 0 = none.
        explore: uncertain places settled when nothing is sure; 0 = none.
        candidates: tokens tried, in one forward, at the explored place; 1 = the drawn one is written unseen. More than
            one place is explored with one candidate only.

    Raises:
        ConfigError: a number out of its range, or several candidates for several places.
    """

    threshold: float = 0.9
    reach: int = -1
    explore: int = 1
    candidates: int = 3

    name: ClassVar[str] = "ete"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Settles uncertain positions to make others sure, across blocks; needs a masked model."
    paper: ClassVar[Paper] = Paper(
        "From Bits to Rounds: Parallel Decoding with Exploration for Diffusion Language Models",
        "Fu et al.",
        2025,
        "2511.21103",
        296,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}.", "threshold must be above 0 and at most 1.")
        if self.reach < -1:
            raise ConfigError(f"reach is {self.reach}.", "reach must be 0 or more; -1 reaches the end of the canvas.")
        if self.explore < 0 or self.candidates < 1:
            raise ConfigError(
                f"explore is {self.explore} and candidates {self.candidates}.",
                "explore must be 0 or more, candidates 1 or more.",
            )
        if self.candidates > 1 and self.explore > 1:
            raise ConfigError(
                f"{self.candidates} candidates cannot be tried at {self.explore} places.",
                "Set candidates=1, or explore=1.",
            )

    @property
    def rule(self) -> Explore:
        """What is sure, else what tells most."""
        return Explore(self.threshold if self.threshold < 1 else 2.0, self.explore, self.candidates)

    @property
    def needs(self) -> Needs:
        """A masked model; for copies that do not see each other, masks between nodes, and room."""
        copies = self.candidates if self.explore else 1
        return replace(super().needs, copies=copies, has_tree=copies > 1)

    def schedule(self, canvas: Canvas) -> Schedule:
        """Return fixed blocks, read beyond the block in work."""
        blocks = super().schedule(canvas)
        return Reach(blocks, self.reach) if self.reach else blocks

    def start(self, context: Context) -> CanvasState:
        """Return the rows' canvases.

        Raises:
            ConfigError: copies of a whole text that a cache would hold.
        """
        state = super().start(context)
        longest = max(len(text) + len(rest) for text, rest in zip(context.texts, context.canvases, strict=True))
        is_copied = self.needs.copies > 1 and state.canvas.block_size and self.cache == "none"
        if is_copied and self.needs.copies * longest > context.capacity:
            raise ConfigError(
                f"Without a cache, {self.candidates} candidates would copy {longest} tokens each into one forward.",
                "Leave cache out (the block cache is exact), or set candidates=1.",
            )
        return state

    def propose(self, view: View, state: CanvasState) -> Proposal:
        """Propose the rows' windows, and of a row that explores one copy for each candidate."""
        if not any(isinstance(row.memo, Tentative) for row in state.canvases):
            return super().propose(view, state)
        schedule = self.schedule(state.canvas)
        self._take_over(view, state)
        # Rows that do not explore say what they see as well, as one copy: a forward has one kind of mask.
        windows = [lay_copies(_versions(row, state.canvas), state.canvas, schedule) for row in state.canvases]
        return propose_windows(windows, self._device(view), self.name)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: CanvasState) -> Decision:
        """Advance every row by one step, an exploring one from its best candidate."""
        if not any(isinstance(window, Copies) for window in proposal.carry):
            return super().accept(proposal, scores, view, state)
        schedule, policy = self.schedule(state.canvas), self.policy(state.canvas)
        steps: list[Advance | None] = []
        for index, window in enumerate(proposal.carry):
            best = self._best(window, scores.logits[index], index, view, state)
            if best is None:
                steps.append(None)
                continue
            row, reading, part, start = best
            step = advance(row, reading, part, state.canvas, self.rule, schedule, policy)
            steps.append(shifted(step, len(row.held), start))
        return self.decide(steps, state)

    def _best(
        self, window: Copies, logits: torch.Tensor, index: int, view: View, state: CanvasState
    ) -> tuple[CanvasRow, Reading, Window, int] | None:
        """Return the version that leaves most places sure, then the likeliest; None if a law of any is broken."""
        sampler, rule, tried = view.sampler.rows([index]), self.rule, state.canvases[index].memo
        found, scored = [], []
        for row, part, asked, start in window.parts():
            reading = read(logits[asked], part.asked, row, state.canvas, sampler, state.banned[index])
            if reading.is_broken:
                return None
            open_log = np.log(np.maximum(reading.confidence[reading.within(row.end)], 1e-300)).sum()
            own = row.log_probs[tried.place] if isinstance(tried, Tentative) else 0.0
            scored.append((int(rule.sure(reading, row).sum()), float(own + open_log)))
            found.append((row, reading, part, start))
        return found[max(range(len(found)), key=scored.__getitem__)]


def _versions(row: CanvasRow, canvas: Canvas) -> Sequence[CanvasRow]:
    """Return the row with each candidate written that its constraint lets in; itself if there are none."""
    tried = row.memo
    if not isinstance(tried, Tentative):
        return [row]
    versions = []
    for token, log_prob in zip(tried.tokens, tried.log_probs, strict=True):
        if not may_write(row, tried.place, token, canvas):
            continue
        tokens, log_probs = row.tokens.copy(), row.log_probs.copy()
        tokens[tried.place], log_probs[tried.place] = token, log_prob
        versions.append(replace(row, tokens=tokens, log_probs=log_probs, visit=row.visit + 1, memo=None))
    return versions or [replace(row, memo=None)]
