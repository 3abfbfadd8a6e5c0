"""Plain decoding: one forward per token, the reference that every exact method must equal.

Paper: none; ancestral decoding of an autoregressive model.
Guarantee: exact, by definition.
Cost: 1 target forward per emitted token, no extra memory.
Differences: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Method

__all__ = ["Autoregressive"]


@dataclass(frozen=True)
class Autoregressive(Method):
    """Plain decoding, one token per step."""

    name: ClassVar[str] = "autoregressive"
    family: ClassVar[str] = "autoregressive"
    reads: ClassVar[frozenset[str]] = frozenset()
    summary: ClassVar[str] = "One token per forward: the reference for every exact method."
