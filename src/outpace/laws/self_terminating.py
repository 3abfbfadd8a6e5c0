"""An end that comes: the probability of ending stays above a bound that rises with every token.

Paper: Choi, Choi, Cho, Lee (2022), arXiv 2210.00660, A Non-monotonic Self-terminating Language Model.
Guarantee: the law is exact for what it says, and drafts obey it: after t tokens a text ends with a probability of at
    least 1 - (1 - epsilon) ** t, under greedy decoding, any cut and beams. `epsilon=0` leaves every text as it is.
Cost: one softmax per token and row.
Differences: the paper trains a model with this output layer; here it is laid on the model as it is, whose own
    probability of ending takes the part of the layer's gate: the end may still come sooner where the model wants it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from outpace.laws.base import Control, Site
from outpace.papers import Paper
from outpace.setting import setting

__all__ = ["Ending", "SelfTerminating"]

PAPERS = (
    Paper(
        "A Non-monotonic Self-terminating Language Model",
        "Choi, Choi, Cho, Lee",
        2022,
        "2210.00660",
        35,
        "Training with the layer.",
        command='outpace generate "Once upon a time" --law self-terminating:epsilon=0.01',
    ),
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How many tokens a text has, and which ids end it; a guide's first state, too."""

    epsilon: float
    ends: tuple[int, ...] = ()
    written: int = 0

    def start(self, prompt: Sequence[int], ends: Sequence[int], limit: int) -> Ending:
        """Return the state of a text before its first written token."""
        del prompt, limit
        return replace(self, ends=tuple(ends))

    def after(self, token: int) -> Ending:
        """Return the state of the text with one more token."""
        del token
        return replace(self, written=self.written + 1)

    @property
    def bound(self) -> float:
        """The least probability of ending here."""
        return -math.expm1(self.written * math.log1p(-self.epsilon)) if self.epsilon < 1 else float(self.written > 0)

    def apply(self, logits: Tensor) -> None:
        """Give the end its share of the law, and what is left to the law as it was."""
        if not self.ends or not self.bound:
            return
        law, ends = logits.double().log_softmax(-1), list(self.ends)
        shares = law[ends].softmax(-1) if bool(law[ends].isfinite().any()) else law[ends].exp() + 1 / len(ends)
        lifted = (self.bound * shares + (1 - self.bound) * law[ends].exp()).log()
        law += math.log1p(-self.bound) if self.bound < 1 else -math.inf
        law[ends] = lifted
        logits.copy_(law)


@dataclass(frozen=True)
class SelfTerminating(Control):
    """A law under which texts end.

    Attributes:
        epsilon: how fast the bound rises; 0 = not at all, 1 = texts end behind their first token.

    Raises:
        ConfigError: a number out of range.
    """

    epsilon: float = setting(0.01, least=0, most=1)

    name: ClassVar[str] = "self-terminating"
    summary: ClassVar[str] = "the probability of ending stays above a bound that rises with every token"

    def guide(self, site: Site) -> Ending | None:
        """Return the bound; None = there is none."""
        del site
        return Ending(self.epsilon) if self.epsilon else None
