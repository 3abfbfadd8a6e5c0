"""Decoding of lattices: the likeliest path, the likeliest path of each length, and texts by a beam over prefixes.

Sources: Huang et al. (2022), arXiv 2205.07459 (beam search over the graph with an n-gram model); Shao et al. (2022),
arXiv 2210.05193 (Viterbi and joint Viterbi decoding with a length penalty).
Shapes as in `lattice`; a lattice of n places says at most n - 2 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from outpace.errors import ModelError

from .lattice import NEVER, incoming, reached_from

__all__ = ["Prefixes", "Scorer", "beam_texts", "likeliest_paths", "no_path"]

Scorer = Callable[[tuple[int, ...], int], float]
"""What a token adds after the tokens before it, in nats; -1 stands for the text's end."""


def no_path(row: int) -> ModelError:
    """Return the error of a lattice in which nothing leads from the first place to the last."""
    reason = f"The lattice of row {row} has no path from its first place to its last."
    return ModelError(reason, "The weights are damaged, or its links were masked: fetch or train the model again.")


@torch.no_grad()
def likeliest_paths(links: Tensor, gains: Tensor, places: Tensor, penalty: float) -> list[list[int]]:
    """Return per row the path of greatest score: its log-probability divided by (tokens + 1) ** penalty.

    Args:
        links: [B, L, M].
        gains: [B, L], what passing a place adds: 0 for the path alone, its best token's for both.
        places: [B] int64, n of each row.
        penalty: 0 = the likeliest path, which is short; 1 = the mean per link.

    Raises:
        ModelError: a row has no path.
    """
    into, end = incoming(links), places[:, None] - 1
    reached = gains.new_full(gains.shape, NEVER)
    reached[:, 0] = 0.0
    moves, ends = list[Tensor](), list[Tensor]()
    for tokens in range(int(places.max()) - 1):
        best, move = (reached_from(reached, into.shape[1]) + into).max(1)
        ends.append(best.gather(1, end)[:, 0] / (tokens + 1) ** penalty)
        moves.append(move + 1)
        reached = (best + gains).clamp(min=2 * NEVER)
    scores, counts = torch.stack(ends, 1).max(1)
    if bool((lost := ~(scores > NEVER / 1e10)).any()):
        raise no_path(int(lost.int().argmax()))
    return [_back([move[row] for move in moves], int(end[row]), count) for row, count in enumerate(counts.tolist())]


def _back(moves: list[Tensor], end: int, tokens: int) -> list[int]:
    """Return the places of so many tokens on the way back from the end."""
    path, at = list[int](), end
    for count in range(tokens, 0, -1):
        at -= int(moves[count][at])
        path.append(at)
    return path[::-1]


@dataclass
class Prefixes:
    """Beginnings of texts, each held once, with what a scorer says of it.

    Attributes:
        scorer: what tokens add; None = nothing.
        texts: of each prefix; 0 is the empty one.
        scores: sum over its tokens.
    """

    scorer: Scorer | None
    texts: list[tuple[int, ...]] = field(default_factory=lambda: [()])
    scores: list[float] = field(default_factory=lambda: [0.0])
    _known: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, prefix: int, token: int) -> int:
        """Return the number of a prefix with one more token."""
        key = (prefix, token)
        if key not in self._known:
            self._known[key] = len(self.texts)
            gain = 0.0 if self.scorer is None else self.scorer(self.texts[prefix], token)
            self.texts.append((*self.texts[prefix], token))
            self.scores.append(self.scores[prefix] + gain)
        return self._known[key]

    def ended(self, prefix: int) -> float:
        """Return the score of a prefix as a whole text."""
        return self.scores[prefix] + (0.0 if self.scorer is None else self.scorer(self.texts[prefix], -1))


def beam_texts(
    said: Tensor,
    links: Tensor,
    beam: int,
    candidates: int,
    scorer: Scorer | None = None,
    weight: float = 0.0,
    penalty: float = 1.0,
) -> list[tuple[float, tuple[int, ...]]]:
    """Return the texts of greatest score in one lattice, best first; the probabilities of a prefix's paths are summed.

    The score of a text is (log-probability + weight * scorer's sum) / (tokens + 1) ** penalty. A beam that holds all
    prefixes finds the best text there is.

    Args:
        said: [n, V] log-probabilities of the tokens at each place.
        links: [n, M].
        beam: prefixes kept at each place.
        candidates: tokens tried at each place.
        scorer: what a language model says of each next token.
        weight: of the scorer.
        penalty: see above.

    Returns:
        Scores and tokens without ends, at most `beam`; none where the beam holds no path.
    """
    known, end, reach = Prefixes(scorer), len(said) - 1, links.shape[1]
    values, tokens = (part.tolist() for part in said.topk(min(candidates, said.shape[1])))
    going: list[list[float]] = links.tolist()

    def score(prefix: int, value: float, language: float) -> float:
        return (value + weight * language) / math.pow(len(known.texts[prefix]) + 1, penalty)

    def best(pool: dict[int, float]) -> list[tuple[int, float]]:
        ranked = sorted(pool.items(), key=lambda item: -score(item[0], item[1], known.scores[item[0]]))
        return ranked[:beam]

    at: list[list[tuple[int, float]]] = [[(0, 0.0)]]
    for place in range(1, end + 1):
        # 1) What reaches the place, whichever way: the same beginning is one beginning.
        pool: dict[int, float] = {}
        for source in range(max(0, place - reach), place):
            step = going[source][place - source - 1]
            for prefix, value in at[source] if step > NEVER / 1e10 else ():
                pool[prefix] = _sum(pool.get(prefix, -math.inf), value + step)
        if place == end:
            return sorted(((score(p, v, known.ended(p)), known.texts[p]) for p, v in pool.items()), reverse=True)[:beam]
        # 2) What the place can say behind the best of it.
        said_here = list(zip(tokens[place], values[place], strict=True))
        at.append(best({known.add(p, token): value + gain for p, value in best(pool) for token, gain in said_here}))
    return []


def _sum(a: float, b: float) -> float:
    """Return log(exp(a) + exp(b))."""
    high, low = (a, b) if a > b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
