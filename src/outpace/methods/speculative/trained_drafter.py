"""The text and the trained drafter known for the target draft one tree, as large as pays, whatever the drafter's kind.

Paper: none of its own; the tree is OPT-Tree's (Wang et al. 2024, arXiv 2406.17276), its size Sequoia's (Chen et al.
    2024, arXiv 2402.12374), what the text offers SuffixDecoding's (Oliaro et al. 2024, arXiv 2411.04975), the drafter
    whatever was trained: see the methods named as the kinds.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token; per step that asks it a pass of the drafter, and one more per level
    for kinds that draft token by token; the drafter's weights; an index of about 500 bytes per token of the text.
Differences: SuffixDecoding takes a draft model's tokens in place of the text's where its score is low; here the drafter
    is asked only where what the text leaves open is worth a pass, and the tree is the mixture of both. Nodes are
    weighed in every step: their chances, by how far such hopes for the row came true so far, against the cost of a
    forward (`outpace tune`, or what models of its path have, corrected by the run's own); below that it is plain
    decoding. A draft model may stand in for the trained drafter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from outpace.draft.blend import Branches, TextOffers, blend, extra, listed
from outpace.draft.grow import draft_best
from outpace.draft.paying import Trust, least_worths, paying, seconds_for
from outpace.draft.reading import Drafter
from outpace.draft.source import originals
from outpace.draft.suffix_history import SuffixHistory
from outpace.methods.base import Method, nothing, trees
from outpace.schedule.cost import SeenCurve
from outpace.schedule.tune import claim_curve, likely_curve, pass_share
from outpace.setting import setting
from outpace.types import Context, Needs, Outcome, Proposal, View

__all__ = ["TrainedDrafter", "TrainedState"]

_MOST = 32  # nodes, where the cost curve decides
_LONGEST = 32  # end of the text that is matched
_LOOK = 2.0  # passes of the drafter that asking it takes, with what stands around them

_SMOOTH = 0.2  # of each look, in what looks take


@dataclass
class TrainedState:
    """The drafter, and per row what the text offers, what the drafter's hopes were worth, and the nodes proposed last.

    Attributes:
        drafter: who drafts.
        texts, trust, nodes: per row.
        cost: of target forwards.
        look: what asking the drafter takes, in plain forwards.
        min_gain: expected drafts that a level must add, to pay for the pass that it takes.
        is_packed: padding costs nothing.
        has_asked: the drafter was asked in the last step.
    """

    drafter: Drafter
    texts: list[TextOffers]
    trust: list[Trust]
    nodes: list[Branches]
    cost: SeenCurve
    look: float
    min_gain: float
    is_packed: bool
    has_asked: bool = False


@dataclass(frozen=True)
class TrainedDrafter(Method):
    """A trained drafter with the tree that pays. `Request.memory` may be a `CostCurve`.

    Attributes:
        draft: the drafter: a directory, or the name of one that ships; "auto" = the one known for the target.
        has_text: draft from the text itself too, and ask the drafter only where that offers little.
        is_timed: correct the cost curve by the forwards of the run; False = by the stored one alone.
        budget: most nodes of the tree; 0 = as many as may pay, 32 at most.
        max_depth: most levels that the drafter drafts.
        min_gain: its tree stops growing after a level that adds no more than this to the expected drafts kept; 0 = as
            much as the drafter's pass costs, if it takes one per level.
        spread: scale of the drafter's error (`branch_scores`).
    """

    draft: str = "auto"
    has_text: bool = True
    is_timed: bool = True
    budget: int = setting(0, least=0, note="0 = by the cost curve")
    max_depth: int = setting(8, least=1)
    min_gain: float = setting(0.0, least=0, note="0 = by the drafter's size")
    spread: float = setting(0.8, above=0)

    name: ClassVar[str] = "trained-drafter"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "The text and the trained drafter known for the target draft a tree as large as pays."
    is_sized: ClassVar[bool] = True
    covers: ClassVar[frozenset[str]] = frozenset({"suffix", "token-recycling", "prompt-lookup"})

    @property
    def needs(self) -> Needs:
        """A causal target that scores trees, and a drafter of any kind."""
        return Needs(has_tree=True, has_rollback=True, width=self.budget or _MOST, models=("draft",), takes_heads=True)

    def start(self, context: Context) -> TrainedState:
        """Return the drafter of the joining rows, and their texts."""
        drafter = Drafter.begin(context)
        curve = claim_curve(context, self.name) or likely_curve(context.target)
        share = pass_share(drafter.adapter, context.target)
        gain = self.min_gain or (share if drafter.takes_passes else 0.0)
        rows = zip(context.texts, originals(context), strict=True)
        texts = [TextOffers(SuffixHistory(_LONGEST, len(text), None, source)) for text, source in rows]
        if not self.has_text:
            texts = [TextOffers(None) for _ in context.texts]
        none = [blend([], [], [], [], [], 1.0) for _ in texts]
        return TrainedState(
            drafter,
            texts,
            [Trust() for _ in none],
            none,
            SeenCurve(curve),
            _LOOK * share,
            gain,
            context.target.path == "compiled",
        )

    def propose(self, view: View, state: TrainedState) -> Proposal:
        """Let the text offer, ask the drafter where that leaves enough open, and leave out what does not pay."""
        seconds, rows = partial(seconds_for, state.cost.curve), len(view.texts) + view.beside
        for text, room, own in zip(view.texts, view.room, state.texts, strict=True):
            own.offer(text, min(self.budget or _MOST, room - 1))
        state.nodes = [blend(own.draft.tokens, own.chances, [], [], [], 1.0) for own in state.texts]
        price = [state.look * (1 + (extra(own.chances, seconds, rows) if own.chances else 0)) for own in state.texts]
        reach = state.drafter.reach(view, self.max_depth)
        reach = [n if n and own.asks(cost) else 0 for n, own, cost in zip(reach, state.texts, price, strict=True)]
        state.has_asked = max(reach, default=0) > 0
        if state.has_asked:
            self._ask(view, state, reach)
        elif not any(own.chances for own in state.texts):
            return nothing(view)
        kept = paying([nodes.chances for nodes in state.nodes], seconds, view.beside)
        state.nodes = [nodes.keep(order) for nodes, order in zip(state.nodes, kept, strict=True)]
        return trees(view, [(nodes.tokens, nodes.parents) for nodes in state.nodes], self.name)

    def _ask(self, view: View, state: TrainedState, reach: Sequence[int]) -> None:
        """Add the drafter's tree to the rows that it may draft for."""
        rows = len(reach) + view.beside
        least = least_worths(state.cost.curve, rows, len(reach), self.budget or _MOST)
        most = max(one.value * own.left for one, own in zip(state.trust, state.texts, strict=True))
        floor = [worth / most for worth in least]
        drafter, gain = state.drafter, state.min_gain
        tree = draft_best(drafter, view, reach, len(floor), floor=floor, min_gain=gain, spread=self.spread)
        for row, (own, tokens, parents, probs) in enumerate(zip(state.texts, *listed(tree), strict=True)):
            if reach[row]:
                trust = state.trust[row].value
                own.asked(extra([trust * prob for prob in probs], partial(seconds_for, state.cost.curve), rows))
                state.nodes[row] = blend(own.draft.tokens, own.chances, tokens, parents, probs, trust)

    def observe(self, outcome: Outcome, view: View, state: TrainedState) -> TrainedState:
        """Let the drafter read what the target's forward told, and compare what was hoped with what was kept."""
        state.drafter.observe(outcome, view)
        proposal = outcome.proposal
        if proposal is None:
            return state
        if self.is_timed and not (view.beside or outcome.read):
            self._time(outcome, proposal, state)
        if proposal.origin != self.name:  # another drafter's step tells nothing of this one's hopes
            return replace(state, trust=[trust.after(0, 0.0) for trust in state.trust])
        rows = zip(state.trust, state.nodes, state.texts, outcome.path, outcome.emitted, strict=True)
        trust = []
        for one, nodes, own, path, written in rows:
            own.followed.learn(own.draft, written)
            trust.append(one.after(sum(nodes.hopes[node] > 0 for node in path if node >= 0), sum(nodes.hopes)))
        return replace(state, trust=trust)

    def _time(self, outcome: Outcome, proposal: Proposal, state: TrainedState) -> None:
        """Take in what the step took."""
        rows, seconds = len(proposal.length), outcome.seconds
        tokens = rows + sum(proposal.length) if state.is_packed else rows * (1 + proposal.tokens.shape[1])
        state.cost.add(tokens, seconds["score"] + seconds["accept"])
        if state.has_asked:
            look = seconds["draft"] / state.cost.plain(rows)
            state.look += _SMOOTH * (min(look, 2 * state.look) - state.look)
        state.has_asked = False
