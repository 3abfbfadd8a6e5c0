"""Draft lengths that follow acceptance: grow by two after full acceptance, shrink by one otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from outpace.types import Outcome

__all__ = ["DraftLengths", "next_length"]


def next_length(length: int, proposed: int, accepted: int, most: int) -> int:
    """Return the next draft length, from 1 to `most` (the rule of assisted generation in transformers).

    Args:
        length: current draft length.
        proposed: drafts of the last step; 0 leaves the length as it is.
        accepted: how many of them stayed.
        most: upper bound.
    """
    if proposed == 0:
        return min(length, most)
    return min(most, length + 2) if accepted >= proposed else max(1, length - 1)


@dataclass(frozen=True, slots=True)
class DraftLengths:
    """How many tokens each row drafts in its next step.

    Attributes:
        now: per row.
        most: upper bound, which a row that does not adapt always takes.
        is_adaptive: the lengths follow acceptance, from half the bound on.
    """

    now: list[int]
    most: int
    is_adaptive: bool = True

    @staticmethod
    def begin(rows: int, most: int, is_adaptive: bool) -> DraftLengths:
        """Return the lengths of joining rows."""
        return DraftLengths([max(1, most // 2) if is_adaptive else most] * rows, most, is_adaptive)

    def after(self, proposed: Sequence[int], accepted: Sequence[int]) -> DraftLengths:
        """Return the lengths after a step, from the drafts of each row and how many of them stayed."""
        if not self.is_adaptive:
            return self
        steps = zip(self.now, proposed, accepted, strict=True)
        return replace(self, now=[next_length(length, some, kept, self.most) for length, some, kept in steps])

    def after_step(self, outcome: Outcome, origin: str, width: int = 1) -> DraftLengths:
        """Return the lengths after a step; one that another drafter proposed tells nothing.

        Args:
            outcome: the step.
            origin: the name under which the method proposes.
            width: nodes per level of a tree, of which one can be accepted.
        """
        proposal = outcome.proposal
        if proposal is None or proposal.origin != origin:
            return self
        return self.after([nodes // width for nodes in proposal.length], outcome.accepted)
