"""A second model writes the whole text at once, and the target copies of it what it would write itself.

Paper: Ge et al. (2022), arXiv 2205.10350, generalised aggressive decoding.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token, up to `draft_len` positions each; the forwards of one text of the
    drafter, which are few where it writes in parallel; its weights and cache.
Differences: the paper's drafter is asked again for a block behind each verified prefix. Here any model may draft, also
    one that cannot go on behind a given beginning: its text is made once, and the target finds its place in it again
    behind each difference, as it does in its source in `input-guided`. A drafter that writes token by token is decoded
    to its end, with the target's noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.copied_whole import CopiedWhole

__all__ = ["GeneralisedAggressive"]


@dataclass(frozen=True)
class GeneralisedAggressive(CopiedWhole):
    """Generalised aggressive decoding."""

    name: ClassVar[str] = "generalised-aggressive"
    summary: ClassVar[str] = "A second model writes the whole text at once; the target copies what it agrees with."
    paper: ClassVar[Paper] = Paper(
        "Lossless Acceleration for Seq2seq Generation with Aggressive Decoding",
        "Ge et al.",
        2022,
        "2205.10350",
        1,
        "Asking the drafter again behind each verified prefix.",
        'outpace generate "Ein Mann fährt Fahrrad." --model translate --method generalised-aggressive',
    )
