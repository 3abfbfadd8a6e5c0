"""Drafting with some of the target's own layers: which to leave out, how well that matches, and the drafts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.draft.memory import Memory
from outpace.draft.model import draft_chain
from outpace.draft.reading import Drafter, branch_scores, forward_pending, read_texts
from outpace.run.layout import lay_out
from outpace.run.prefill import no_nodes
from outpace.sampling import row_key, uniform
from outpace.sampling.noise import node_key
from outpace.types import Adapter, Context, Counter, Proposal, Stream, View

__all__ = [
    "LayerMemory",
    "LayerSearch",
    "SearchPlan",
    "SelfDrafter",
    "draft_comb",
    "draft_combs",
    "match_rates",
    "spread_layers",
    "upper_bounds",
]

_ALL_SETS = 512  # up to so many layer sets are listed, beyond them sets are drawn
_SHARES = ((0.95, 0.1), (0.8, 0.3), (0.5, 0.5), (-1.0, 1.0))  # share of the branches where the drafter is this sure


def spread_layers(layers: int, count: int) -> tuple[int, ...]:
    """Return `count` layers, evenly spread, sparing the first and the last (they matter most)."""
    count = min(count, max(0, layers - 2))
    return tuple(sorted({1 + round((i + 0.5) * (layers - 2) / count - 0.5) for i in range(count)}))


@dataclass(frozen=True, slots=True)
class SelfDrafter:
    """The target as its own drafter, some layers left out, on a fork of its own cache: there is nothing to roll back.

    Attributes:
        target: the model.
        counter: where drafting is counted.
        skip: layers left out.
    """

    target: Adapter
    counter: Counter
    skip: tuple[int, ...] = ()

    @staticmethod
    def begin(context: Context, skip: tuple[int, ...] = ()) -> SelfDrafter:
        """Return the target with layers left out, its drafting counted apart."""
        return SelfDrafter(context.target, context.counters["draft"], skip)

    def reach(self, view: View, lengths: Sequence[int]) -> list[int]:
        """Return how many tokens each row may draft in the target's own cache and context."""
        most = min(view.cache.capacity, self.target.capabilities.max_positions)
        rows = zip(lengths, view.room, view.lengths, strict=True)
        return [max(0, min(length, room - 1, most - held)) for length, room, held in rows]

    def chain(self, view: View, reach: Sequence[int], origin: str, min_confidence: float) -> Proposal:
        """Draft a chain per row, as `draft_chain`."""
        fork = view.cache.fork(self.counter)
        options: dict[str, Any] = {"origin": origin, "min_confidence": min_confidence}
        return draft_chain(Drafter(self.target, fork, skip=self.skip), view, reach, **options)


class LayerSearch:
    """One row's search for the layers to leave out.

    Sets are drawn at random, and now and then chosen by the upper confidence bound of a Gaussian process over those
    tried. The sequence is the same for every row, so that rows side by side share forwards.

    Args:
        layers: of the target.
        count: layers left out; never the first or the last.

    Attributes:
        best: the set in use.
        best_score: its score, -1 before any was tried.
        tried: the score of every set tried.
        since_best: sets tried since the best was found.
    """

    def __init__(self, layers: int, count: int) -> None:
        self.layers, self.count = layers, count
        self.best, self.best_score = spread_layers(layers, count), -1.0
        self.tried: dict[tuple[int, ...], float] = {}
        self.since_best = 0

    def copy(self) -> LayerSearch:
        """Return an independent copy (a forked row, or one that goes on from a memory)."""
        other = LayerSearch(self.layers, self.count)
        vars(other).update(vars(self))
        other.tried = dict(self.tried)
        return other

    @property
    def is_exhausted(self) -> bool:
        """Whether every set was tried."""
        return len(self.tried) >= math.comb(self.layers - 2, self.count)

    def suggest(self, is_bayes: bool) -> tuple[int, ...]:
        """Return the next set to try: the evenly spread one first, then a random one, or the most promising."""
        if self.best not in self.tried:
            return self.best
        # A Gaussian process needs points to choose from, a random step needs one.
        pool = self._untried(_ALL_SETS // 2 if is_bayes else 1)
        if not is_bayes:
            return pool[0]
        known = self._members(list(self.tried))
        scores = torch.tensor(list(self.tried.values()), dtype=torch.float64)
        return pool[int(upper_bounds(known, scores, self._members(pool)).argmax())]

    def note(self, skip: tuple[int, ...], score: float) -> None:
        """Take in how well a set matched; the better one stays in use."""
        self.tried[skip] = score
        self.since_best += 1
        if score > self.best_score:
            self.best, self.best_score, self.since_best = skip, score, 0

    def _untried(self, most: int) -> list[tuple[int, ...]]:
        """Return sets not tried yet, in random order."""
        middle, key = range(1, self.layers - 1), self._key(0)
        # Few sets: list those that are left, in an order that depends on how many were tried, so that every row of a
        # batch that has tried as many tries the same next and shares its forward.
        if math.comb(len(middle), self.count) <= _ALL_SETS:
            left = [chosen for chosen in itertools.combinations(middle, self.count) if chosen not in self.tried]
            order = uniform(key, torch.arange(len(left)))[0].argsort().tolist()
            return [left[at] for at in order[:most]]
        # Many sets: draw until enough new ones are found, or chance runs dry.
        found: dict[tuple[int, ...], None] = {}
        for visit in itertools.count(1):
            noise = uniform(self._key(visit), torch.arange(len(middle)))[0]
            chosen = tuple(sorted(1 + at for at in noise.argsort()[: self.count].tolist()))
            if chosen not in self.tried:
                found[chosen] = None
            if len(found) == most or visit > 4 * most + 64:
                break
        return list(found)

    def _key(self, visit: int) -> Tensor:
        return node_key([row_key(0)], Stream.ORDER, torch.tensor([len(self.tried)]), visit)

    def _members(self, sets: Sequence[tuple[int, ...]]) -> Tensor:
        """Return [N, layers] float64, 1 where a layer is in the set."""
        table = torch.zeros(len(sets), self.layers, dtype=torch.float64)
        return table.scatter_(1, torch.tensor(sets, dtype=torch.int64).view(len(sets), -1), 1.0)


def upper_bounds(known: Tensor, scores: Tensor, asked: Tensor, noise: float = 1e-2, width: float = 2.5) -> Tensor:
    """Return mean + width x deviation of a Gaussian process at some points, in units of the scores' deviation.

    Args:
        known: [N, D] points tried.
        scores: [N] float64, one each.
        asked: [P, D] points.
        noise: variance of a score, in the same units.
        width: how much the unknown is worth.
    """
    # Sets of one size lie at distances up to sqrt(2 x size): the kernel's scale follows the size.
    scale = (float(known.sum(-1).mean()) or 1.0) ** 0.5
    deviation = scores.std(unbiased=False).clamp(min=1e-6)
    factor = torch.linalg.cholesky(_matern(known, known, scale) + noise * torch.eye(len(known), dtype=known.dtype))
    across = _matern(known, asked, scale)
    weights = torch.cholesky_solve(((scores - scores.mean()) / deviation).unsqueeze(1), factor)
    mean: Tensor = (across * weights).sum(0)
    variance: Tensor = (1 - torch.linalg.solve_triangular(factor, across, upper=False).square().sum(0)).clamp(min=0)
    return mean + width * variance.sqrt()


def _matern(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return the Matern kernel of order 5/2 between two sets of points."""
    far: Tensor = 5**0.5 * torch.cdist(left, right) / scale
    return (1 + far + far.square() / 3) * (-far).exp()


class LayerMemory(Memory):
    """What outlives a run: the furthest search so far, from which later rows go on."""

    def __init__(self) -> None:
        super().__init__()
        self.search: LayerSearch | None = None

    def begin(self, layers: int, count: int) -> LayerSearch:
        """Return the search that a new row goes on with."""
        known = self.search
        is_same = known is not None and (known.layers, known.count) == (layers, count)
        return known.copy() if known is not None and is_same else LayerSearch(layers, count)

    def learn(self, search: LayerSearch) -> None:
        """Keep a search that has come further than the one known."""
        known = self.search
        is_other = known is None or (known.layers, known.count) != (search.layers, search.count)
        if known is None or is_other or len(search.tried) > len(known.tried):
            self.search = search.copy()


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """How rows search for the layers to leave out.

    Attributes:
        context: written tokens that a set is scored on; the search begins when there are as many.
        bayes_interval: every so many sets, the most promising one is tried instead of a random one.
        max_score: the search ends when a set matches this share of the tokens,
        patience: or after so many sets without a better one,
        most_sets: or after so many sets.
    """

    context: int
    bayes_interval: int
    max_score: float
    patience: int
    most_sets: int

    def is_over(self, search: LayerSearch) -> bool:
        """Return whether a row has searched enough."""
        return (
            search.best_score >= self.max_score
            or search.since_best >= self.patience
            or len(search.tried) >= self.most_sets
            or search.is_exhausted
        )

    def advance(
        self, drafter: SelfDrafter, view: View, searches: Sequence[LayerSearch], memory: LayerMemory | None
    ) -> None:
        """Try one more set of layers for every row that still searches; rows that try the same share a forward."""
        due: dict[tuple[int, ...], list[int]] = {}
        for row, search in enumerate(searches):
            if view.lengths[row] - view.prompts[row] >= self.context and not self.is_over(search):
                is_bayes = (len(search.tried) + 1) % self.bayes_interval == 0
                due.setdefault(search.suggest(is_bayes), []).append(row)
        for skip, rows in due.items():
            rates = match_rates(drafter.target, drafter.counter, view, skip, self.context)
            for row in rows:
                searches[row].note(skip, rates[row])
                if memory is not None:
                    memory.learn(searches[row])


def match_rates(target: Adapter, counter: Counter, view: View, skip: Sequence[int], context: int) -> list[float]:
    """Return per row the share of its last `context` tokens that the target writes again with layers left out.

    One forward, with the noise that the tokens were drawn with: it is the share that would have been accepted.

    Args:
        target: the model.
        counter: where the forward is counted.
        view: the run; its cache holds every token but the last of each row.
        skip: layers left out.
        context: tokens looked at; fewer in a text that is shorter.
    """
    # 1 Step back by `context` tokens, so that these are forwarded again without the layers.
    size = [min(context, length - 1) for length in view.lengths]
    starts = [length - 1 - n for length, n in zip(view.lengths, size, strict=True)]
    pieces = [text[-n - 1 : -1] for text, n in zip(view.texts, size, strict=True)]
    # 2 The forward would write over the target's own entries of those tokens.
    with view.cache.aside(starts, max(size), counter) as fork:
        layout = lay_out(pieces, fork.lengths, no_nodes(len(pieces), fork.device))
        logits = target.score(layout.tokens, layout.position, layout.visible, fork, skip=skip).logits
    # 3 A hit is what would have been accepted: the same token under the noise that it was drawn with.
    drawn = view.sampler.pick(view.sampler.process(logits, None), layout.position + 1).tolist()
    rates = []
    for text, n, picks in zip(view.texts, size, drawn, strict=True):
        hits = sum(ours == theirs for ours, theirs in zip(picks, text[len(text) - n :], strict=False))
        rates.append(hits / max(1, n))
    return rates


def draft_comb(
    target: Adapter,
    cache: Cache,
    view: View,
    lengths: Sequence[int],
    *,
    skip: Sequence[int],
    min_confidence: float,
    branches: int,
) -> list[list[tuple[int, int]]]:
    """Draft a chain per row, with the runners-up of every token beside it as leaves, the more the less sure it is.

    Args:
        target: the model.
        cache: a fork of its cache.
        view: the run.
        lengths: most tokens of the chain per row; 0 = nothing.
        skip: layers left out.
        min_confidence: a row stops behind a token that is less likely to be picked than this.
        branches: most candidates for a token, the chain's own included.

    Returns:
        Per row (token, parent) of each node, -1 = the last final token; parents precede children.
    """
    logits = read_texts(target, cache, view, lengths, skip)
    history = view.sampler.history(view.texts, view.prompts, logits.shape[-1])
    nodes: list[list[tuple[int, int]]] = [[] for _ in lengths]
    above, texts = [-1] * len(lengths), [list(text) for text in view.texts]
    running = [length > 0 for length in lengths]
    for step in range(max(lengths)):
        # 1 Score all tokens as the target would pick them; the best one lengthens the chain.
        place = torch.tensor([[length + step] for length in view.lengths], device=logits.device)
        scores, tokens = _best(branch_scores(view, logits.unsqueeze(1), place, history)[:, 0], branches)
        sure, found = scores[:, 0].exp().tolist(), tokens.tolist()
        # 2 Hang it, and its runners-up, on the chain's last token: the less sure, the more of them.
        for row in [row for row, is_on in enumerate(running) if is_on]:
            parent, above[row] = above[row], len(nodes[row])
            nodes[row] += [(token, parent) for token in found[row][: _candidates(sure[row], branches)]]
            texts[row].append(found[row][0])
            if history is not None:
                history.push([one[0] for one in found], [row])
            running[row] = sure[row] >= min_confidence and step + 1 < lengths[row]
        if not any(running):
            break
        # 3 Forward the chain's token alone: leaves are looked at by the target, never by the drafter.
        rows = zip(texts, cache.lengths, running, strict=True)
        logits = forward_pending(target, cache, [text if is_on else text[:held] for text, held, is_on in rows], skip)
    return nodes


def draft_combs(
    drafter: SelfDrafter,
    view: View,
    lengths: Sequence[int],
    searches: Sequence[LayerSearch],
    *,
    min_confidence: float,
    branches: int,
) -> list[list[tuple[int, int]]]:
    """Draft with the best layers of each row's search, as `draft_comb`; one pass per set of layers in use."""
    nodes: list[list[tuple[int, int]]] = [[] for _ in lengths]
    drafting = zip(lengths, searches, strict=True)
    for skip in {search.best: None for length, search in drafting if length > 0}:
        own = [n if search.best == skip else 0 for n, search in zip(lengths, searches, strict=True)]
        fork = view.cache.fork(drafter.counter)
        found = draft_comb(drafter.target, fork, view, own, skip=skip, min_confidence=min_confidence, branches=branches)
        nodes = [new or old for new, old in zip(found, nodes, strict=True)]
    return nodes


def _best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest scores and their tokens, [B, count]; of equals a lone one is the first, as in a pick."""
    if count == 1:
        return scores.max(-1, keepdim=True)
    return scores.topk(min(count, scores.shape[-1]), dim=-1)


def _candidates(sure: float, branches: int) -> int:
    share = next(share for limit, share in _SHARES if not sure <= limit)
    return max(1, math.ceil(share * branches))
