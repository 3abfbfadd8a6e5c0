"""Texts that have ended before their group has: laid aside beside a row, and taken up when the row ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from outpace.errors import ConfigError
from outpace.run.commit import append, record
from outpace.run.row import NO_MORE, Row, forked
from outpace.types import Decision, Ending, FinishReason, Outcome, Proposal, Scores, View

__all__ = ["end_over", "lay_aside"]

# What a text has cost is the row's own affair; these counts are the text's.
_OF_TEXT = ("num_emitted", "num_proposed", "num_accepted", "num_recovered", "num_bonus")


def lay_aside(
    rows: Sequence[Row],
    proposal: Proposal,
    decision: Decision,
    scores: Scores,
    view: View,
    wishes: tuple[Sequence[str], int] | None,
) -> None:
    """Lay the decided endings beside their rows, before any row continues another.

    Args:
        rows: as they were before the step.
        proposal, decision, scores, view: of the step.
        wishes: what is recorded of every row, and of how many likeliest tokens; None = nothing is.

    Raises:
        ConfigError: an ending is of another group, or does not end.
    """
    endings = decision.endings or []
    aside: list[Row | None] = []
    for row, ending in zip(rows, endings, strict=True):
        other = row if ending is None else rows[ending.row]
        if other is not row and (row.group is None or row.group != other.group):
            raise ConfigError("A method laid a text beside a row of another group.", "Fork within `view.groups`.")
        aside.append(None if ending is None else _ended(rows, ending, proposal))
    if wishes is not None:
        _record(wishes, aside, proposal, decision, scores, view)
    for row, text in zip(rows, aside, strict=True):
        row.aside = text


def _ended(rows: Sequence[Row], ending: Ending, proposal: Proposal) -> Row | None:
    """Return what an ending stands for: a text that lies there already, or a copy of a row's with its last tokens."""
    row = rows[ending.row]
    if not ending.tokens:
        return row.aside
    text = replace(row, **forked(row), aside=None, score=ending.score)
    proposed = (proposal.drafts or proposal.length)[ending.row]
    origin = proposal.origin if isinstance(proposal.origin, str) else proposal.origin[ending.row]
    append(text, ending.tokens, ending.path, False, proposed, origin)
    if text.finish is None:
        raise ConfigError("A method laid a text aside that has not ended.", "Ask `view.ends`, and mind `view.room`.")
    return text


def _record(
    wishes: tuple[Sequence[str], int],
    aside: Sequence[Row | None],
    proposal: Proposal,
    decision: Decision,
    scores: Scores,
    view: View,
) -> None:
    """Note of texts that have just ended what is noted of rows."""
    endings = decision.endings or []
    new = [(text, one) for text, one in zip(aside, endings, strict=True) if text is not None and one and one.tokens]
    if not new:
        return
    source = torch.tensor([ending.row for _, ending in new])
    seen = replace(decision, source=source, log_probs=None)
    tokens, path = [ending.tokens for _, ending in new], [ending.path for _, ending in new]
    outcome = Outcome(tokens, [0] * len(new), path, proposal, seen, scores)
    record(*wishes, [text for text, _ in new], outcome, view)


def end_over(rows: Sequence[Row], decision: Decision) -> None:
    """End the rows that are over with the texts beside them."""
    for row, is_over in zip(rows, decision.is_over or [], strict=False):
        if is_over:
            _end(row)


def _end(row: Row) -> None:
    text, usage = row.aside, row.usage
    row.aside = None
    if text is None:
        if row.finish is None:
            row.finish, row.tokens, row.text = FinishReason.ERROR, row.tokens[: row.num_prompt], None
            row.notes.append(NO_MORE)
        return
    for name, value in forked(text).items():
        if name != "usage":
            setattr(row, name, value)
    for name in _OF_TEXT:
        setattr(usage, name, getattr(text.usage, name))
    row.finish, row.score, row.stopped_inside = text.finish, text.score, text.stopped_inside
