"""Rows of several methods side by side: proposals laid into one, what came of it told apart, decisions put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from outpace.run.tree import ancestors
from outpace.types import Decision, Ending, Outcome, Proposal

__all__ = ["lay_beside", "merge", "outcome_of", "padded", "part_of", "pick"]

Index = Sequence[int]


def lay_beside(proposals: Sequence[Proposal], places: Sequence[Index], lengths: Index = ()) -> Proposal:
    """Lay chains and trees of several groups of rows into one proposal; chains become trees where a tree stands beside.

    Laws stay with the groups' own proposals: what is laid beside each other is what is forwarded.

    Args:
        proposals: one per group, none with sights of its own, and inputs only where `is_soft` says which.
        places: per group, its rows; together all rows, each once.
        lengths: final tokens of each row; read where a proposal has positions of its own.
    """
    count, width = sum(map(len, places)), max(proposal.tokens.shape[1] for proposal in proposals)
    device = proposals[0].tokens.device
    tokens = torch.zeros(count, width, dtype=torch.int64, device=device)
    parent = torch.full_like(tokens, -1) if any(proposal.parent is not None for proposal in proposals) else None
    position = torch.full_like(tokens, -1) if any(proposal.position is not None for proposal in proposals) else None
    length, drafts, origin = [0] * count, [0] * count, [""] * count
    soft = next((proposal.inputs for proposal in proposals if proposal.inputs is not None), None)
    inputs = None if soft is None else soft.new_zeros(count, width, soft.shape[-1])
    is_soft = None if soft is None else torch.zeros(count, width, dtype=torch.bool, device=device)
    for proposal, index in zip(proposals, places, strict=True):
        own, rows = proposal.tokens.shape[1], torch.tensor(list(index), device=device)
        tokens[rows, :own] = proposal.tokens
        if parent is not None:
            chain = torch.arange(-1, own - 1, device=device)
            parent[rows, :own] = chain if proposal.parent is None else proposal.parent
        if position is not None:
            position[rows, :own] = _positions(proposal, torch.tensor([lengths[row] for row in index], device=device))
        names = [proposal.origin] * len(index) if isinstance(proposal.origin, str) else proposal.origin
        if inputs is not None and is_soft is not None and proposal.inputs is not None and proposal.is_soft is not None:
            inputs[rows, :own], is_soft[rows, :own] = proposal.inputs, proposal.is_soft
        kept = proposal.drafts or proposal.length
        for row, nodes, some, name in zip(index, proposal.length, kept, names, strict=True):
            length[row], drafts[row], origin[row] = nodes, some, name
    notes = dict.fromkeys(proposal.note for proposal in proposals if proposal.note)
    told = Proposal(
        tokens, length, parent, position, origin=origin, note="; ".join(notes), inputs=inputs, is_soft=is_soft
    )
    return told if drafts == length else replace(told, drafts=drafts)


def _positions(proposal: Proposal, lengths: Tensor) -> Tensor:
    """Return [B, W] the logical positions of nodes behind texts of `lengths` [B] tokens."""
    if proposal.position is not None:
        return proposal.position
    if proposal.parent is not None:
        return lengths.unsqueeze(1) + ancestors(proposal.parent).sum(-1) - 1
    return lengths.unsqueeze(1) + torch.arange(proposal.tokens.shape[1], device=lengths.device)


def padded(proposal: Proposal, count: int) -> Proposal:
    """Return a proposal with `count` rows more that propose nothing, as `lay_out` reads it."""

    def grow(values: Tensor | None, value: float = 0) -> Tensor | None:
        if values is None:
            return None
        return torch.cat([values, values.new_full((count, *values.shape[1:]), value)])

    tokens, visible = grow(proposal.tokens), grow(proposal.visible)
    assert tokens is not None
    return replace(
        proposal,
        tokens=tokens,
        length=[*proposal.length, *[0] * count],
        parent=grow(proposal.parent, -1),
        position=grow(proposal.position, -1),
        visible=visible,
        ask=grow(proposal.ask, -1),
        inputs=grow(proposal.inputs),
        is_soft=grow(proposal.is_soft),
        drafts=None if proposal.drafts is None else [*proposal.drafts, *[0] * count],
        law=None,
    )


def part_of(laid: Proposal, own: Proposal, index: Index) -> Proposal:
    """Return a group's own proposal as it was forwarded: cut where the one that it was laid into was.

    Args:
        laid: the proposal of all rows.
        own: the group's, before.
        index: the group's rows.
    """
    width = min(own.tokens.shape[1], laid.tokens.shape[1])
    rows = torch.tensor(list(index), device=laid.tokens.device)
    return replace(
        own,
        tokens=laid.tokens[rows, :width],
        length=[laid.length[i] for i in index],
        drafts=None if own.drafts is None or laid.drafts is None else [laid.drafts[i] for i in index],
        parent=None if own.parent is None else own.parent[:, :width],
        position=None if own.position is None else own.position[:, :width],
        law=None if own.law is None else replace(own.law, probs=own.law.probs[:, :width]),
    )


def pick(decision: Decision, index: Index) -> Decision:
    """Return what was decided of some rows; nobody among them continues another."""
    rows = torch.tensor(list(index), device=decision.tokens.device)

    def take(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows]

    flags, chances = take(decision.is_recovered), take(decision.log_probs)
    return Decision(
        decision.tokens[rows], decision.num[rows], take(decision.path), is_recovered=flags, log_probs=chances
    )


def merge(decisions: Sequence[Decision], places: Sequence[Index]) -> Decision:
    """Put the decisions of several groups of rows together; rows continue others of their group only.

    Args:
        decisions: one per group, none that lists what its cache keeps.
        places: per group, its rows; together all rows, each once.
    """
    if len(decisions) == 1 and list(places[0]) == list(range(len(places[0]))):
        return decisions[0]
    first, count = decisions[0], sum(map(len, places))
    width, device = max(decision.tokens.shape[1] for decision in decisions), first.tokens.device
    tokens = torch.full((count, width), -1, dtype=torch.int64, device=device)
    num, is_recovered = torch.zeros_like(tokens[:, 0]), torch.zeros(count, dtype=torch.bool, device=device)
    has_paths = any(decision.path is not None for decision in decisions)
    path = torch.full_like(tokens, -1) if has_paths else None
    source = torch.arange(count, device=device) if any(one.source is not None for one in decisions) else None
    endings = list[Ending | None]([None] * count) if any(one.endings is not None for one in decisions) else None
    is_over = [False] * count if any(one.is_over is not None for one in decisions) else None
    for decision, index in zip(decisions, places, strict=True):
        for row, ending in zip(index, decision.endings or [], strict=False):
            if endings is not None and ending is not None:
                endings[row] = replace(ending, row=index[ending.row])
        for row, one in zip(index, decision.is_over or [], strict=False):
            if is_over is not None:
                is_over[row] = one
        rows, own = torch.tensor(list(index), device=device), decision.tokens.shape[1]
        tokens[rows, :own], num[rows] = decision.tokens, decision.num
        if decision.is_recovered is not None:
            is_recovered[rows] = decision.is_recovered
        if path is not None:
            path[rows, :own] = _paths(decision)
        if source is not None and decision.source is not None:
            source[rows] = rows[decision.source]
    return Decision(tokens, num, path, source=source, is_recovered=is_recovered, endings=endings, is_over=is_over)


def _paths(decision: Decision) -> Tensor:
    """Return [B, N] the node of every token; behind the last one that counts there may be anything."""
    if decision.path is not None:
        return decision.path
    order = torch.arange(decision.tokens.shape[1], device=decision.tokens.device)
    return torch.where(order < decision.num.unsqueeze(1) - 1, order, -1)


def outcome_of(
    outcome: Outcome, index: Index, proposal: Proposal | None, decision: Decision | None, *, has_scores: bool = True
) -> Outcome:
    """Return what a step came to for some rows, with a group's own proposal and decision; its scores where wanted."""
    asked = 0 if outcome.scores is None else outcome.scores.logits.shape[1]
    if proposal is not None:
        asked = 1 + proposal.tokens.shape[1]
    return Outcome(
        [outcome.emitted[i] for i in index],
        [outcome.accepted[i] for i in index],
        [outcome.path[i] for i in index] if outcome.path else [],
        proposal,
        decision,
        outcome.scores.part(index, asked) if has_scores and outcome.scores is not None else None,
        [outcome.chunk[i] for i in index] if outcome.chunk else [],
        outcome.seconds,
        beside=_beside(outcome, index),
        read=outcome.read,
    )


def _beside(outcome: Outcome, index: Index) -> tuple[int, int]:
    rows, nodes = outcome.beside
    if outcome.proposal is not None:
        nodes += sum(outcome.proposal.length) - sum(outcome.proposal.length[i] for i in index)
    return rows + len(outcome.emitted) - len(index), nodes
