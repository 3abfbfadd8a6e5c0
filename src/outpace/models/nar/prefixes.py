"""Texts of CTC by a beam over prefixes: the alignments of a beginning are summed, a language model may take part.

Source: Graves and Jaitly (2014), algorithm 1; with a language model Hannun et al. (2014), arXiv 1408.2873.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .paths import Prefixes, Scorer

__all__ = ["Features", "prefix_beam"]

_NEVER = -math.inf


@dataclass(frozen=True, slots=True)
class Features:
    """What counts beside a text's log-probability, each as nats times a weight.

    Attributes:
        weight: of the language model's log-probability, the text's end included.
        bonus: for each token.
        blanks: for each place per token, beyond `ratio`, that says nothing new: against texts that lack words.
        ratio: see above.
    """

    weight: float = 0.0
    bonus: float = 0.0
    blanks: float = 0.0
    ratio: float = 2.0

    def of(self, language: float, tokens: int, places: int) -> float:
        """Return what a beginning of so many tokens gets after so many places."""
        silent = max(0.0, (places - tokens) / max(tokens, 1) - self.ratio)
        return self.weight * language + self.bonus * tokens - self.blanks * silent


_PLAIN = Features()


@torch.no_grad()
def prefix_beam(
    log_probs: Tensor,
    beam: int,
    candidates: int,
    least: float = 0.0,
    scorer: Scorer | None = None,
    features: Features = _PLAIN,
) -> list[tuple[float, tuple[int, ...]]]:
    """Return texts and their scores, best first, at most `beam` of them.

    A beam and candidates that hold everything give the best text there is.

    Args:
        log_probs: [n, V + 1] of one row's places, the blank last.
        beam: prefixes kept at each place.
        candidates: symbols tried at each place.
        least: probability below which a symbol is not tried, where another one is.
        scorer: what a language model says of each next token.
        features: how it all is weighed.
    """
    known, blank = Prefixes(scorer), log_probs.shape[1] - 1
    values, symbols = (part.tolist() for part in log_probs.topk(min(candidates, blank + 1)))
    floor = math.log(least) if least else _NEVER
    # Per prefix the mass of its alignments that end in a blank, and of those that do not.
    kept = {0: (0.0, _NEVER)}
    for place, (row, names) in enumerate(zip(values, symbols, strict=True), 1):
        tried = [(s, v) for at, (s, v) in enumerate(zip(names, row, strict=True)) if not at or v >= floor]
        going = _grown(kept, tried, known, blank)
        if len(going) > beam:

            def score(entry: tuple[int, tuple[float, float]], place: int = place) -> float:
                prefix, mass = entry
                return _sum(*mass) + features.of(known.scores[prefix], len(known.texts[prefix]), place)

            going = dict(sorted(going.items(), key=score, reverse=True)[:beam])
        kept = going
    found = [
        (_sum(*mass) + features.of(known.ended(prefix), len(known.texts[prefix]), len(values)), known.texts[prefix])
        for prefix, mass in kept.items()
    ]
    return sorted(found, reverse=True)


def _grown(
    kept: dict[int, tuple[float, float]], tried: list[tuple[int, float]], known: Prefixes, blank: int
) -> dict[int, tuple[float, float]]:
    """Return the prefixes after one more place, with their masses."""
    going: dict[int, tuple[float, float]] = {}
    for prefix, (silent, said) in kept.items():
        text, total = known.texts[prefix], _sum(silent, said)
        for symbol, value in tried:
            if symbol == blank:
                before = going.get(prefix, (_NEVER, _NEVER))
                going[prefix] = (_sum(before[0], total + value), before[1])
                continue
            reached = total
            if text and text[-1] == symbol:  # the run goes on, unless a blank stood between
                before = going.get(prefix, (_NEVER, _NEVER))
                going[prefix] = (before[0], _sum(before[1], said + value))
                reached = silent
            if reached > _NEVER:
                longer = known.add(prefix, symbol)
                before = going.get(longer, (_NEVER, _NEVER))
                going[longer] = (before[0], _sum(before[1], reached + value))
    return going


def _sum(a: float, b: float) -> float:
    """Return log(exp(a) + exp(b))."""
    high, low = (a, b) if a > b else (b, a)
    return high if low == _NEVER else high + math.log1p(math.exp(low - high))
