"""What regular and context-free constraints on a canvas have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from outpace.constrain.canvas.protocol import CanvasState, Places
from outpace.errors import ConfigError

__all__ = ["CanvasTextState", "CanvasTexts", "draw_allowed"]


@dataclass(frozen=True, eq=False, kw_only=True)
class CanvasTexts:
    """A set of allowed texts.

    Attributes:
        kind: what it was made of, for errors: "regular expression", "JSON schema" or "grammar".
        ends: ids that end a text; if there are none, a text fills its canvas.
    """

    kind: str
    ends: tuple[int, ...]

    def misfit(self, canvas: Places) -> ConfigError:
        """Return the error of a canvas that cannot be completed, said before anything is written on it."""
        if any(token is not None for token in canvas):
            return ConfigError(
                f"Between the given pieces there is no way to meet the {self.kind}.",
                "Give pieces that can be parts of an allowed text, with enough places between them.",
            )
        extent = "at most" if self.ends else "exactly"
        return ConfigError(
            f"No text of {extent} {len(canvas)} tokens meets the {self.kind}.",
            "Ask for more tokens, or allow shorter texts.",
        )


class CanvasTextState(CanvasState):
    """Where one text stands; see `CanvasState`."""

    def fits(self, canvas: Places, place: int, token: int, room: int = 0) -> bool:
        """Return whether the canvas can still be completed once `token` stands at a masked place."""
        return self.can_complete([*canvas[:place], token, *canvas[place + 1 :]], room)


def draw_allowed(allowed: Tensor, draw: Callable[[Tensor], int]) -> int:
    """Return the token drawn of those allowed, or the first of them if the law bars them all."""
    token = draw(allowed)
    return token if token >= 0 else int(allowed.nonzero()[0])
