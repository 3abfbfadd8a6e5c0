"""Verify a tree of guessed states in one forward: other places and other tokens where the next step is in doubt.

Paper: Gao et al. (2025), arXiv 2510.04147 (SSD), self-drafting with hierarchical verification trees.
Guarantee: exact. The reference is `masked-diffusion` with the same block, order, cache, refresh, ahead and end, and one
    token per step: the same model, rule, schedule and cache policy, the same seed.
Cost: one forward of up to `copies` copies of what the cache does not hold, for one to `copies` steps of the reference.
Differences: the tree is grown best-first from the model's own probabilities instead of in a fixed shape; its nodes are
    whole states, cache entries included, so that any rule, schedule and cache policy is reproduced; guesses are drawn
    with the noise of the step that they stand for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from outpace.canvas import CanvasRow, Parts, Reading
from outpace.canvas.reading import PartReading, draw
from outpace.canvas.row import Ids
from outpace.canvas.verify import Guess, writes
from outpace.methods.base import Paper
from outpace.methods.diffusion.verified import VerifiedCanvas
from outpace.methods.setting import setting

__all__ = ["SSD"]


@dataclass(frozen=True)
class SSD(VerifiedCanvas):
    """Lossless masked diffusion: a tree of guesses, verified side by side.

    Writes, token for token, what `masked-diffusion` writes with the same order, block, cache, refresh, ahead and end,
    one token per step, under the same seed.

    Attributes:
        copies: states per forward at most: the nodes of the tree.
        width: places tried per state, in the order in which the rule would write them, and at the first of them the
            likeliest other token; 1, without another token, is a chain.

    Raises:
        ConfigError: a width below 1.
    """

    copies: int = setting(8, least=1, note="1 guesses nothing")
    width: int = setting(3, least=1)

    name: ClassVar[str] = "ssd"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Masked diffusion in fewer forwards: verifies a tree of likely next states together."
    paper: ClassVar[Paper] = Paper(
        "Self Speculative Decoding for Diffusion Large Language Models",
        "Gao et al.",
        2025,
        "2510.04147",
        294,
        "Trees of a fixed shape.",
    )

    def branches(self, parts: Parts, row: CanvasRow, reading: Reading) -> Iterator[tuple[float, Guess]]:
        """Yield the reading as it stands, its best place with the runner-up for a token, and the places next in rank.

        The place of rank k weighs 2^-(k + 1); at the best place the drawn token has (1 + confidence) / 2 of that.
        """
        best = np.flatnonzero(writes(parts, row, reading))
        if not len(best):
            return
        sure = float(reading.confidence[best[0]])
        yield (1 + sure) / 4, lambda: reading
        if self.width > 1 and len(best) == 1:
            yield (1 - sure) / 4, partial(_runner_up, reading, best)
        for rank in range(1, min(self.width, len(reading.places))):
            yield 0.5 ** (rank + 1), partial(_ranked, parts, row, reading, rank)


def _ranked(parts: Parts, row: CanvasRow, reading: Reading, rank: int) -> Reading | None:
    """Return the reading of the place that the rule would write if `rank` better ones were not there."""
    rest = np.arange(len(reading.places))
    for number in range(rank):
        chosen = writes(parts, row, _part(reading, rest) if number else reading)
        if not chosen.any() or chosen.all():
            return None
        rest = rest[~chosen]
    chosen = writes(parts, row, _part(reading, rest))
    return _part(reading, rest[chosen][:1]) if chosen.any() else None


def _part(reading: Reading, index: Ids) -> Reading:
    """Return the reading of some places, with what has been computed of it."""
    part = PartReading(reading, index)
    if len(index) == 1:  # with nothing else to write, an end token need not wait
        part.waits = None
    return part


def _runner_up(reading: Reading, at: Ids) -> Reading:
    """Return one place's reading with the token that would be drawn there if the drawn one were ruled out."""
    logits = reading.logits[at].clone()
    logits[0, int(reading.tokens[at[0]])] = float("-inf")
    other = _part(reading, at)
    other.tokens = draw(logits, other.places, reading.visit, reading.sampler)
    return other
