"""Numbers over time: pure functions from what happened to what comes next."""

from outpace.schedule.length import next_length

__all__ = ["next_length"]
