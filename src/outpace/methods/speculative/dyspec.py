"""Draft a tree by always adding where the walk is likeliest to arrive, whatever token will stand there.

Paper: Xiong et al. (2024), arXiv 2410.11744, algorithm 1 (greedy expansion), run level by level as in algorithm 2.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token; one draft forward per level of the tree, of at most `budget`
    positions; the drafter's weights and cache.
Differences: siblings are the likeliest tokens given the target's own noise, in order, where the paper samples them
    without replacement from the drafter's law and accepts by rejection; so the text is plain decoding's own. The greedy
    order needs no heap: the best slots of all are found level by level, with one forward per level instead of one per
    node, and `threshold` is the paper's second stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.draft.grow import draft_best
from outpace.draft.reading import Drafter
from outpace.methods.base import Paper
from outpace.methods.speculative.drafted import BudgetTree
from outpace.setting import setting
from outpace.types import Proposal, View

__all__ = ["DySpec"]


@dataclass(frozen=True)
class DySpec(BudgetTree):
    """DySpec.

    A slot is a place for one more child: its value is the chance that the walk reaches the parent and takes none of the
    children before it. The `budget` best slots are filled.

    Attributes:
        threshold: slots of less value stay empty.
        spread: how far the drafter's logits are thought to be off; less trusts it further, in deeper trees (the paper's
            draft temperature).

    Raises:
        ConfigError: a budget or depth below 1, or a threshold outside [0, 1).
    """

    threshold: float = setting(0.0, least=0, below=1)
    spread: float = setting(0.6, above=0)

    name: ClassVar[str] = "dyspec"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A small model drafts a tree that grows where acceptance is likeliest to continue."
    paper: ClassVar[Paper] = Paper(
        "DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure",
        "Xiong et al.",
        2024,
        "2410.11744",
        237,
        "Siblings sampled from the drafter's law and accepted by rejection (ours are matched, which is exact), and the "
        "sparse attention kernel.",
    )

    def grow(self, view: View, drafter: Drafter, reach: list[int]) -> Proposal:
        """Fill the best slots."""
        tree = draft_best(
            drafter,
            view,
            reach,
            self.budget,
            by_slot=True,
            floor=self.threshold,
            spread=self.spread,
        )
        return tree.proposal(self.name)
