"""Exact enumeration of the acceptors: the shipped code is run on every draft and every random outcome, and weighed.

Laws are tables of sixteenths, so that each uniform matters only through a few equal intervals: running the acceptor at
the middle of each interval integrates over it exactly. The result is compared with plain decoding's law to 1e-12.
Only the sampler's sources of chance are replaced; the acceptors are the ones that decode.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from outpace.accept import rejection, sample_and_match
from outpace.cache import Cache
from outpace.sampling import Law, Sampler, Sampling
from outpace.types import Decision, Proposal, Sampled, Scores, Stream, View

__all__ = ["check_match_chain", "check_match_tree", "check_rejection", "match_error", "rejection_error"]

VOCAB = 3
PARTS = 16  # target laws are multiples of 1/16
_DRAFT_PARTS = 4  # draft laws are 1/2, 1/4, 1/4, so that target / draft is a multiple of 1/8
_CELLS = 8  # equal intervals of an accept uniform
_MASK = (1 << 64) - 1
Table = Callable[[tuple[int, ...]], list[float]]


def target_table(text: tuple[int, ...]) -> list[float]:
    """Return the target's law after `text`: sixteenths that depend on all of it, zeros included."""
    code = sum((token + 1) * 5**i for i, token in enumerate(text)) + len(text)
    first = code * 7 % (PARTS - 1)
    second = code * 3 % (PARTS - first)
    return [first / PARTS, second / PARTS, (PARTS - first - second) / PARTS]


def draft_table(text: tuple[int, ...]) -> list[float]:
    """Return the drafter's law after `text`: 1/2 and two quarters, in an order that depends on the text."""
    law = [1 / _DRAFT_PARTS] * VOCAB
    law[(sum(text) + len(text)) % VOCAB] = 2 / _DRAFT_PARTS
    return law


def plain_law(length: int) -> Tensor:
    """Return plain decoding's law over texts of `length` tokens, [V, ..., V]."""
    law = torch.zeros([VOCAB] * length, dtype=torch.float64)
    for text in itertools.product(range(VOCAB), repeat=length):
        law[text] = _chance(target_table, (), text)
    return law


def _chance(table: Table, head: tuple[int, ...], tail: Sequence[int]) -> float:
    chance = 1.0
    for token in tail:
        chance *= table(head)[token]
        head = (*head, token)
    return chance


class _GridSampler(Sampler):
    """A sampler whose randomness is handed in: accept uniforms and picks as quantiles; final draws are only noted."""

    def __init__(self, quantiles: Tensor, is_parallel: bool = False) -> None:
        super().__init__(Sampling(temperature=1.0), [0] * quantiles.shape[0])
        self.quantiles, self.drawn, self._is_parallel = quantiles, torch.empty(0), is_parallel

    @property
    def is_parallel(self) -> bool:
        """Whether chains are matched at once or walked: both paths are enumerated."""
        return self._is_parallel

    def noise(self, stream: Stream, position: Tensor, visit: int = 0) -> Tensor:
        """Return keys whose uniform for id 0 is the quantile at that position (the mixing function is invertible)."""
        del visit
        if stream is not Stream.ACCEPT:
            return position
        wanted = self.quantiles.gather(1, position - 1)
        return torch.tensor([[_key_of(float(u)) for u in row] for row in wanted], dtype=torch.int64)

    def draw(self, law: Law, key: Tensor) -> Tensor:
        """Note the law that the last token is drawn from."""
        self.drawn = law.probs()
        return torch.zeros_like(key)

    def pick(self, logits: Tensor, position: Tensor, stream: Stream = Stream.TARGET, visit: int = 0) -> Tensor:
        """Draw by the inverse distribution function at the quantile of each position."""
        del stream, visit
        place = (position - 1).clamp(max=self.quantiles.shape[1] - 1)
        at = self.quantiles.gather(1, place.view(len(place), -1)).view(position.shape)
        return (logits.softmax(-1).cumsum(-1) < at.unsqueeze(-1)).sum(-1)


def _key_of(uniform: float) -> int:
    """Return the key for which `uniform(key, 0)` gives the number: splitmix64's finaliser backwards."""
    bits = int(uniform * 2**52) << 12
    bits = bits ^ (bits >> 31) ^ (bits >> 62)
    bits = bits * pow(0x94D049BB133111EB, -1, 1 << 64) & _MASK
    bits = bits ^ (bits >> 27) ^ (bits >> 54)
    bits = bits * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & _MASK
    bits = bits ^ (bits >> 30) ^ (bits >> 60)
    return bits - (1 << 64) if bits >> 63 else bits


def _grid(cells: int, dims: int) -> Tensor:
    """Return the middles of all boxes of a grid over the unit cube, [cells ** dims, dims]."""
    middles = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    return torch.cartesian_prod(*[middles] * dims).view(-1, dims)


def _view(sampler: Sampler, rows: int) -> View:
    # One token of text, so that position 1 is the first one drawn.
    return View([[0]] * rows, [1] * rows, [64] * rows, 0, Cache([], 1), sampler)


def _scores(paths: Sequence[tuple[int, ...]], rows: int) -> Scores:
    """Return logits after the root and after every node, given the tokens on the way to each."""
    laws = torch.tensor([target_table(()), *(target_table(path) for path in paths)], dtype=torch.float64)
    return Scores(laws.log().expand(rows, -1, -1))


def rejection_error(draft_len: int = 2) -> float:
    """Return the largest error of the rejection rule's law over texts of `draft_len + 1` tokens.

    Every chain of drafts is weighed by the drafter's law, every box of accept uniforms by its volume, the last token by
    the law it is drawn from, and what is still missing by plain decoding's.
    """
    length = draft_len + 1
    law = torch.zeros([VOCAB] * length, dtype=torch.float64)
    boxes = _grid(_CELLS, draft_len)
    for draft in itertools.product(range(VOCAB), repeat=draft_len):
        heads = [draft[:i] for i in range(draft_len)]
        probs = torch.tensor([draft_table(head) for head in heads], dtype=torch.float64)
        proposal = Proposal(
            torch.tensor(draft).repeat(len(boxes), 1),
            [draft_len] * len(boxes),
            law=Sampled(probs.expand(len(boxes), -1, -1)),
        )
        sampler = _GridSampler(boxes)
        scores = _scores([draft[: i + 1] for i in range(draft_len)], len(boxes))
        decision = rejection(proposal, scores, _view(sampler, len(boxes)))
        weight = _chance(draft_table, (), draft) / len(boxes)
        for num, last in zip(decision.num.tolist(), sampler.drawn, strict=True):
            for token in range(VOCAB):
                _add(law, (*draft[: num - 1], token), weight * float(last[token]))
    return float((law - plain_law(length)).abs().max())


def match_error(parent: Sequence[int], tokens: Sequence[int], depth: int, is_parallel: bool = False) -> float:
    """Return the largest error of sample and match on one tree, over texts of `depth + 1` tokens.

    Every box of pick quantiles is run; what is still missing is weighed by plain decoding's law.

    Args:
        parent: the tree, -1 = root.
        tokens: its nodes' tokens.
        depth: its depth.
        is_parallel: match a chain at once instead of walking it (the tree must be a chain then).
    """
    paths: list[tuple[int, ...]] = []
    for node, token in enumerate(tokens):
        paths.append(((*paths[parent[node]], token)) if parent[node] >= 0 else (token,))
    boxes = _grid(PARTS, depth + 1)
    rows = len(boxes)
    proposal = Proposal(
        torch.tensor(list(tokens)).repeat(rows, 1),
        [len(tokens)] * rows,
        parent=None if is_parallel else torch.tensor(list(parent)).repeat(rows, 1),
    )
    decision = sample_and_match(proposal, _scores(paths, rows), _view(_GridSampler(boxes, is_parallel), rows))
    _check_path(decision, tokens, parent)
    law = torch.zeros([VOCAB] * (depth + 1), dtype=torch.float64)
    texts = zip(decision.num.tolist(), decision.tokens.tolist(), strict=True)
    for text, count in Counter(tuple(written[:num]) for num, written in texts).items():
        _add(law, text, count / rows)
    return float((law - plain_law(depth + 1)).abs().max())


def _check_path(decision: Decision, tokens: Sequence[int], parent: Sequence[int]) -> None:
    """The path must name nodes that hold the written tokens, each the child of the one before; only the last is new."""
    if decision.path is None:
        return
    for num, written, path in zip(decision.num.tolist(), decision.tokens.tolist(), decision.path.tolist(), strict=True):
        above = -1
        for depth, node in enumerate(path[: num - 1]):
            assert tokens[node] == written[depth] and parent[node] == above, "The path does not lead along the text."
            above = node
        assert path[num - 1] == -1, "The last token is counted as a draft."


def _add(law: Tensor, text: tuple[int, ...], weight: float) -> None:
    """Add the weight of a text, extended by plain decoding's law to the full length."""
    for rest in itertools.product(range(VOCAB), repeat=law.dim() - len(text)):
        law[(*text, *rest)] += weight * _chance(target_table, text, rest)


def check_rejection() -> None:
    """The rejection rule keeps the target's law, exactly."""
    for draft_len in (1, 2):
        error = rejection_error(draft_len)
        assert error < 1e-12, f"Rejection with {draft_len} drafts is off by {error:.3g}."


def check_match_chain() -> None:
    """Sample and match keeps the target's law on every chain of two drafts, walked or at once."""
    for is_parallel in (False, True):
        for tokens in itertools.product(range(VOCAB), repeat=2):
            error = match_error((-1, 0), tokens, 2, is_parallel)
            assert error < 1e-12, f"Sample and match on the chain {tokens} is off by {error:.3g}."


def check_match_tree() -> None:
    """Sample and match keeps the target's law on trees: bushy, lopsided, siblings last."""
    trees = (
        ((-1, -1, 0, 0, 1), (0, 2, 1, 2, 0)),
        ((-1, 0, -1, 2), (1, 1, 0, 2)),
        ((-1, -1, -1), (2, 0, 1)),
    )
    for parent, tokens in trees:
        depth = 2 if any(above >= 0 for above in parent) else 1
        error = match_error(parent, tokens, depth)
        assert error < 1e-12, f"Sample and match on the tree {parent} is off by {error:.3g}."
