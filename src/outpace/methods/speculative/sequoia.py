"""Draft a tree whose shape follows how often each rank is accepted, and whose size follows what this machine charges.

Paper: Chen et al. (2024), arXiv 2402.12374: optimal shape (section 3.1) and hardware-aware size (section 3.3).
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token; one draft forward per level of the tree; the drafter's weights and
    cache.
Differences: the acceptance of each rank is estimated as the row is written instead of on a calibration set; the best
    shape is found greedily, which gives the optimum of the paper's dynamic program; siblings are the likeliest tokens
    given the target's own noise, matched instead of sampled without replacement, so the text is plain decoding's own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from outpace.draft.grow import draft_shape
from outpace.draft.reading import Drafter
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, nothing
from outpace.schedule.cost import CostCurve
from outpace.schedule.ranks import RankCounts
from outpace.schedule.tree_size import Shape, best_budget, best_shape
from outpace.schedule.tune import load_curve
from outpace.types import Context, Needs, Outcome, Proposal, View

__all__ = ["Sequoia", "SequoiaState"]

_PRIOR = (0.50, 0.15, 0.07, 0.05, 0.03, 0.03, 0.02, 0.02)
_DEFAULT_BUDGET = 16  # without a cost curve
_DRAFT_COST = 0.1  # of a draft forward, against a target forward of one token, where neither curve nor setting tells


@dataclass
class SequoiaState:
    """The drafter, the cost of forwards (shared by all rows), and each row's acceptance by rank."""

    drafter: Drafter
    curve: CostCurve | None
    draft_s: float
    ranks: list[RankCounts]


@dataclass(frozen=True)
class Sequoia(Method):
    """Sequoia.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
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

    draft: str = "auto"
    budget: int = 0
    max_budget: int = 64
    max_depth: int = 8
    acceptance: str = ""
    draft_cost: float = 0.0

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
        if self.budget < 0 or self.max_budget < 1 or self.max_depth < 1:
            raise ConfigError(
                f"budget is {self.budget}, max_budget {self.max_budget} and max_depth {self.max_depth}.",
                "Use a budget of 0 or more, and 1 or more for the others.",
            )
        if self.draft_cost < 0:
            raise ConfigError(f"draft_cost is {self.draft_cost}.", "draft_cost must be 0 or more.")
        self._given()

    def _given(self) -> tuple[float, ...]:
        try:
            rates = tuple(float(item) for item in self.acceptance.split(",") if item.strip())
        except ValueError:
            rates = (-1.0,)
        if any(not 0 <= rate <= 1 for rate in rates):
            raise ConfigError(f"acceptance is {self.acceptance!r}.", "Give chances from 0 to 1, such as 0.5,0.2,0.1.")
        return rates

    @property
    def needs(self) -> Needs:
        """A causal target that scores trees, and a draft model of the same vocabulary."""
        width = self.budget or self.max_budget
        return Needs(has_tree=True, has_rollback=True, width=width, models=("draft",))

    def start(self, context: Context) -> SequoiaState:
        """Give the drafter an empty cache, and look up what forwards cost.

        Raises:
            ConfigError: the memory is no cost curve.
        """
        given = context.memory.get(self.name) if isinstance(context.memory, Mapping) else context.memory
        if given is not None and not isinstance(given, CostCurve):
            raise ConfigError(
                f"The method {self.name!r} cannot use a memory of type {type(given).__name__}.",
                "Give a CostCurve, or leave memory out.",
            )
        curve = given or load_curve(context.target)
        drafter = Drafter(context.models["draft"], context.cache_for("draft"))
        ranks = [RankCounts(self._given() or _PRIOR) for _ in context.texts]
        return SequoiaState(drafter, curve, self._draft_seconds(curve, drafter), ranks)

    def _draft_seconds(self, curve: CostCurve | None, drafter: Drafter) -> float:
        if curve is None:
            return 0.0
        own = None if self.draft_cost else load_curve(drafter.adapter)
        return own.seconds_for(1) if own is not None else (self.draft_cost or _DRAFT_COST) * curve.seconds_for(1)

    def propose(self, view: View, state: SequoiaState) -> Proposal:
        """Fill each row's best shape."""
        limits = (self.budget, self.max_budget, self.max_depth)
        rates = [self._given() or counts.rates() for counts in state.ranks]
        shapes = [_planned(chances, state.curve, state.draft_s, *limits) for chances in rates]
        reach = state.drafter.reach(view, [shape.depth for shape in shapes])
        if max(reach) == 0:
            return nothing(view)
        adapter, cache = state.drafter.adapter, state.drafter.cache
        parent, rank, length = Shape.stack(shapes, cache.device)
        tree, rank = draft_shape(adapter, cache, view, reach, parent, rank, length)
        proposal = tree.proposal(self.name)
        proposal.carry = rank
        return proposal

    def observe(self, outcome: Outcome, view: View, state: SequoiaState) -> SequoiaState:
        """Forget drafted entries that did not become text; count which ranks were accepted."""
        proposal = outcome.proposal
        if proposal is None:
            return state
        state.drafter.forget(outcome, view)
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


@functools.lru_cache(maxsize=1024)
def _planned(
    rates: tuple[float, ...], curve: CostCurve | None, draft_s: float, budget: int, max_budget: int, max_depth: int
) -> Shape:
    """Return the shape to draft; remembered, since estimates settle."""
    depth = max_depth = min(max_depth, budget or max_budget)  # no tree is deeper than it has nodes
    if budget == 0 and curve is None:
        budget = min(_DEFAULT_BUDGET, max_budget)
    elif budget == 0 and curve is not None:
        budget, depth = best_budget(rates, curve, draft_s, max_budget, max_depth)
    return best_shape(rates, budget, depth)[0]
