"""What a method that writes in any order asks of a constraint.

A canvas is the rest of a text as a sequence of token ids, None where a place is still masked. The text ends at its
first end token, or where the canvas does; `room` more masked places may follow unseen. What stands behind the end is
dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from outpace.errors import ConfigError

__all__ = ["CanvasConstraint", "CanvasState", "Places"]

Places = Sequence[int | None]  # of a canvas: a token each, or None


class CanvasConstraint(Protocol):
    """A set of allowed texts, shared by rows and never changed."""

    @property
    def vocab_size(self) -> int:
        """V, the model's."""
        ...

    def start(self) -> CanvasState:
        """Return the state of an empty text."""
        ...

    def misfit(self, canvas: Places) -> ConfigError:
        """Return the error of a canvas that cannot be completed, said before anything is written on it."""
        ...


class CanvasState(Protocol):
    """Where one text stands: a function of the tokens pushed, which lie left of every canvas that is asked about.

    The promise: if `can_complete(canvas)`, then `redraw` finds a token for every masked place, and `can_complete` holds
    again once it is written. Whatever the order, a canvas that could be completed at first ends as an allowed text.
    """

    def push(self, token: int) -> None:
        """Append a token left of the canvas; past an end token nothing counts."""
        ...

    def fork(self) -> CanvasState:
        """Return an independent copy."""
        ...

    def can_complete(self, canvas: Places, room: int = 0) -> bool:
        """Return whether the masked places can be filled so that the text is allowed."""
        ...

    def fits(self, canvas: Places, place: int, token: int, room: int = 0) -> bool:
        """Return whether the canvas can still be completed once `token` stands at a masked place."""
        ...

    def allowed(self, canvas: Places, place: int, room: int = 0) -> Tensor:
        """Return [V] bool on the CPU: tokens that may be written at a masked place, as a part of the text or its end.

        A token that could stand there only because the text ends before is left out, unless an end token already
        stands before the place: then all are allowed. Nothing is allowed if the canvas cannot be completed.
        """
        ...

    def accepts(self, canvas: Places, place: int, token: int, room: int = 0) -> bool:
        """Return whether one token may be written at a masked place, as a part of the text or its end.

        Like `allowed`, but of one token. What else the same step writes must already stand in the canvas.
        """
        ...

    def redraw(self, canvas: Places, place: int, draw: Callable[[Tensor], int], room: int = 0) -> int:
        """Return a token that may be written at a masked place.

        Args:
            canvas: the row's; what else this step writes must already stand in it.
            place: index of a masked place.
            draw: given [V] bool, returns one of these tokens, or -1 for none of them; with one noise for all calls,
                what is returned is a sample from the law of the tokens that fit.
            room: masked places behind the canvas.

        Raises:
            ConfigError: the canvas cannot be completed.
        """
        ...

    def completion(self, canvas: Places, room: int = 0) -> list[int] | None:
        """Return some canvas without masks that completes this one, or None."""
        ...
