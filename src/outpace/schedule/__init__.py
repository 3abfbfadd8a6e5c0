"""Numbers over time: pure functions from what happened to what comes next."""

from outpace.schedule.length import DraftLengths, next_length

__all__ = ["DraftLengths", "next_length"]
