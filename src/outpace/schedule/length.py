"""Draft length that follows acceptance: grow by two after full acceptance, shrink by one otherwise."""

from __future__ import annotations

__all__ = ["next_length"]


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
