"""What the sampler asks of a law that changes logits, and how a law's states follow texts and drafts.

A state is a value: it belongs to a text, and the state of a longer text is another one. So drafts, trees, forks, beams
and rows that leave and come back need nothing from a law, and it cannot depend on how a text came about.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["Guide", "GuideState", "Walks"]

_Key = tuple[tuple[int, ...], int, tuple[int, ...], int]
_MOST = 4096  # states that are kept for texts to come


class GuideState(Protocol):
    """Where one text stands under a law: a function of its tokens alone."""

    def after(self, token: int) -> GuideState:
        """Return the state of the text with one more token; this one stays as it is."""
        ...

    def apply(self, logits: Tensor) -> None:
        """Change the next token's logits [V] in place; what it sets to -inf can no more be drawn."""
        ...


class Guide(Protocol):
    """A law over next tokens, made for one vocabulary; shared by rows and never changed."""

    def start(self, prompt: Sequence[int], ends: Sequence[int], limit: int) -> GuideState:
        """Return the state of a text before its first written token.

        Args:
            prompt: the tokens that it continues.
            ends: ids that end it.
            limit: its greatest length, prompt included; 0 = none is known.

        Raises:
            ConfigError: no text of that length can be what the law asks for.
        """
        ...


class Walks:
    """A guide's states by text, the latest ones kept: what a step has walked, the next one finds.

    Args:
        guide: the law.
    """

    def __init__(self, guide: Guide) -> None:
        self.guide = guide
        self._known: OrderedDict[_Key, GuideState] = OrderedDict()

    def at(self, text: Sequence[int], num_prompt: int, ends: Sequence[int], limit: int) -> GuideState:
        """Return the state of a text, whose first `num_prompt` tokens are its prompt; see `Guide.start`."""
        whole, rest = tuple(text), (num_prompt, tuple(ends), limit)
        size = len(whole)
        while size >= num_prompt and (whole[:size], *rest) not in self._known:
            size -= 1
        if size < num_prompt:
            size, state = num_prompt, self.guide.start(whole[:num_prompt], ends, limit)
        else:
            state = self._known[(whole[:size], *rest)]
        for token in whole[size:]:
            state = state.after(token)
        self.keep(whole, num_prompt, ends, limit, state)
        return state

    def keep(self, text: Sequence[int], num_prompt: int, ends: Sequence[int], limit: int, state: GuideState) -> None:
        """Note the state of a text."""
        key = (tuple(text), num_prompt, tuple(ends), limit)
        self._known[key] = state
        self._known.move_to_end(key)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
