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

The file is long because a round may forward candidates side by side, which most samplers never do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.canvas import Advance, Canvas, Copy, Parts, Schedule, advance
from outpace.canvas.copies import place_copies
from outpace.canvas.reach import Reach
from outpace.canvas.rules.ete import Explore
from outpace.errors import ConfigError
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import CanvasBatch, CanvasMethod, ReadCopy
from outpace.setting import setting
from outpace.types import Context, Needs, View

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

    threshold: float = setting(0.9, above=0, most=1)
    reach: int = setting(-1, least=-1, note="-1 reaches the end of the canvas")
    explore: int = setting(1, least=0)
    candidates: int = setting(3, least=1)

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

    def start(self, context: Context) -> CanvasBatch:
        """Return the rows' canvases.

        Raises:
            ConfigError: copies of a whole text that a cache would hold.
        """
        state = super().start(context)
        longest = max(len(text) + len(rest) for text, rest in zip(context.texts, context.canvases, strict=True))
        is_copied = self.needs.copies > 1 and state.parts.canvas.block_size and self.cache == "none"
        if is_copied and self.needs.copies * longest > context.capacity:
            raise ConfigError(
                f"Without a cache, {self.candidates} candidates would copy {longest} tokens each into one forward.",
                "Leave cache out (the block cache is exact), or set candidates=1.",
            )
        return state

    def forwarded(self, index: int, view: View, state: CanvasBatch) -> Sequence[Copy]:
        """Return the row, or where it explores one copy for each candidate."""
        del view
        row = state.canvases[index]
        return place_copies(row.memo.versions(row, state.parts.canvas) if row.memo else [row], state.parts)

    def take(self, copies: Sequence[Copy], reader: ReadCopy, parts: Parts) -> Advance | None:
        """Return the row after a step from the version that leaves most places sure, then the likeliest."""
        readings = [reader(copy) for copy in copies]
        if any(reading.is_broken for reading in readings):
            return None
        best = 0
        if len(copies) > 1:
            outlooks = [self.rule.outlook(reading, copy.row) for reading, copy in zip(readings, copies, strict=True)]
            best = max(range(len(copies)), key=outlooks.__getitem__)
        step = advance(copies[best].row, readings[best], copies[best].window, parts)
        return copies[best].moved(step, len(copies[0].slots))
