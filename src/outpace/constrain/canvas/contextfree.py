"""Context-free constraints on a canvas, by the additive-infilling test.

Constrained Decoding of Diffusion LLMs with Context-Free Grammars (arXiv 2508.10111): the decided pieces with holes
between them are a regular language, and a token is refused if its intersection with the grammar is empty. There a hole
is any text; here it is as many tokens as it has masked places, so that the last place can always be filled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outpace.constrain.canvas.automaton import DEAD, TokenTable, Trie
from outpace.constrain.canvas.chart import BARRED, MASK, Chart, ChartPoint
from outpace.constrain.canvas.common import CanvasTexts, CanvasTextState, draw_allowed
from outpace.constrain.canvas.numbered import NumberedGrammar
from outpace.constrain.canvas.protocol import Places
from outpace.constrain.machine import bits

__all__ = ["ContextFreeConstraint", "ContextFreeState", "parts"]

_TRIALS = 12  # drawn tokens that are tested one by one before one within a terminal is drawn
_REACH = 128  # unseen places behind the canvas that are looked at; more would only allow longer ways out


@dataclass(frozen=True, eq=False)
class ContextFreeConstraint(CanvasTexts):
    """A context-free language over bytes, on a canvas of tokens.

    Attributes:
        chart: of its grammar.
        table: what tokens do to the automaton of its terminals.
        spelled: the bytes of each id; empty for ids that are no text.
        is_part: [V] whether a token can be a part of any text at all.
    """

    chart: Chart
    table: TokenTable
    spelled: Sequence[bytes]
    is_part: NDArray[np.bool_]

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.spelled)

    def start(self) -> ContextFreeState:
        """Return the state of an empty text."""
        return ContextFreeState(self, [])


class ContextFreeState(CanvasTextState):
    """Where one text stands in a context-free constraint; see `CanvasState`.

    `can_complete` and `fits` count on tokens within one terminal at masked places: True is certain, False may be
    cautious. The work grows with the length of the text so far.
    """

    def __init__(self, constraint: ContextFreeConstraint, tokens: list[int]) -> None:
        self._constraint, self._tokens = constraint, tokens

    def push(self, token: int) -> None:
        """Append a token left of the canvas."""
        self._tokens.append(token)

    def fork(self) -> ContextFreeState:
        """Return an independent copy."""
        return ContextFreeState(self._constraint, list(self._tokens))

    def can_complete(self, canvas: Places, room: int = 0) -> bool:
        """Return whether the masked places can be filled so that the text is allowed."""
        return bool(self._constraint.chart.ways(self._read([*self._tokens, *canvas], room)))

    def allowed(self, canvas: Places, place: int, room: int = 0) -> Tensor:
        """Return [V] bool: tokens that may be written at a masked place as a part of the text, or as its end.

        Of tokens that are a part of the text, those that lie within one terminal; `fits` tells of the others.
        """
        constraint, chart = self._constraint, self._constraint.chart
        text = [*self._tokens, *canvas]
        chain = self._read(text, room)
        ways = chart.ways(chain)
        place += len(self._tokens)
        if not ways or any(token in constraint.ends for token in text[:place]):
            return torch.full((constraint.vocab_size,), bool(ways))
        depth = len(chain) - 1 - sum(len(self._edges(token)) for token in text[:place])
        kinds = np.zeros(constraint.table.next.shape[1], np.bool_)
        for state, targets in chart.steps_at(chain, depth, ways & ((1 << depth) - 1)).items():
            is_good = np.zeros(len(constraint.table.next), np.bool_)
            is_good[targets] = True
            kinds |= is_good[constraint.table.next[state]]
        allowed = kinds[constraint.table.kind]
        allowed[list(constraint.ends)] = bool(ways >> depth)
        return torch.from_numpy(allowed)

    def accepts(self, canvas: Places, place: int, token: int, room: int = 0) -> bool:
        """Return whether one token may be written at a masked place, as a part of the text or its end."""
        constraint = self._constraint
        if any(known in constraint.ends for known in [*self._tokens, *canvas[:place]]) or token in constraint.ends:
            return self.fits(canvas, place, token, room)
        return bool(constraint.is_part[token]) and self._is_inside(canvas, place, token, room)

    def redraw(self, canvas: Places, place: int, draw: Callable[[Tensor], int], room: int = 0) -> int:
        """Return a token that may be written at a masked place; see `CanvasState`.

        The first few that are drawn are tested one by one, as the paper does; then one of `allowed` is drawn, which may
        pass over a better token that reaches across terminals.
        """
        constraint, within = self._constraint, self.allowed(canvas, place, room)
        if not bool(within.any()):
            raise constraint.misfit(canvas)
        left, trials = within | torch.from_numpy(constraint.is_part), _TRIALS
        while trials and (token := draw(left)) >= 0:
            if within[token] or self.accepts(canvas, place, token, room):
                return token
            left[token], trials = False, trials - 1
        return draw_allowed(within, draw)

    def _is_inside(self, canvas: Places, place: int, token: int, room: int) -> bool:
        """Return whether a text can be completed that has `token` at a place; `fits` lets it end before."""
        text = [*self._tokens, *canvas[:place], token, *canvas[place + 1 :]]
        chain = self._read(text, room)
        before = sum(len(self._edges(token)) for token in text[: len(self._tokens) + place])
        return bool(self._constraint.chart.ways(chain, (1 << (len(chain) - 1 - before)) - 1))

    def completion(self, canvas: Places, room: int = 0) -> list[int] | None:
        """Return some canvas without masks that completes this one, or None."""
        written = list(canvas)
        if not self.can_complete(written, room):
            return None
        for place, token in enumerate(written):
            if token is None:
                written[place] = int(self.allowed(written, place, room).nonzero()[0])
        return [token for token in written if token is not None]

    def _read(self, text: Sequence[int | None], room: int) -> list[ChartPoint]:
        ends = self._constraint.ends
        stop = next((at for at, token in enumerate(text) if token in ends), None)
        edges = [edge for token in text[:stop] for edge in self._edges(token)]
        if stop is None:
            edges += [MASK] * min(room, _REACH)
        return self._constraint.chart.read(edges)

    def _edges(self, token: int | None) -> Sequence[int]:
        if token is None:
            return (MASK,)
        return self._constraint.spelled[token] or (BARRED,)


def parts(grammar: NumberedGrammar, trie: Trie) -> NDArray[np.bool_]:
    """Return [V]: whether a token may be a part of some text, judged by which terminals can stand side by side."""
    automaton = grammar.automaton
    opens = [1 << state for state in range(automaton.size)]
    for left, right in grammar.follow:
        for state in automaton.accept.nonzero()[0].tolist():
            if grammar.owner[state] == left:
                opens[state] |= 1 << grammar.entry[right]

    @functools.cache
    def step(states: int, byte: int) -> int:
        found = 0
        for state in bits(states):
            target = int(automaton.next[state, byte])
            found |= opens[target] if target != DEAD else 0
        return found

    everywhere = (1 << automaton.size) - 2
    return np.asarray([bool(text) and functools.reduce(step, text, everywhere) != 0 for text in trie.spelled])
