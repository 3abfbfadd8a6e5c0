"""Take the whole text of a one-pass model in a single step.

Paper: none of its own; the decoding that models of one pass share (CTC, graphs, slots).
Guarantee: exact: the text that the model gives token by token, under any settings.
Cost: 1 answer of the model a text, from one pass of its network; more where a text is longer than `window`, or where a
    penalty or constraint looks at what was written.
Differences: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.whole.taken import TakenWhole

__all__ = ["OnePass"]


@dataclass(frozen=True)
class OnePass(TakenWhole):
    """One-pass decoding."""

    name: ClassVar[str] = "one-pass"
    summary: ClassVar[str] = "Takes the whole text of a model that gives it in one pass (CTC and its kin)."
