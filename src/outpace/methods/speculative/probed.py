"""What methods have in common whose drafts come from soft tokens in the target's own forward."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from outpace.draft.grow import draft_best
from outpace.heads.model import HeadModel
from outpace.heads.probe import ProbeDrafter, ProbeNet, drafts_only
from outpace.methods.speculative.drafted import Paced
from outpace.methods.speculative.headed import Headed
from outpace.setting import setting
from outpace.types import Context, Decision, Needs, Outcome, Proposal, Scores, View

__all__ = ["Probed"]

_STEADY = 0.7  # chance that a node of a chain is accepted, and that a level is right where those above it are


@dataclass(frozen=True)
class Probed(Headed):
    """Drafts from groups of soft tokens that the step before forwarded beside its drafts; subclasses name their kind.

    Attributes:
        most: soft tokens forwarded per step, all groups together; they go where the walk is likely to end, the nearest
            places ahead first.
        is_linear: only the last node of a chain bears a group; after a rejection, the next step drafts nothing.
    """

    is_adaptive: bool = False
    most: int = setting(24, least=1)
    is_linear: bool = False

    @property
    def needs(self) -> Needs:
        """As of `Headed`, and a target that scores trees, since groups hang beside the drafts."""
        return replace(super().needs, has_tree=True, width=self.width + self.most)

    def begin(self, context: Context) -> ProbeDrafter:
        """Return the drafter of the joining rows.

        Raises:
            ConfigError: the model is of another kind.
        """
        model = context.models["draft"]
        self.check_kind(model)
        assert isinstance(model, HeadModel) and isinstance(model.net, ProbeNet)  # the kind says so
        return model.net.new_probe(model, context)

    def propose(self, view: View, state: Paced) -> Proposal:
        """Draft from what the last step's groups said, and hang new ones behind the drafts."""
        drafts = super().propose(view, state)
        scores = drafts.carry if isinstance(drafts.carry, Tensor) else None
        drafts.carry = None
        drafter: ProbeDrafter = state.drafter
        return drafter.hang(drafts, self.plans(drafts, scores, view, drafter), view.lengths)

    def grow(self, view: View, drafter: Any, reach: list[int]) -> Proposal:
        """Draft as `Headed` does; the best tree tells how likely the walk reaches each node."""
        if not self.budget:
            return super().grow(view, drafter, reach)
        tree = draft_best(drafter, view, reach, self.budget, min_gain=self.min_gain, spread=self.spread)
        drafts = tree.proposal(self.name)
        drafts.carry = tree.score
        return drafts

    def plans(
        self, drafts: Proposal, scores: Tensor | None, view: View, drafter: ProbeDrafter
    ) -> list[list[tuple[int, int]]]:
        """Return per row which nodes bear groups, and of how many levels."""
        if max(view.room) <= 2:  # no step that could draft is left
            return [[] for _ in view.room]
        parents = None if drafts.parent is None else drafts.parent.tolist()
        reached = None if scores is None else scores.exp().tolist()
        found = []
        for row, (count, room) in enumerate(zip(drafts.length, view.room, strict=True)):
            parent = list(range(-1, count - 1)) if parents is None else parents[row][:count]
            chance = _chances(parent) if reached is None else reached[row][:count]
            if self.is_linear and parents is None:
                chance = [1.0] * count  # so that the walk ends at the last node
            found.append(_plan(parent, chance, room, self.most, drafter.probe))
        return found

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Paced) -> Decision:
        """Apply the rule to the drafts alone."""
        return super().accept(*drafts_only(proposal, scores), view, state)

    def observe(self, outcome: Outcome, view: View, state: Paced) -> Paced:
        """Read the groups behind the accepted nodes; the length follows the drafts alone."""
        state.drafter.observe(outcome, view)
        if outcome.proposal is None:
            return state
        counts = outcome.proposal.drafts or outcome.proposal.length
        told = replace(outcome, proposal=replace(outcome.proposal, length=counts))
        return replace(state, lengths=state.lengths.after_step(told, self.name))


def _chances(parent: list[int]) -> list[float]:
    """Return how likely the walk reaches each node, where nobody says."""
    found: list[float] = []
    for above in parent:
        found.append(_STEADY * (found[above] if above >= 0 else 1.0))
    return found


def _plan(parent: list[int], reached: list[float], room: int, most: int, net: ProbeNet) -> list[tuple[int, int]]:
    """Return the best groups of at most `most` soft tokens: a level is worth the chance that it will be drafted from.

    Source: Chen et al. (2024), arXiv 2405.18628, section 4 (dynamic sparse trees), with chances in place of counts.
    """
    # 1 The chance that the walk ends at each node, the root first; and how much room is left behind it.
    ends, depth = [1.0, *reached], [0]
    for node, above in enumerate(parent):
        ends[above + 1] -= reached[node]
        depth.append(depth[above + 1] + 1)
    # 2 Take levels in the order of their worth; one is worth less than the one above it.
    queue = [(-end, node, 0) for node, end in enumerate(ends) if end > 1e-6 and room - depth[node] > 2]
    heapq.heapify(queue)
    levels: dict[int, int] = {}
    while queue and most >= net.ensemble:
        worth, node, level = heapq.heappop(queue)
        price = net.ensemble + (0 if level else net.num_prompts)
        if price > most:
            continue
        most -= price
        levels[node - 1] = level + 1
        if level + 1 < min(net.config.depth, room - depth[node] - 2):
            heapq.heappush(queue, (worth * _STEADY, node, level + 1))
    return sorted(levels.items())
