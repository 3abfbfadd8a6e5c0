"""Draft a tree whose shape follows how often each rank is accepted, and whose size follows what this machine charges.

Paper: Chen et al. (2024), arXiv 2402.12374: optimal shape (section 3.1) and hardware-aware size (section 3.3).
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token; one draft forward per level of the tree; the drafter's weights and
    cache.
Differences: the acceptance of each rank is estimated as the row is written instead of on a calibration set; the best
    shape is found greedily, which gives the optimum of the paper's dynamic program; siblings are the likeliest tokens
    given the target's own noise, matched instead of sampled without replacement, so the text is plain decoding's own.
Longer than most: shape and size follow two estimates, acceptance by rank and the cost of forwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.draft.grow import draft_shape
from outpace.draft.reading import Drafter
from outpace.methods.base import Paper, nothing
from outpace.methods.speculative.drafted import Drafted
from outpace.schedule.cost import CostCurve
from outpace.schedule.ranks import RankCounts, given_rates
from outpace.schedule.tree_size import RankTree, planned
from outpace.schedule.tune import claim_curve, draft_seconds
from outpace.setting import setting
from outpace.types import Context, Outcome, Proposal, View

__all__ = ["Sequoia", "SequoiaState"]

_PRIOR = (0.50, 0.15, 0.07, 0.05, 0.03, 0.03, 0.02, 0.02)


@dataclass
class SequoiaState:
    """The drafter, the cost of forwards (shared by all rows), and each row's acceptance by rank."""

    drafter: Drafter
    curve: CostCurve | None
    draft_s: float
    ranks: list[RankCounts]


@dataclass(frozen=True)
class Sequoia(Drafted):
    """Sequoia.

    Attributes:
        budget: nodes of the tree; 0 = what pays best by the measured cost curve of the target (`outpace tune`, or a
            `CostCurve` given as memory), 16 where there is none.
        max_budget: most nodes when the curve decides.
        max_depth: most levels.
        acceptance: chance that the likeliest, second, third ... child is accepted, parted by commas, used as it is;
            "" = estimated as the text is written.
        draft_cost: time of a draft forward over that of a target forward of one token; 0 = from the drafter's curve.

    Raises:
        ConfigError: a number out of its range, or an acceptance that is no list of chances.
    """

    budget: int = setting(0, least=0)
    max_budget: int = setting(64, least=1)
    max_depth: int = setting(8, least=1)
    acceptance: str = ""
    draft_cost: float = setting(0.0, least=0)

    name: ClassVar[str] = "sequoia"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A small model fills a tree of the best shape and of the size that pays on this machine."
    paper: ClassVar[Paper] = Paper(
        "Sequoia: Scalable, Robust, and Hardware-aware Speculative Decoding",
        "Chen et al.",
        2024,
        "2402.12374",
        None,
        "Sampling and verification without replacement (drafts are matched), and offloading.",
    )

    def __post_init__(self) -> None:
        """Hold the settings to their ranges, and read the chances that are given."""
        super().__post_init__()
        given_rates(self.acceptance)

    @property
    def width(self) -> int:
        """The tree's budget."""
        return self.budget or self.max_budget

    def start(self, context: Context) -> SequoiaState:
        """Give the drafter an empty cache, and look up what forwards cost.

        Raises:
            ConfigError: the memory is no cost curve.
        """
        drafter, curve = Drafter.begin(context), claim_curve(context, self.name)
        draft_s = draft_seconds(curve, drafter.adapter, self.draft_cost)
        ranks = [RankCounts(given_rates(self.acceptance) or _PRIOR) for _ in context.texts]
        return SequoiaState(drafter, curve, draft_s, ranks)

    def propose(self, view: View, state: SequoiaState) -> Proposal:
        """Fill each row's best shape."""
        limits, given = (self.budget, self.max_budget, self.max_depth), given_rates(self.acceptance)
        trees = [planned(given or counts.rates(), state.curve, state.draft_s, *limits) for counts in state.ranks]
        reach = state.drafter.reach(view, [tree.depth for tree in trees])
        if max(reach) == 0:
            return nothing(view)
        tree, rank = draft_shape(state.drafter, view, reach, *RankTree.stack(trees, state.drafter.device))
        return replace(tree.proposal(self.name), carry=rank)

    def observe(self, outcome: Outcome, view: View, state: SequoiaState) -> SequoiaState:
        """Forget drafted entries that did not become text; count which ranks were accepted."""
        proposal = outcome.proposal
        super().observe(outcome, view, state.drafter)
        if proposal is None:
            return state
        if proposal.tokens.shape[1] == 0:  # old counts fade, so that a row that gave up tries again some day
            parents = ranks = [list[int]()] * len(state.ranks)
        elif proposal.origin == self.name and proposal.parent is not None:
            parents, ranks = proposal.parent.tolist(), proposal.carry.tolist()
        else:
            return state
        rows = zip(state.ranks, parents, ranks, proposal.length, outcome.path, strict=True)
        for counts, parent, rank, length, path in rows:
            counts.add(parent[:length], rank[:length], [node for node in path if node >= 0])
        return state
