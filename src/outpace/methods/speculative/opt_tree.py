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
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, nothing
from outpace.types import Context, Needs, Outcome, Proposal, View

__all__ = ["OptTree"]


@dataclass(frozen=True)
class OptTree(Method):
    """OPT-Tree.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        budget: nodes of the tree.
        max_depth: most levels.
        min_gain: stop after a level that adds no more than this to the expected number of accepted drafts; best set to
            the time of a draft forward over that of a target forward.
        spread: how far the drafter's logits are thought to be off; less trusts it further, in deeper trees.

    Raises:
        ConfigError: a budget or depth below 1, or a negative gain.
    """

    draft: str = "auto"
    budget: int = 16
    max_depth: int = 8
    min_gain: float = 0.1
    spread: float = 0.8

    name: ClassVar[str] = "opt-tree"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A small model drafts the tree of a given size that is expected to be accepted furthest."
    paper: ClassVar[Paper] = Paper(
        "OPT-Tree: Speculative Decoding with Adaptive Draft Tree Structure", "Wang et al.", 2024, "2406.17276", 201
    )

    def __post_init__(self) -> None:
        if self.budget < 1 or self.max_depth < 1:
            raise ConfigError(f"budget is {self.budget} and max_depth {self.max_depth}.", "Both must be 1 or more.")
        if self.min_gain < 0:
            raise ConfigError(f"min_gain is {self.min_gain}.", "min_gain must be 0 or more.")
        if self.spread <= 0:
            raise ConfigError(f"spread is {self.spread}.", "spread must be above 0.")

    @property
    def needs(self) -> Needs:
        """A causal target that scores trees, and a draft model of the same vocabulary."""
        return Needs(has_tree=True, has_rollback=True, width=self.budget, models=("draft",))

    def start(self, context: Context) -> Drafter:
        """Give the drafter an empty cache for the joining rows."""
        return Drafter(context.models["draft"], context.cache_for("draft"))

    def propose(self, view: View, state: Drafter) -> Proposal:
        """Grow the tree level by level until it stops paying."""
        reach = state.reach(view, self.max_depth)
        if max(reach) == 0:
            return nothing(view)
        tree = draft_best(
            state.adapter, state.cache, view, reach, self.budget, min_gain=self.min_gain, spread=self.spread
        )
        return tree.proposal(self.name)

    def observe(self, outcome: Outcome, view: View, state: Drafter) -> Drafter:
        """Forget drafted entries that did not become text."""
        if outcome.proposal is not None:
            state.forget(outcome, view)
        return state
