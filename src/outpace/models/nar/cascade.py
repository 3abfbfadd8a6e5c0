"""Chains of choices, searched in parallel: every sum over paths takes as many steps as its length has binary digits.

Paper: Deng and Rush (2020), arXiv 2006.01112, sections 3 and 4: max-marginals, and a cascade that prunes by them. The
scan over products of matrices is that of Särkkä and García-Fernández (2019), arXiv 1905.13002.

Shapes: B rows, L edges of a chain, K states at each of its L + 1 nodes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Bounds", "Cascaded", "best_states", "cascade", "log_sum", "marginals", "max_plus", "scan"]

_NEVER = float("-inf")
Product = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where texts may end.

    Attributes:
        least: [B] int64, fewest tokens.
        most: [B] int64, most tokens.
        start: token that stands for what is before a text.
        end: token that ends it, and follows itself.
    """

    least: Tensor
    most: Tensor
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Cascaded:
    """What a cascade found.

    Attributes:
        tokens: [B, L], ends from each text's end on.
        scores: [B], log-probability of each text.
        passes: how often laws were asked for, the first ones apart.
        steps: rounds of scans, one after another.
    """

    tokens: Tensor
    scores: Tensor
    passes: int
    steps: int


def max_plus(left: Tensor, right: Tensor) -> Tensor:
    """Return the best way through two edges [..., K, K], from the first's beginnings to the second's endings."""
    return (left[..., :, :, None] + right[..., None, :, :]).amax(-2)


def log_sum(left: Tensor, right: Tensor) -> Tensor:
    """Return the log of the sum over all ways through two edges [..., K, K]."""
    return (left[..., :, :, None] + right[..., None, :, :]).logsumexp(-2)


def scan(items: Tensor, product: Product) -> tuple[Tensor, int]:
    """Return the products of the first 1, 2, ..., L items [B, L, ...], and the rounds: log2(L), rounded up."""
    reach, rounds = 1, 0
    while reach < items.shape[1]:
        items = torch.cat([items[:, :reach], product(items[:, :-reach], items[:, reach:])], 1)
        reach, rounds = 2 * reach, rounds + 1
    return items, rounds


def marginals(edges: Tensor, product: Product = max_plus) -> tuple[Tensor, int]:
    """Return what all paths through each edge come to: the best one (`max_plus`), or the log of their sum (`log_sum`).

    Args:
        edges: [B, L, K, K], log-scores of a step from a state to the next one; paths begin in state 0.
        product: how two steps make one.

    Returns:
        [B, L, K, K], and the rounds that the scans took.
    """
    before, rounds = _before(edges, product)
    after, more = scan(edges.flip(1).mT, product)
    ends = after.mT.flip(1)[:, 1:]  # from each node to the end
    total = ends.amax(-1) if product is max_plus else ends.logsumexp(-1)
    total = F.pad(total, (0, 0, 0, 1))
    return before[:, :-1, :, None] + edges + total[:, :, None, :], rounds + more


def best_states(edges: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the states [B, L] behind the edges of each row's best path, its score [B], and the rounds of the scans."""
    before, rounds = _before(edges, max_plus)
    scores, last = before[:, -1].max(-1)
    came = (before[:, :-1, :, None] + edges).argmax(2)  # [B, L, K]: where the best way into a state comes from
    # What stands at a node is told by all pointers behind it, one after the other; maps are joined like matrices.
    maps, more = scan(came[:, 1:].flip(1), lambda first, then: then.gather(2, first))
    states = maps.flip(1).gather(2, last[:, None, None].expand(-1, maps.shape[1], -1))[:, :, 0]
    return torch.cat([states, last[:, None]], 1), scores, rounds + more


def _before(edges: Tensor, product: Product) -> tuple[Tensor, int]:
    """Return what all paths into each state of each node come to, [B, L + 1, K]."""
    prefix, rounds = scan(edges, product)
    first = torch.full_like(edges[:, :1, 0], _NEVER)
    first[..., 0] = 0.0
    return torch.cat([first, prefix[:, :, 0]], 1), rounds


def cascade(laws: Tensor, score: Callable[[Tensor, Tensor], Tensor], bounds: Bounds, top: int, order: int) -> Cascaded:
    """Find the best text of a Markov model of an order, among those that coarser models leave.

    Round m scores every kept run of m tokens with each kept token behind it, and keeps the `top` runs of m + 1 tokens
    at each place whose best text is the best; the last round takes the best text.

    Args:
        laws: [B, L, V], log-probabilities of each place's token, whatever stands before; L is more than `bounds.most`.
        score: takes contexts [B, N, m] and the places [B, N] behind them, gives log-probabilities [B, N, V].
        bounds: of the texts.
        top: K, what is kept at each place.
        order: tokens that the last round looks back, at least 1.
    """
    runs, is_kept = _candidates(laws, bounds, top)
    steps = 0
    for size in range(1, order + 1):
        before, following = runs[:, :-1], runs[:, 1:]
        rows, places, width = before.shape[:3]
        at = torch.arange(places, device=laws.device).repeat_interleave(width).expand(rows, -1)
        found = score(before.flatten(1, 2), at).unflatten(1, (places, width))
        edges = _edges(found, before, following, is_kept, bounds.end)
        if size < order:
            through, rounds = marginals(edges)
            runs, is_kept = _longer(through, before, following, bounds.start, top)
            steps += rounds
    states, scores, rounds = best_states(edges)
    return Cascaded(following[..., -1].gather(2, states[:, :, None])[:, :, 0], scores, order, steps + rounds)


def _longer(through: Tensor, before: Tensor, following: Tensor, start: int, top: int) -> tuple[Tensor, Tensor]:
    """Return the runs, one token longer, whose edges have the best marginals [B, L, K, K], and which there are."""
    best, index = through.flatten(2).topk(min(top, through[0, 0].numel()))
    came, went = index // through.shape[3], index % through.shape[3]
    first = before.gather(2, came[..., None].expand(-1, -1, -1, before.shape[3]))
    last = following[..., -1:].gather(2, went[..., None])
    return _with_start(torch.cat([first, last], -1), best > _NEVER, start)


def _candidates(laws: Tensor, bounds: Bounds, top: int) -> tuple[Tensor, Tensor]:
    """Return the likeliest tokens of each place as runs of one; where a text may end, its end is among them."""
    at = torch.arange(laws.shape[1], device=laws.device)
    may_end, must_end = at >= bounds.least[:, None], at >= bounds.most[:, None]
    laws = laws.masked_fill(must_end[:, :, None], _NEVER)
    laws[..., bounds.start] = _NEVER
    laws[..., bounds.end] = torch.where(may_end, 1.0, _NEVER)
    best, tokens = laws.topk(min(top, laws.shape[-1]))
    return _with_start(tokens[..., None], best > _NEVER, bounds.start)


def _with_start(runs: Tensor, is_kept: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Put the node before a text in front: one run, of starts."""
    first = torch.zeros_like(is_kept[:, :1])
    first[..., 0] = True
    return torch.cat([torch.full_like(runs[:, :1], start), runs], 1), torch.cat([first, is_kept], 1)


def _edges(laws: Tensor, before: Tensor, following: Tensor, is_kept: Tensor, end: int) -> Tensor:
    """Return the scores [B, L, K, K] of steps between kept runs that overlap; ends follow their end for nothing."""
    said = following[..., -1]
    scores = laws.gather(3, said[:, :, None].expand(-1, -1, before.shape[2], -1))
    is_over = (before[..., -1] == end)[..., None]
    scores = torch.where(is_over, torch.where(said == end, 0.0, _NEVER)[:, :, None].to(scores.dtype), scores)
    fits = (before[:, :, :, None, 1:] == following[:, :, None, :, :-1]).all(-1)
    return scores.masked_fill(~(fits & is_kept[:, :-1, :, None] & is_kept[:, 1:, None]), _NEVER)
