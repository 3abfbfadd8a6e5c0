"""What an engine takes upon itself."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an engine takes upon itself.

    Attributes:
        max_rows: samples written side by side.
        max_queue: asks that wait beside those being written; more are refused.
        step_tokens: most prompt tokens read in one step, beside what is being written; 0 = as many as make a step that
            writes for others some 2.5 times as long, by what steps were measured to cost here.
        cache_tokens: tokens whose entries the cache holds; 0 = as many as all samples may have, within half of the free
            memory.
        age: after this many samples were begun before an ask that waits, it counts as one priority more urgent.
    """

    max_rows: int = 32
    max_queue: int = 256
    step_tokens: int = 0
    cache_tokens: int = 0
    age: int = 64
