"""What stateful processors know of the tokens before a position, along one path of drafts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from outpace.constrain.protocol import Constraint, ConstraintState
    from outpace.sampling.guide import Walks

__all__ = ["History", "state_after"]


class History:
    """Of each row: token counts, the last tokens, and where it stands in its constraint.

    Args:
        texts: per row, final tokens and drafts so far, prompt included.
        prompts: how many leading tokens of each are its prompt.
        vocab_size: V.
        end_tokens: per row, the ids that end its text.
        states: per row, where it stands in its constraint; forked before anything is pushed. None = nothing to obey.
        sources: per row, an encoder-decoder's source; empty = the prompt is the source.
        limits: per row, the greatest length of its text, prompt included; 0 = none is known.
        laws: what changes every row's logits.
    """

    def __init__(
        self,
        texts: Sequence[Sequence[int]],
        prompts: Sequence[int],
        vocab_size: int,
        end_tokens: Sequence[Sequence[int]] = (),
        states: Sequence[ConstraintState | None] = (),
        sources: Sequence[Sequence[int]] = (),
        limits: Sequence[int] = (),
        laws: Sequence[Walks] = (),
    ) -> None:
        self.tokens = [list(text) for text in texts]
        self.prompts = list(prompts)
        self.end_tokens = [list(ends) for ends in end_tokens] or [[] for _ in texts]
        given = list(sources) or [()] * len(texts)
        self.sources = [own or text[:n] for own, text, n in zip(given, self.tokens, self.prompts, strict=True)]
        self.limits = list(limits) or [0] * len(texts)
        self._states = list(states) or [None] * len(texts)
        self._is_forked = [False] * len(texts)
        self.laws = list(laws)
        self.guides = [[law.at(*self._facts(row)) for law in laws] for row in range(len(texts))]
        self._vocab_size = vocab_size
        self._counts: tuple[Tensor, Tensor] | None = None  # of no use to most processors

    @property
    def seen(self) -> Tensor:
        """[B, V] how often each token stands in each text."""
        return self._counted()[0]

    @property
    def written(self) -> Tensor:
        """[B, V] the same behind the prompts."""
        return self._counted()[1]

    def _counted(self) -> tuple[Tensor, Tensor]:
        if self._counts is None:
            shape = (len(self.tokens), self._vocab_size)
            self._counts = torch.zeros(shape), torch.zeros(shape)
            for row, text in enumerate(self.tokens):
                for counts, part in zip(self._counts, (text, text[self.prompts[row] :]), strict=True):
                    ids = torch.tensor(part, dtype=torch.int64)
                    counts[row] = torch.bincount(ids, minlength=self._vocab_size)[: self._vocab_size]
        return self._counts

    def push(self, tokens: Sequence[int], rows: Sequence[int]) -> None:
        """Append one token to each of the named rows."""
        for row in rows:
            self.tokens[row].append(tokens[row])
            for counts in self._counts or ():
                counts[row, tokens[row]] += 1
            self._advance(row, tokens[row])
            self.guides[row] = [state.after(tokens[row]) for state in self.guides[row]]
            for law, state in zip(self.laws, self.guides[row], strict=True):
                law.keep(*self._facts(row), state)

    def _facts(self, row: int) -> tuple[list[int], int, list[int], int]:
        """Return what a law's state depends on."""
        return self.tokens[row], self.prompts[row], self.end_tokens[row], self.limits[row]

    def _advance(self, row: int, token: int) -> None:
        state = self._states[row]
        if state is None:
            return
        if not self._is_forked[row]:
            state, self._is_forked[row] = state.fork(), True
        self._states[row] = state if token not in self.end_tokens[row] and state.push(token) else None

    def allowed(self, row: int) -> Tensor | None:
        """Return the tokens [V] that the row's constraint allows next, end tokens included; None = all.

        Nothing is masked behind a draft that breaks the constraint, behind an end token, and where nothing is allowed:
        laws stay laws, no such draft can be reached, and the row itself refuses what is drawn in its place.
        """
        state = self._states[row]
        if state is None:
            return None
        allowed = state.allowed()
        if self.end_tokens[row]:
            allowed = allowed.clone()
            allowed[self.end_tokens[row]] = state.is_complete
        return allowed if bool(allowed.any()) else None

    def is_stuck(self, row: int) -> bool:
        """Return whether the row's constraint allows no token, not even an end."""
        return self._states[row] is not None and self.allowed(row) is None


def state_after(
    constraint: Constraint, written: Sequence[int], known: ConstraintState | None
) -> ConstraintState | None:
    """Return where a text stands in a constraint, or None where it breaks it.

    Args:
        constraint: the constraint.
        written: the text's tokens, without its prompt.
        known: where the text, a beginning or a continuation of it stands; returned itself if it stands there.
    """
    written, done = list(written), list(known.tokens) if known is not None else []
    if known is not None and done == written:
        return known
    if known is not None and done[: len(written)] == written:
        state = known.fork()
        state.back(len(done) - len(written))
        return state
    if known is None or written[: len(done)] != done:
        state, done = constraint.start(), []
    else:
        state = known.fork()
    return state if all(state.push(token) for token in written[len(done) :]) else None
