"""Draft the tree that is expected to be accepted furthest, anew in every step.

Paper: Wang et al. (2024), arXiv 2406.17276, algorithm 1.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token; one draft forward per level of the tree, of at most `budget`
    positions; the drafter's weights and cache.
Differences: the probability of a path is the chance that the target picks it given its own noise, which at a
    temperature is known (the paper takes the drafter's law); a level expands only the nodes that can still have a child
    among the best, which gives the same tree for less work; several rows, each with its own tree.
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

__all__ = ["OptTree"]


@dataclass(frozen=True)
class OptTree(BudgetTree):
    """OPT-Tree.

    Attributes:
        min_gain: stop after a level that adds no more than this to the expected number of accepted drafts; best set to
            the time of a draft forward over that of a target forward.
        spread: how far the drafter's logits are thought to be off; less trusts it further, in deeper trees.

    Raises:
        ConfigError: a budget or depth below 1, or a negative gain.
    """

    min_gain: float = setting(0.1, least=0)
    spread: float = setting(0.8, above=0)

    name: ClassVar[str] = "opt-tree"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A small model drafts the tree of a given size that is expected to be accepted furthest."
    paper: ClassVar[Paper] = Paper(
        "OPT-Tree: Speculative Decoding with Adaptive Draft Tree Structure", "Wang et al.", 2024, "2406.17276", 201
    )

    def grow(self, view: View, drafter: Drafter, reach: list[int]) -> Proposal:
        """Grow the tree level by level until it stops paying."""
        tree = draft_best(drafter, view, reach, self.budget, min_gain=self.min_gain, spread=self.spread)
        return tree.proposal(self.name)
