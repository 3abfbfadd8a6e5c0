"""Guess the next states of a canvas from what was said of the last one, and verify them in one forward.

Paper: Wu and Zhang (2025), arXiv 2510.00294 (FreeDave).
Guarantee: exact. The reference is `masked-diffusion` with the same block, order, cache, refresh, ahead and end, and one
    token per step: the same model, rule, schedule and cache policy, the same seed.
Cost: one forward of up to `copies` copies of what the cache does not hold, for one to `copies` steps of the reference.
Differences: guesses are drawn with the noise of the step that they stand for (keyed by place and visit), so sampling is
    reproduced too; a guess is kept if the whole state agrees, entries in the cache included; approximate caches are
    reproduced with their errors; guesses end with the chain that was verified, rather than at the longest later match;
    drafts on top of a confidence threshold are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from outpace.canvas import CanvasRow, Parts, Reading
from outpace.canvas.verify import Guess
from outpace.methods.base import Paper
from outpace.methods.diffusion.verified import VerifiedCanvas
from outpace.methods.setting import setting

__all__ = ["FreeDave"]


@dataclass(frozen=True)
class FreeDave(VerifiedCanvas):
    """Lossless masked diffusion: a chain of guesses, verified side by side.

    Writes, token for token, what `masked-diffusion` writes with the same order, block, cache, refresh, ahead and end,
    one token per step, under the same seed.

    Attributes:
        copies: states per forward at most; each costs a forward's positions once more.
        min_lead: least lead of the surest place for a guess; -1 = 0.4 on a CPU, 0 elsewhere.
    """

    min_lead: float = setting(-1.0, least=-1, most=1, note="-1 = by device")

    name: ClassVar[str] = "freedave"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Masked diffusion in fewer forwards: guesses the next steps and verifies them together."
    paper: ClassVar[Paper] = Paper(
        "Free Draft-and-Verification: Toward Lossless Parallel Decoding for Diffusion Large Language Models",
        "Wu and Zhang",
        2025,
        "2510.00294",
        244,
        "Drafts on top of a confidence threshold.",
    )

    def branches(self, parts: Parts, row: CanvasRow, reading: Reading) -> Iterable[tuple[float, Guess]]:
        """Return the reading alone: the rule decides by it as it stands."""
        del parts, row
        return [(1.0, lambda: reading)]
