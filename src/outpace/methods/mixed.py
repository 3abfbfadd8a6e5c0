"""Rows of several methods, models and laws in one run: one forward serves them all.

Paper: none; how a server keeps one batch for requests that ask for different things.
Guarantee: every row keeps that of its own method; the weakest of them is that of the run.
Cost: one target forward per step for all rows; the drafters of each group of rows draft for that group.
Differences: none. Rows stand in groups that share a method, its models and, where the method looks at the law that
    tokens are drawn from, their settings. Each group proposes; proposals are laid side by side for one forward; where
    drafts are matched, the rows of all groups are decided together.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from outpace.accept import sample_and_match
from outpace.errors import ConfigError, NoPages
from outpace.methods.base import Method, nothing
from outpace.run import state as trees
from outpace.run.beside import lay_beside, merge, outcome_of, part_of, pick
from outpace.run.commit import void_laws
from outpace.sampling import Sampler, Sampling
from outpace.types import (
    Adapter,
    Context,
    Decision,
    Guarantee,
    Needs,
    Outcome,
    Proposal,
    Report,
    Scores,
    View,
    Wanted,
)

__all__ = ["Group", "Groups", "Mixed"]


@dataclass
class Group:
    """Rows that are drafted for together.

    Attributes:
        method: theirs.
        models: other models by role.
        memory: what outlives the run.
        settings: theirs; None = they may differ, since the method does not look.
        rows: their places among the rows of the run, ascending.
        state: the method's.
        draft_s: that its last proposal took.
    """

    method: Method
    models: Mapping[str, Adapter]
    memory: Any
    settings: Sampling | None
    rows: list[int]
    state: Any = None
    draft_s: float = 0.0
    sampler: Sampler | None = field(default=None, repr=False)
    _bound: Sampler | None = field(default=None, repr=False)

    def is_like(self, other: Group) -> bool:
        """Return whether the rows of both may be drafted for together."""
        is_same = self.models.keys() == other.models.keys() and all(
            model is other.models[role] for role, model in self.models.items()
        )
        is_same &= self.memory is other.memory
        return is_same and self.method == other.method and self.settings == other.settings

    def moved(self, rows: list[int], state: Any) -> Group:
        """Return the group with other rows."""
        return Group(self.method, self.models, self.memory, self.settings, rows, state)

    def look(self, view: View) -> View:
        """Return what the method may read of its rows."""
        if self._bound is not view.sampler:  # rows keep their samplers until some join or leave
            self._bound, self.sampler = view.sampler, view.sampler.rows(self.rows)
        assert self.sampler is not None
        return view.part(self.rows, view.cache.part(self.rows), self.sampler)

    def propose(self, view: View) -> Proposal:
        """Return the method's candidates for its rows."""
        began = time.perf_counter()
        proposal = _propose(self, self.look(view))
        self.draft_s = time.perf_counter() - began
        return proposal


class Groups:
    """The groups of a run's rows: every row is in one."""

    def __init__(self, groups: list[Group]) -> None:
        self.groups = groups

    def rows(self, index: Sequence[int]) -> Groups:
        """Return the groups of some rows, in that order; a group that all of its rows stay in keeps its state."""
        group_of = {row: group for group in self.groups for row in group.rows}
        places: dict[int, list[int]] = {id(group): [] for group in self.groups}
        for place, row in enumerate(index):
            places[id(group_of[row])].append(place)
        kept = []
        for group in self.groups:
            at = {row: own for own, row in enumerate(group.rows)}
            own = [at[index[place]] for place in places[id(group)]]
            if own:
                is_same = own == list(range(len(group.rows)))
                kept.append(group.moved(places[id(group)], group.state if is_same else trees.rows(group.state, own)))
        return Groups(kept)

    def join(self, others: Sequence[Groups]) -> Groups:
        """Return the groups of the rows of all, one behind the other; groups that are alike become one."""
        parts: list[list[Group]] = []
        first = 0
        for other in others:
            for group in other.groups:
                moved = group.moved([first + row for row in group.rows], group.state)
                like = next((known for known in parts if known[0].is_like(moved)), None)
                if like is None:
                    parts.append([moved])
                else:
                    like.append(moved)
            first += sum(len(group.rows) for group in other.groups)
        return Groups(
            [
                known[0].moved([row for part in known for row in part.rows], trees.join([part.state for part in known]))
                for known in parts
            ]
        )


@dataclass(frozen=True)
class Mixed(Method):
    """Rows that each bring a method (`Row.wanted`) and settings (`Row.settings`) of their own.

    Attributes:
        method: of rows that bring none.
    """

    method: Method

    name: ClassVar[str] = "mixed"
    family: ClassVar[str] = "serving"
    summary: ClassVar[str] = "Rows of several methods and settings side by side in one forward."
    is_mixed: ClassVar[bool] = True

    @property
    def needs(self) -> Needs:
        """What rows without a method of their own need; the run adds what the others do."""
        return self.method.needs

    @property
    def guarantee(self) -> Guarantee:
        """That of rows without a method of their own."""
        return self.method.guarantee

    def start(self, context: Context) -> Groups:
        """Sort the joining rows into groups, and begin their methods."""
        found: list[tuple[Group, Wanted | None]] = []
        for row in range(len(context.texts)):
            wanted = context.wanted[row] if context.wanted else None
            given = Wanted(self.method, context.models, memory=context.memory) if wanted is None else wanted
            method = given.method
            settings = context.sampler.rows([row]).settings if "law" in method.reads else None
            new = Group(method, given.models, given.memory, settings, [row])
            like = next((known for known, _ in found if known.is_like(new)), None)
            if like is None:
                found.append((new, wanted))
            else:
                like.rows.append(row)
        for group, wanted in found:
            group.state = group.method.start(_context_of(context, group, wanted))
        return Groups([group for group, _ in found])

    def propose(self, view: View, state: Groups) -> Proposal:
        """Let every group propose, and lay the proposals side by side."""
        groups = state.groups
        if len(groups) == 1:
            return _propose(groups[0], view)
        own = [group.propose(view) for group in groups]
        if any(_stands_alone(proposal) for proposal in own):
            names = ", ".join(group.method.name for group in groups if group.rows)
            raise ConfigError(f"A method proposes what cannot stand beside other rows ({names}).", "Run it by itself.")
        laid = lay_beside([_marked(proposal) for proposal in own], [group.rows for group in groups], view.lengths)
        laid.carry = own
        return laid

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Groups) -> Decision:
        """Decide all rows whose drafts are matched together, the others as their group's method does."""
        groups = state.groups
        if len(groups) == 1:
            return groups[0].method.accept(proposal, scores, view, groups[0].state)
        own = [part_of(proposal, given, group.rows) for given, group in zip(proposal.carry, groups, strict=True)]
        decided: list[Decision | None] = [None] * len(groups)
        for number, group in enumerate(groups):
            if type(group.method).accept is not Method.accept:
                part = scores.part(group.rows, 1 + own[number].tokens.shape[1])
                decided[number] = group.method.accept(own[number], part, group.look(view), group.state)
        matched = sorted(row for group, done in zip(groups, decided, strict=True) if done is None for row in group.rows)
        parts, places = (
            [one for one in decided if one is not None],
            [group.rows for group, done in zip(groups, decided, strict=True) if done is not None],
        )
        if matched:
            parts, places = [*parts, _match(proposal, scores, view, matched)], [*places, matched]
        merged = merge(parts, places)
        for number, group in enumerate(groups):
            if decided[number] is None:
                decided[number] = pick(merged, group.rows)
        return replace(merged, carry=_Parts(groups, list(zip(own, decided, strict=True))))

    def observe(self, outcome: Outcome, view: View, state: Groups) -> Groups:
        """Tell every group what became of its rows."""
        groups = state.groups
        if len(groups) == 1:
            groups[0].state = groups[0].method.observe(outcome, view, groups[0].state)
            return state
        for group, own in zip(groups, _outcomes(outcome, groups), strict=True):
            group.state = group.method.observe(own, group.look(view), group.state)
        return state

    def report(self, outcome: Outcome, view: View, state: Groups) -> list[Report]:
        """Return what the groups' methods tell of each row."""
        groups = state.groups
        if len(groups) == 1:
            return groups[0].method.report(outcome, view, groups[0].state)
        told: dict[int, Report] = {}
        for group, own in zip(groups, _outcomes(outcome, groups), strict=True):
            told.update(zip(group.rows, group.method.report(own, group.look(view), group.state), strict=True))
        return [told[row] for row in range(len(told))]


@dataclass(slots=True)
class _Parts:
    """What each group proposed, and what was decided of it."""

    groups: list[Group]
    own: list[tuple[Proposal, Decision | None]]


def _context_of(context: Context, group: Group, wanted: Wanted | None) -> Context:
    """Return what a group's method gets as its rows join."""
    rows = group.rows
    return replace(
        context,
        texts=[context.texts[i] for i in rows],
        sampler=context.sampler.rows(rows),
        models=group.models,
        memory=group.memory,
        cache=None if context.cache is None else context.cache.part(rows),
        tokenizers=context.tokenizers if wanted is None else wanted.tokenizers,
        sources=[context.sources[i] for i in rows] if context.sources else [],
        canvases=[context.canvases[i] for i in rows] if context.canvases else [],
        wanted=[],
    )


def _propose(group: Group, view: View) -> Proposal:
    """Return a group's candidates; none where the target's own layers draft, on pages, and there are too few."""
    try:
        return group.method.propose(view, group.state)
    except NoPages:
        return nothing(view)


def _stands_alone(proposal: Proposal) -> bool:
    inputs = None if proposal.is_soft is not None else proposal.inputs
    kinds = (proposal.visible, proposal.ask, inputs)
    return proposal.is_whole or any(kind is not None for kind in kinds)


def _marked(proposal: Proposal) -> Proposal:
    """Mark drafts whose law is none, which does not go with them, as no tokens: the run drops them and says so."""
    if proposal.law is None or not proposal.tokens.shape[1]:
        return proposal
    return replace(proposal, tokens=proposal.tokens.masked_fill(void_laws(proposal.law), -1))


def _match(proposal: Proposal, scores: Scores, view: View, rows: list[int]) -> Decision:
    if len(rows) == len(view.texts):
        return sample_and_match(proposal, scores, view)
    parent = None if proposal.parent is None else proposal.parent[rows]
    own = Proposal(proposal.tokens[rows], [proposal.length[i] for i in rows], parent)
    part = scores.part(rows, scores.logits.shape[1])
    return sample_and_match(own, part, view.part(rows, view.cache.part(rows)))


def _outcomes(outcome: Outcome, groups: Sequence[Group]) -> list[Outcome]:
    """Return what a step, or a piece of a prompt, came to for each group."""
    if outcome.decision is None:
        return [outcome_of(outcome, group.rows, None, None) for group in groups]
    carry, found = outcome.decision.carry, []
    if not isinstance(carry, _Parts) or carry.groups is not groups:  # another method made the step, for all rows
        return [outcome_of(outcome, group.rows, *_taken(outcome, group.rows)) for group in groups]
    for group, (proposal, decision) in zip(groups, carry.own, strict=True):
        told = outcome_of(outcome, group.rows, proposal, decision, has_scores="scores" in group.method.reads)
        told.seconds = {**outcome.seconds, "draft": group.draft_s}
        found.append(told)
    return found


def _taken(outcome: Outcome, rows: Sequence[int]) -> tuple[Proposal, Decision]:
    """Return what was proposed for some rows, and decided of them, where nobody told them apart."""
    proposal, decision = outcome.proposal, outcome.decision
    assert proposal is not None and decision is not None  # a step
    index = torch.tensor(list(rows), device=proposal.tokens.device)
    parent, ask = (None if values is None else values[index] for values in (proposal.parent, proposal.ask))
    length, origin = [proposal.length[i] for i in rows], proposal.origin
    names = origin if isinstance(origin, str) else [origin[i] for i in rows]
    return Proposal(proposal.tokens[index], length, parent, ask=ask, origin=names), pick(decision, rows)
