"""Drafts whose acceptance is known beforehand, so that only what they cost is measured."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from outpace.methods.base import Method, chain
from outpace.types import Context, Needs, Proposal, View

__all__ = ["Replay"]

_BLOCK = 16  # tokens that hold exactly the share, so that short texts do too


@dataclass(frozen=True)
class Replay(Method):
    """Drafts the known continuation of each prompt, a share of it made wrong.

    Attributes:
        texts: continuation by prompt.
        share: of drafts that are right, in every 16 of them.
        draft_len: drafts per step.
        vocab_size: V, to make tokens wrong.
    """

    texts: Mapping[tuple[int, ...], Sequence[int]] = field(default_factory=dict)
    share: float = 1.0
    draft_len: int = 4
    vocab_size: int = 2

    name: ClassVar[str] = "replay"

    @property
    def needs(self) -> Needs:
        """Room for the chain."""
        return Needs(has_rollback=True, width=self.draft_len)

    def start(self, context: Context) -> list[list[int]]:
        """Return the drafts of every row, by position after the prompt."""
        return [self._spoil(number, self.texts[tuple(text)]) for number, text in enumerate(context.texts)]

    def propose(self, view: View, state: list[list[int]]) -> Proposal:
        """Return what follows, as far as there is room."""
        drafts = []
        for text, prompt, room, known in zip(view.texts, view.prompts, view.room, state, strict=True):
            at = len(text) - prompt
            drafts.append(known[at : at + min(self.draft_len, room - 1)])
        return chain(view, drafts, self.name)

    def _spoil(self, row: int, tokens: Sequence[int]) -> list[int]:
        rng = random.Random(row)
        spoilt = list(tokens)
        for start in range(0, len(tokens), _BLOCK):
            for at in rng.sample(range(start, start + _BLOCK), round(_BLOCK * (1 - self.share))):
                if at < len(tokens):
                    spoilt[at] = (tokens[at] + 1) % self.vocab_size
        return spoilt
