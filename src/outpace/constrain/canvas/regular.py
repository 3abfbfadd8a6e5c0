"""Regular constraints on a canvas: exact, by reachability over the automaton's states from both ends."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outpace.constrain.canvas.automaton import DEAD, Automaton, TokenTable
from outpace.constrain.canvas.common import CanvasTexts, CanvasTextState, draw_allowed
from outpace.constrain.canvas.protocol import Places

__all__ = ["RegularConstraint", "RegularState"]

_Flags = NDArray[np.bool_]
_BARRED = -1e9  # log-probability of a token that the law bars: chosen only where the constraint leaves nothing else


@dataclass(frozen=True, eq=False)
class RegularConstraint(CanvasTexts):
    """A regular language over tokens.

    Attributes:
        automaton: over bytes.
        table: what tokens do to it.
    """

    automaton: Automaton
    table: TokenTable

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.table.kind)

    def start(self) -> RegularState:
        """Return the state of an empty text."""
        return RegularState(self, self.automaton.start)

    @functools.cached_property
    def forward(self) -> _Edges:
        """States after one token."""
        return _Edges(self.table.successors())

    @functools.cached_property
    def backward(self) -> _Edges:
        """States before one token."""
        before: list[list[int]] = [[] for _ in range(self.automaton.size)]
        for state, after in enumerate(self.table.successors()):
            for target in after:
                before[target].append(state)
        return _Edges(before)

    @functools.cached_property
    def _ahead(self) -> list[_Flags]:
        return [self.automaton.accept]

    def within(self, room: int) -> _Flags:
        """Return [S]: states from which `room` masked places can complete the text."""
        while len(self._ahead) <= room:
            self._ahead.append(self.before_mask(self._ahead[-1]))
        return self._ahead[room]

    def before_mask(self, good: _Flags) -> _Flags:
        """Return [S]: states from which a masked place leads to a good one, or may end the text."""
        before = self.forward.any(good)
        return before | self.automaton.accept if self.ends else before


class RegularState(CanvasTextState):
    """Where one text stands in a regular constraint; see `CanvasState`."""

    def __init__(self, constraint: RegularConstraint, state: int, is_over: bool = False) -> None:
        self._constraint, self._state, self._is_over = constraint, state, is_over
        self._seen: tuple[tuple[int | None, ...], int] | None = None
        self._scan = _Scan([], [], 0)

    def push(self, token: int) -> None:
        """Append a token left of the canvas."""
        self._seen = None
        if token in self._constraint.ends:
            # Ending where the text may not end leaves nothing that could be completed.
            self._state = self._state if self._is_over or self._constraint.automaton.accept[self._state] else DEAD
            self._is_over = True
        elif not self._is_over:
            self._state = int(self._constraint.table.next[self._state, self._constraint.table.kind[token]])

    def fork(self) -> RegularState:
        """Return an independent copy."""
        return RegularState(self._constraint, self._state, self._is_over)

    def can_complete(self, canvas: Places, room: int = 0) -> bool:
        """Return whether the masked places can be filled so that the text is allowed."""
        if self._is_over:
            return self._state != DEAD
        return bool(self._read(canvas, room).good[0][self._state])

    def allowed(self, canvas: Places, place: int, room: int = 0) -> Tensor:
        """Return [V] bool: tokens that may be written at a masked place as a part of the text, or as its end."""
        constraint = self._constraint
        if not self.can_complete(canvas, room):
            return torch.zeros(constraint.vocab_size, dtype=torch.bool)
        scan = self._read(canvas, room)
        if self._is_over or place > scan.end:
            return torch.ones(constraint.vocab_size, dtype=torch.bool)
        states = np.flatnonzero(scan.reached[place])
        kinds: _Flags = np.any(scan.good[place + 1][constraint.table.next[states]], axis=0)
        allowed = kinds[constraint.table.kind]
        accept = constraint.automaton.accept
        could_end = any(bool(np.any(scan.reached[at] & accept)) for at in range(place + 1) if canvas[at] is None)
        allowed[list(constraint.ends)] = could_end
        return torch.from_numpy(allowed)

    def accepts(self, canvas: Places, place: int, token: int, room: int = 0) -> bool:
        """Return whether one token may be written at a masked place, as a part of the text or its end."""
        return bool(self.allowed(canvas, place, room)[token])

    def redraw(self, canvas: Places, place: int, draw: Callable[[Tensor], int], room: int = 0) -> int:
        """Return a token that may be written at a masked place; see `CanvasState`."""
        allowed = self.allowed(canvas, place, room)
        if not bool(allowed.any()):
            raise self._constraint.misfit(canvas)
        return draw_allowed(allowed, draw)

    def completion(self, canvas: Places, room: int = 0) -> list[int] | None:
        """Return some canvas without masks that completes this one, or None."""
        return self.best(canvas, torch.zeros(len(canvas), self._constraint.vocab_size), room)

    def best(self, canvas: Places, log_probs: Tensor, room: int = 0) -> list[int] | None:
        """Return the most likely completion when places are independent, or None if there is none.

        DINGO: Constrained Inference for Diffusion LLMs (arXiv 2505.23061), over classes of tokens. Tokens after the end
        are dropped and do not count: end tokens are written there.

        Args:
            canvas: W places.
            log_probs: [W, V]; read at masked places.
            room: masked places behind the canvas.
        """
        if not self.can_complete(canvas, room):
            return None
        if self._is_over:
            return [self._constraint.ends[0] if token is None else token for token in canvas]
        law = log_probs.detach().cpu().double().clamp(min=_BARRED).numpy()
        return _viterbi(self._constraint, self._state, canvas, law, room)

    def _read(self, canvas: Places, room: int) -> _Scan:
        key = (tuple(canvas), room)
        if key != self._seen:
            self._seen, self._scan = key, _read(self._constraint, self._state, canvas, room)
        return self._scan


@dataclass(frozen=True, slots=True)
class _Scan:
    """What a canvas allows before each place: states reached from the left, and good ones, that can be completed.

    Places behind the first end token (`end`; W without one) are not described.
    """

    reached: list[_Flags]
    good: list[_Flags]
    end: int


class _Edges:
    """A relation between states, for an "any" over the neighbours of each."""

    def __init__(self, neighbours: Sequence[Sequence[int]]) -> None:
        padded = [row or [DEAD] for row in neighbours]  # the dead state is never reached and never good
        self._flat = np.concatenate([np.asarray(row, np.int64) for row in padded])
        self._starts = np.cumsum([0, *(len(row) for row in padded[:-1])])

    def any(self, flags: _Flags) -> _Flags:
        """Return [S]: whether a state has a neighbour with the flag."""
        found: _Flags = np.logical_or.reduceat(flags[self._flat], self._starts)
        return found


def _read(constraint: RegularConstraint, state: int, canvas: Places, room: int) -> _Scan:
    table, accept = constraint.table, constraint.automaton.accept
    end = next((at for at, token in enumerate(canvas) if token in constraint.ends), len(canvas))
    first = np.zeros(constraint.automaton.size, np.bool_)
    first[state] = state != DEAD
    reached = [first]
    for token in canvas[:end]:
        if token is None:
            reached.append(constraint.backward.any(reached[-1]))
        else:
            after = np.zeros_like(first)
            after[table.next[reached[-1], table.kind[token]]] = True
            after[DEAD] = False
            reached.append(after)
    good = [accept if end < len(canvas) else constraint.within(room)]
    for token in reversed(canvas[:end]):
        good.append(constraint.before_mask(good[-1]) if token is None else good[-1][table.next[:, table.kind[token]]])
    return _Scan(reached, good[::-1], end)


def _viterbi(
    constraint: RegularConstraint, state: int, canvas: Places, log_probs: NDArray[np.float64], room: int
) -> list[int]:
    """Return the best completion of a canvas that has one; scores go from the right, tokens from the left."""
    table, accept, ends = constraint.table, constraint.automaton.accept, list(constraint.ends)
    stop = next((at for at, token in enumerate(canvas) if token in constraint.ends), len(canvas))
    order = np.argsort(table.kind, kind="stable")
    starts = np.flatnonzero(np.diff(table.kind[order], prepend=-1))
    scores = [np.where(accept if stop < len(canvas) else constraint.within(room), 0.0, -np.inf)]
    for at in reversed(range(stop)):
        token, after = canvas[at], scores[-1]
        if token is None:
            of_kind = np.maximum.reduceat(log_probs[at][order], starts)
            here = (after[table.next] + of_kind).max(axis=1)
            if ends:
                here = np.where(accept, np.maximum(here, log_probs[at][ends].max()), here)
        else:
            here = after[table.next[:, table.kind[token]]]
        scores.append(here)
    scores.reverse()
    written = list(canvas)
    for at in range(stop):
        token = canvas[at]
        if token is None:
            each = log_probs[at] + scores[at + 1][table.next[state, table.kind]]
            each[ends] = log_probs[at][ends] if accept[state] else -np.inf
            token = written[at] = int(each.argmax())
            if token in constraint.ends:
                break
        state = int(table.next[state, table.kind[token]])
    return [ends[0] if token is None else token for token in written]
