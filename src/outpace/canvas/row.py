"""A row on its canvas: what is final, what is written, what is masked, and what the cache holds of it.

Places are logical positions of the row's whole text, prompt included, so that nothing moves when a block is finished.
A `CanvasRow` is never changed: a step returns another one, and looking ahead is the same function on drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from outpace.constrain.canvas import CanvasConstraintState

__all__ = ["Bools", "Canvas", "CanvasRow", "Floats", "Ids", "Number"]

Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Number = TypeVar("Number", int, npt.NDArray[np.int64])


@dataclass(frozen=True, slots=True)
class Canvas:
    """What all rows of a run share.

    Attributes:
        mask_id: the mask token.
        block_size: positions per block of a model with block attention, which sees its own block and all before it;
            0 = full attention.
        has_causal_text: what stands before the block in work is read causally; blocks then count from the prompt.
        logits_shift: what is said of a place is computed one place before it.
        ahead: masked places beyond the block in work that a forward under full attention holds; -1 = all.
        ends_last: an end token may be written only where everything before it is decided.
    """

    mask_id: int
    block_size: int = 0
    logits_shift: bool = False
    ahead: int = -1
    ends_last: bool = False
    has_causal_text: bool = False

    def floor(self, base: Number, prompt: Number) -> Number:
        """Return where the model's own block that holds place `base` begins: keys and values before it are final.

        Args:
            base: leading places that are final.
            prompt: places of the prompt.
        """
        if not self.block_size:
            return base * 0
        return base - (base - prompt if self.has_causal_text else base) % self.block_size

    def border(self, base: Number, prompt: Number) -> Number:
        """Return where the model's own block that holds place `base` ends; a huge number under full attention."""
        return self.floor(base, prompt) + (self.block_size or 1 << 60)

    def sight(self, places: Ids, base: Number, prompt: Number) -> Bools | None:
        """Return [..., W, W]: which node of a forward sees which, by the model's own attention; None = all see all.

        Args:
            places: [..., W] of the nodes.
            base, prompt: as of `floor`, numbers or [..., 1].
        """
        if not self.block_size:
            return None
        if self.has_causal_text:  # the block in work sees all there is, text what stands before it
            is_ahead = places >= self.floor(base, prompt)
            return (places[..., np.newaxis, :] <= places[..., np.newaxis]) | is_ahead[..., np.newaxis]
        block = places // self.block_size
        is_seen: Bools = block[..., np.newaxis, :] <= block[..., np.newaxis]
        return is_seen


@dataclass(frozen=True, slots=True)
class CanvasRow:
    """One row.

    Attributes:
        tokens: [P] the prompt and everything up to the row's greatest length; the mask token where undecided.
        given: [P] what the caller gave; it is never masked again.
        log_probs: [P] the log-probability of each written token when it was drawn, 0 elsewhere.
        prompt: places of the prompt.
        base: leading places that are final.
        end: where the block in work ends; `base` = not chosen yet.
        ends: ids that end the text.
        visit: tokens written so far, over all steps: part of the key of every draw.
        step: steps taken in this block.
        age: steps since the cache held nothing but exact entries.
        held: [L] the places whose entries lie in the cache, in the order of their slots.
        memo: what the rule remembers.
        constraint: what the text behind the prompt must look like; None = anything.
    """

    tokens: Ids
    given: Bools
    log_probs: Floats
    prompt: int
    base: int
    end: int
    ends: tuple[int, ...] = ()
    visit: int = 0
    step: int = 0
    age: int = 0
    held: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    memo: Any = None
    constraint: CanvasConstraintState | None = None

    def live(self) -> int:
        """Return where the text ends: behind its first end token, or with the canvas. Nothing beyond is worked on."""
        if not self.ends:
            return len(self.tokens)
        written = self.tokens[self.prompt :]
        is_end = written == self.ends[0]
        for token in self.ends[1:]:
            is_end = is_end | (written == token)
        first = int(is_end.argmax()) if is_end.size else 0
        return self.prompt + first + 1 if is_end.size and is_end[first] else len(self.tokens)

    def undecided(self, canvas: Canvas, begin: int, stop: int) -> Ids:
        """Return the masked places from `begin` to `stop`, ascending."""
        return begin + np.flatnonzero(self.tokens[begin:stop] == canvas.mask_id)

    def copy(self) -> CanvasRow:
        """Return itself: a row is never changed."""
        return self

    @classmethod
    def begin(cls, text: Sequence[int], rest: Sequence[int], canvas: Canvas, ends: Sequence[int]) -> CanvasRow:
        """Return the row of a text whose remaining places are `rest`: given tokens, -1 where one is to be written."""
        tokens = np.array([*text, *rest], dtype=np.int64)
        given = tokens >= 0
        size = len(text)
        return cls(np.where(given, tokens, canvas.mask_id), given, np.zeros(len(tokens)), size, size, size, tuple(ends))
