"""What the sampler asks of a constraint, and of where a text stands in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["Constraint", "ConstraintState"]


class Constraint(Protocol):
    """A set of allowed texts, shared by rows and never changed."""

    @property
    def vocab_size(self) -> int:
        """V, the model's."""
        ...

    def start(self) -> ConstraintState:
        """Return the state of an empty text."""
        ...


class ConstraintState(Protocol):
    """Where one text stands: a function of its tokens alone, whatever forks, steps back or masks came between."""

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens pushed; end tokens are never among them."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether the text may end here."""
        ...

    @property
    def is_final(self) -> bool:
        """Whether the text may end here and nothing may follow."""
        ...

    def allowed(self) -> Tensor:
        """Return [V] bool on the CPU: tokens that leave the text the beginning of an allowed one. Not to be changed."""
        ...

    def push(self, token: int) -> bool:
        """Append a token; return False, and stay where it was, if the constraint forbids it."""
        ...

    def back(self, count: int) -> None:
        """Take the last `count` tokens back."""
        ...

    def fork(self) -> ConstraintState:
        """Return an independent copy."""
        ...
