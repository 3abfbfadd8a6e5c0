"""Refine beliefs before tokens are written, and stop when they no longer move (LRD, Zhu et al., 2025, section 3).

The rule keeps the laws of the block's undecided places. The method mixes their likeliest tokens into the mask's
embedding, so that the next forward sees what was believed of each place, not only that it is open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outpace.canvas.blocks import Schedule
from outpace.canvas.reading import Reading
from outpace.canvas.row import Canvas, CanvasRow, Ids
from outpace.canvas.rules.rule import Choice, Rule, eligible

__all__ = ["Belief", "Refined", "mixture", "movement", "residual"]


@dataclass(frozen=True)
class Belief:
    """What the last forward said of the block's places that are still undecided.

    Attributes:
        places: [K] ascending.
        probs: [K, V] the model's own laws.
        is_refining: nothing of the block has been written yet.
        inner: what the rule below remembers.
    """

    places: Ids
    probs: Tensor
    is_refining: bool
    inner: Any = None

    def within(self, places: Ids) -> tuple[Ids, Tensor]:
        """Return where among some places [W] the believed ones lie, [K'], and their laws [K', V]."""
        there = np.isin(self.places, places)  # an end token may have cut the text
        return np.searchsorted(places, self.places[there]), self.probs[torch.from_numpy(there)]


@dataclass(frozen=True, slots=True)
class Refined(Rule):
    """Another rule, after a phase that writes nothing, and until the laws settle.

    Attributes:
        inner: writes in the second phase.
        refine: the first phase ends once the laws moved less than this (mean KL divergence per place, in nats).
        rounds: most steps of the first phase; 0 = there is none.
        settle: in the second phase, the rest of the block is written once the laws moved less; 0 = never.
    """

    inner: Rule
    refine: float = 0.1
    rounds: int = 20
    settle: float = 0.1

    def start(self, row: CanvasRow, canvas: Canvas, schedule: Schedule) -> Any:
        """Return what the inner rule remembers; nothing is believed yet."""
        return _nothing(self.inner.start(row, canvas, schedule))

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        """Decide for one row. Steps of the first phase write nothing."""
        is_open = reading.within(row.end)
        past: Belief | None = memo if row.step else None
        inner = None if memo is None else memo.inner
        places, probs = reading.places[is_open], reading.probs[torch.from_numpy(is_open)]
        moved = math.inf if past is None else movement(Belief(places, probs, False), past)
        was_refining = past is None or past.is_refining
        if was_refining and row.step < self.rounds and moved >= self.refine:
            return Choice(np.zeros_like(is_open), memo=Belief(places, probs, True, inner))
        if not was_refining and moved < self.settle:
            return Choice(eligible(reading, row), memo=_nothing(inner))
        choice = self.inner.choose(reading, row, inner)
        left = ~choice.writes[is_open]
        choice.memo = Belief(places[left], probs[torch.from_numpy(left)], False, choice.memo)
        return choice


def _nothing(inner: Any) -> Belief:
    return Belief(np.zeros(0, np.int64), torch.zeros(0, 0), True, inner)


def movement(now: Belief, past: Belief) -> float:
    """Return the mean KL divergence, in nats, of the present laws from the last ones (equation 6).

    Over the places that both know; infinite if there are none.
    """
    index = np.flatnonzero(np.isin(now.places, past.places))
    if not len(index):
        return math.inf
    ours = now.probs[torch.from_numpy(index)].double()
    theirs = past.probs[torch.from_numpy(np.searchsorted(past.places, now.places[index]))].double()
    terms = torch.special.xlogy(ours, ours) - torch.special.xlogy(ours, theirs.clamp(min=1e-300))
    return float(terms.sum(-1).mean())


def mixture(probs: Tensor, mix: float, top_p: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is mixed into the masks (equations 3 and 4).

    Args:
        probs: [K, V] laws.
        mix: the greatest share of predicted tokens.
        top_p: mass of the nucleus whose tokens are mixed.
        most: tokens of a nucleus at most.

    Returns:
        [K] the share of predicted tokens, `mix` times one minus the law's entropy over log V; [K, N] their ids;
        [K, N] their weights, which add to one (0 outside the nucleus).
    """
    laws = probs.double()
    entropy = -torch.special.xlogy(laws, laws).sum(-1)
    share = mix * (1 - entropy / math.log(laws.shape[-1]))
    values, ids = laws.topk(min(most, laws.shape[-1]), dim=-1)
    is_inside = values.cumsum(-1) - values < top_p
    is_inside[:, 0] = True
    weights = values * is_inside
    return share, ids, weights / weights.sum(-1, keepdim=True)


def residual(probs: Tensor, weight: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the residuals of open places (RCD, arXiv 2601.22954): the less is known of a place, the more is told.

    Args:
        probs: [K, V] laws.
        weight: 0 tells nothing, 1 by the entropy itself.
        most: tokens of a residual at most, the likeliest.

    Returns:
        [K] the share of predicted tokens, `weight` times the law's entropy over log V; [K, N] their ids; [K, N] their
        weights, which add to one.
    """
    laws = probs.double()
    entropy = -torch.special.xlogy(laws, laws).sum(-1)
    values, ids = laws.topk(min(most, laws.shape[-1]), dim=-1)
    return weight * entropy / math.log(laws.shape[-1]), ids, values / values.sum(-1, keepdim=True)
