"""The trained drafter that is known for the target drafts the tree that pays, whatever its kind.

Paper: none of its own; the tree is OPT-Tree's (Wang et al. 2024, arXiv 2406.17276), its size Sequoia's (Chen et al.
    2024, arXiv 2402.12374), the drafter whatever was trained: see the methods named as the kinds.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token; per step a pass of the drafter, and one more per level for kinds that
    draft token by token; the drafter's weights.
Differences: none. Nodes are weighed in every step: the drafter's chance of each, by how far its hopes for the row came
    true so far, against the cost of a forward (`outpace tune`, or what models of its path have); below that it is plain
    decoding. A draft model may stand in for the trained drafter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from outpace.draft.grow import draft_best
from outpace.draft.paying import Trust, least_worths, paying, seconds_for
from outpace.draft.reading import Drafter
from outpace.methods.base import Method, nothing
from outpace.schedule.cost import CostCurve
from outpace.schedule.tune import claim_curve, likely_curve, pass_share
from outpace.setting import setting
from outpace.types import Context, Needs, Outcome, Proposal, View

__all__ = ["TrainedDrafter", "TrainedState"]

_MOST = 32  # nodes, where the cost curve decides


@dataclass
class TrainedState:
    """The drafter, what its hopes were worth per row, and per row its chances of the nodes that it proposed last.

    Attributes:
        drafter: who drafts.
        trust, hopes: per row.
        curve: of target forwards.
        min_gain: expected drafts that a level must add, to pay for the pass that it takes.
    """

    drafter: Drafter
    trust: list[Trust]
    hopes: list[list[float]]
    curve: CostCurve
    min_gain: float


@dataclass(frozen=True)
class TrainedDrafter(Method):
    """A trained drafter with the tree that pays. `Request.memory` may be a `CostCurve`.

    Attributes:
        draft: the drafter: a directory, or the name of one that ships; "auto" = the one known for the target.
        budget: most nodes of the tree; 0 = as many as may pay, 32 at most.
        max_depth: most levels.
        min_gain: the tree stops growing after a level that adds no more than this to the expected drafts kept; 0 = as
            much as the drafter's pass costs, if it takes one per level.
        spread: scale of the drafter's error (`branch_scores`).
    """

    draft: str = "auto"
    budget: int = setting(0, least=0, note="0 = by the cost curve")
    max_depth: int = setting(8, least=1)
    min_gain: float = setting(0.0, least=0, note="0 = by the drafter's size")
    spread: float = setting(0.8, above=0)

    name: ClassVar[str] = "trained-drafter"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "The trained drafter known for the target drafts; the tree is as large as pays."
    is_sized: ClassVar[bool] = True

    @property
    def needs(self) -> Needs:
        """A causal target that scores trees, and a drafter of any kind."""
        return Needs(has_tree=True, has_rollback=True, width=self.budget or _MOST, models=("draft",), takes_heads=True)

    def start(self, context: Context) -> TrainedState:
        """Return the drafter of the joining rows."""
        drafter, count = Drafter.begin(context), len(context.texts)
        curve = claim_curve(context, self.name) or likely_curve(context.target)
        gain = self.min_gain or (pass_share(drafter.adapter, context.target) if drafter.takes_passes else 0.0)
        return TrainedState(drafter, [Trust()] * count, [[]] * count, curve, gain)

    def propose(self, view: View, state: TrainedState) -> Proposal:
        """Draft the best tree, and leave out what does not pay."""
        reach = state.drafter.reach(view, self.max_depth)
        state.hopes = [[]] * len(reach)
        if not max(reach):
            return nothing(view)
        trust = [one.value for one in state.trust]
        floor = [
            worth / max(trust)
            for worth in least_worths(state.curve, len(reach) + view.beside, len(reach), self.budget or _MOST)
        ]
        tree = draft_best(
            state.drafter, view, reach, len(floor), floor=floor, min_gain=state.min_gain, spread=self.spread
        )
        tree, state.hopes = paying(tree, trust, partial(seconds_for, state.curve), view.beside)
        return tree.proposal(self.name)

    def observe(self, outcome: Outcome, view: View, state: TrainedState) -> TrainedState:
        """Let the drafter read what the target's forward told, and compare what was hoped with what was kept."""
        state.drafter.observe(outcome, view)
        proposal = outcome.proposal
        if proposal is None:
            return state
        if proposal.origin != self.name:  # another drafter's step tells nothing of this one's hopes
            return replace(state, trust=[trust.after(0, 0.0) for trust in state.trust])
        rows = zip(state.trust, outcome.accepted, state.hopes, proposal.length, strict=True)
        return replace(state, trust=[one.after(kept, sum(hopes[:size])) for one, kept, hopes, size in rows])
