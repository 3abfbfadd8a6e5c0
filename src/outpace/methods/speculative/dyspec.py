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
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, nothing
from outpace.types import Context, Needs, Outcome, Proposal, View

__all__ = ["DySpec"]


@dataclass(frozen=True)
class DySpec(Method):
    """DySpec.

    A slot is a place for one more child: its value is the chance that the walk reaches the parent and takes none of the
    children before it. The `budget` best slots are filled.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        budget: most nodes of the tree.
        max_depth: most levels.
        threshold: slots of less value stay empty.
        spread: how far the drafter's logits are thought to be off; less trusts it further, in deeper trees (the paper's
            draft temperature).

    Raises:
        ConfigError: a budget or depth below 1, or a threshold outside [0, 1).
    """

    draft: str = "auto"
    budget: int = 16
    max_depth: int = 8
    threshold: float = 0.0
    spread: float = 0.6

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

    def __post_init__(self) -> None:
        if self.budget < 1 or self.max_depth < 1:
            raise ConfigError(f"budget is {self.budget} and max_depth {self.max_depth}.", "Both must be 1 or more.")
        if not 0 <= self.threshold < 1:
            raise ConfigError(f"threshold is {self.threshold}.", "threshold must be from 0 to below 1.")
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
        """Fill the best slots."""
        reach = state.reach(view, self.max_depth)
        if max(reach) == 0:
            return nothing(view)
        adapter, cache = state.adapter, state.cache
        tree = draft_best(
            adapter, cache, view, reach, self.budget, by_slot=True, floor=self.threshold, spread=self.spread
        )
        return tree.proposal(self.name)

    def observe(self, outcome: Outcome, view: View, state: Drafter) -> Drafter:
        """Forget drafted entries that did not become text."""
        if outcome.proposal is not None:
            state.forget(outcome, view)
        return state
