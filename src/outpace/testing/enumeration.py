"""Exact enumeration of the acceptors: the shipped code is run on every draft and every random outcome, and weighed.

The rules that test drafts are run on both outcomes of every test, each with its chance; the last token is weighed by
the law that it would be drawn from. Sample and match draws through quantiles: its laws are tables of sixteenths, so
that each quantile matters only through a few equal intervals, and running it at the middle of each integrates exactly.
The result is compared with plain decoding's law to 1e-12. Only the sampler's sources of chance are replaced; the
acceptors are the ones that decode.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outpace import accept as rules
from outpace.cache import Cache
from outpace.methods.base import Method
from outpace.sampling import Law, Sampler, Sampling
from outpace.types import Decision, Proposal, Sampled, Scores, Stream, View

__all__ = [
    "Enumerated", "check_match_chain", "check_match_tree", "check_rule", "enumerate_rule", "match_error", "rule_checks",
    "rule_error",
]  # fmt: skip

VOCAB = 3
PARTS = 16  # target laws are multiples of 1/16
Table = Callable[[tuple[int, ...]], list[float]]
Accept = Callable[[Proposal, Scores, View], Decision]
CHAINS = ((-1,), (-1, 0))
# Parents of each node: siblings, chains side by side, a lopsided tree, one child and two.
TREES = ((-1, -1, -1), (-1, -1, 0, 1), (-1, 0, -1, 0), (-1, -1, 0, 1, 1))


def target_table(text: tuple[int, ...]) -> list[float]:
    """Return the target's law after `text`: sixteenths that depend on all of it, zeros included."""
    code = 1 + sum((token + 1) * 5**i for i, token in enumerate(text)) + len(text)
    first = code * 7 % (PARTS - 1)
    second = code * 3 % (PARTS - first)
    return [first / PARTS, second / PARTS, (PARTS - first - second) / PARTS]


def draft_table(text: tuple[int, ...]) -> list[float]:
    """Return the drafter's law after `text`: 1/2 and two quarters, in an order that depends on the text."""
    law = [1 / 4] * VOCAB
    law[(sum(text) + len(text)) % VOCAB] = 2 / 4
    return law


def narrow_table(text: tuple[int, ...]) -> list[float]:
    """Return the law of a drafter that never draws one of the tokens: 7/10, 3/10 and 0."""
    law = [0.7, 0.3, 0.0]
    turn = (sum(text) + 2 * len(text)) % VOCAB
    return law[turn:] + law[:turn]


def plain_law(length: int, table: Table = target_table) -> Tensor:
    """Return plain decoding's law over texts of `length` tokens, [V, ..., V]."""
    law = torch.zeros([VOCAB] * length, dtype=torch.float64)
    for text in itertools.product(range(VOCAB), repeat=length):
        law[text] = _chance(table, (), text)
    return law


def _chance(table: Table, head: tuple[int, ...], tail: Sequence[int]) -> float:
    chance = 1.0
    for token in tail:
        chance *= table(head)[token]
        head = (*head, token)
    return chance


class _GridSampler(Sampler):
    """A sampler whose picks are handed in as quantiles."""

    def __init__(self, quantiles: Tensor, is_parallel: bool = False) -> None:
        super().__init__(Sampling(temperature=1.0), [0] * quantiles.shape[0])
        self.quantiles, self._is_parallel = quantiles, is_parallel

    @property
    def is_parallel(self) -> bool:
        """Whether chains are matched at once or walked: both paths are enumerated."""
        return self._is_parallel

    def pick(
        self,
        logits: Tensor,
        position: Tensor,
        stream: Stream = Stream.TARGET,
        visit: int | Sequence[int] = 0,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Draw by the inverse distribution function at the quantile of each position."""
        del stream, visit, ids
        place = (position - 1).clamp(max=self.quantiles.shape[1] - 1)
        at = self.quantiles.gather(1, place.view(len(place), -1)).view(position.shape)
        return (logits.softmax(-1).cumsum(-1) < at.unsqueeze(-1)).sum(-1)


class _CoinSampler(Sampler):
    """A sampler whose tests come out as told, each row weighed by the chance of that; last draws are only noted.

    Args:
        outcomes: [rows, tests] bool; each test that is made takes the next column.
        settings: whose law is enumerated.
    """

    def __init__(self, outcomes: Tensor, settings: Sampling) -> None:
        rows, tests = outcomes.shape
        super().__init__(settings, [0] * rows)
        self.outcomes, self.drawn = outcomes, torch.empty(0)
        # Outcomes of tests that are never made must not be counted twice, hence halves.
        self.weight = torch.full((rows,), 0.5**tests, dtype=torch.float64)
        self._seen: set[int] = set()

    def rows(self, index: Sequence[int]) -> Sampler:
        """Return a plain sampler: what is asked of it are histories."""
        return Sampler(self.settings, [0] * len(index))

    def accepts(self, chance: Tensor, position: Tensor) -> Tensor:
        """Return what was told, and weigh it."""
        assert bool((position == position[:1]).all()), "Rows with one text name their tests differently."
        numbers = position[0].flatten().tolist()
        assert len({*numbers} | self._seen) == len(numbers) + len(self._seen), "Two tests share their noise."
        outcome = self.outcomes[:, len(self._seen) : len(self._seen) + len(numbers)].view(chance.shape)
        self._seen |= {*numbers}
        share = chance.nan_to_num(0).clamp(0, 1)
        self.weight *= (2 * torch.where(outcome, share, 1 - share)).flatten(1).prod(1)
        return outcome

    def draw(self, law: Law, key: Tensor) -> Tensor:
        """Note the law that the last token is drawn from."""
        self.drawn = law.probs()
        return torch.zeros_like(key)


def _grid(cells: int, dims: int) -> Tensor:
    """Return the middles of all boxes of a grid over the unit cube, [cells ** dims, dims]."""
    middles = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    return torch.cartesian_prod(*[middles] * dims).view(-1, dims)


def _view(sampler: Sampler, rows: int) -> View:
    # One token of text, so that position 1 is the first one drawn.
    return View([[0]] * rows, [1] * rows, [64] * rows, 0, Cache([], 1), sampler)


def _paths(parent: Sequence[int], tokens: Sequence[int]) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = []
    for above, token in zip(parent, tokens, strict=True):
        paths.append((*paths[above], token) if above >= 0 else (token,))
    return paths


@dataclass(frozen=True, slots=True)
class Enumerated:
    """What a rule does on one shape of drafts.

    Attributes:
        law: [V, ..., V] of the written texts, one token longer than the shape is deep.
        error: its largest difference from plain decoding's.
        accepted: mean number of accepted drafts.
    """

    law: Tensor
    error: float
    accepted: float


def enumerate_rule(
    accept: Accept,
    parent: Sequence[int],
    *,
    is_chain: bool = False,
    has_replacement: bool = True,
    draft: Table = draft_table,
    penalty: float = 0.0,
) -> Enumerated:
    """Run a rule on every draft and every outcome of its tests.

    Args:
        accept: the rule.
        parent: the tree, -1 = root.
        is_chain: hand the drafts over as a chain (the tree must be one).
        has_replacement: whether siblings are drawn independently.
        draft: the drafter's law.
        penalty: presence penalty on tokens of the text, drafts included.
    """
    settings = Sampling(temperature=1.0, presence_penalty=penalty)
    drafts = _drafts(parent, has_replacement, draft)
    outcomes = torch.tensor(list(itertools.product((False, True), repeat=len(parent))))
    count, rows = len(outcomes), len(outcomes) * len(drafts)
    paths = [_paths(parent, tokens) for tokens, _ in drafts]
    proposal = Proposal(
        torch.tensor([tokens for tokens, _ in drafts]).repeat_interleave(count, 0),
        [len(parent)] * rows,
        parent=None if is_chain else torch.tensor(list(parent)).expand(rows, -1),
        law=Sampled(_tables(draft, parent, paths).repeat_interleave(count, 0), has_replacement),
    )
    target = torch.tensor([[target_table(path) for path in [(), *nodes]] for nodes in paths], dtype=torch.float64)
    sampler = _CoinSampler(outcomes.repeat(len(drafts), 1), settings)
    decision = accept(proposal, Scores(target.log().repeat_interleave(count, 0)), _view(sampler, rows))
    _check_paths(decision, proposal)
    chances = torch.tensor([chance for _, chance in drafts], dtype=torch.float64)
    weight = sampler.weight * chances.repeat_interleave(count)
    table, length = _penalised(penalty), 1 + max(len(path) for path in paths[0])
    law = _law_of_texts(decision, weight, sampler.drawn, length, table)
    error = float((law - plain_law(length, table)).abs().max())
    return Enumerated(law, error, float((weight * (decision.num - 1)).sum()))


def _law_of_texts(decision: Decision, weight: Tensor, last: Tensor, length: int, table: Table) -> Tensor:
    """Return the law of texts of `length` tokens: rows are weighed, their last token has a law [rows, V]."""
    law = torch.zeros([VOCAB] * length, dtype=torch.float64)
    for drafts in range(length):
        at = (decision.num == drafts + 1) & (weight > 0)
        code = (decision.tokens[at, :drafts] * VOCAB ** torch.arange(drafts - 1, -1, -1)).sum(-1)
        sums = torch.zeros(VOCAB**drafts, VOCAB, dtype=torch.float64)
        sums.index_add_(0, code, weight[at].unsqueeze(1) * last[at])
        for head, chances in zip(itertools.product(range(VOCAB), repeat=drafts), sums.tolist(), strict=True):
            for token, chance in enumerate(chances):
                _add(law, (*head, token), chance, table)
    return law


def rule_error(accept: Accept, parent: Sequence[int], **arguments: bool | float | Table) -> float:
    """Return the largest error of a rule's law; the arguments are those of `enumerate_rule`."""
    return enumerate_rule(accept, parent, **arguments).error  # type: ignore[arg-type]


def _penalised(penalty: float) -> Table:
    """Return the target's law under a presence penalty, written as one would on a blackboard."""

    def table(text: tuple[int, ...]) -> list[float]:
        law = [p * math.exp(-penalty * (token in text)) for token, p in enumerate(target_table(text))]
        return [p / sum(law) for p in law]

    return table


def _drafts(parent: Sequence[int], has_replacement: bool, table: Table) -> list[tuple[tuple[int, ...], float]]:
    """Return every way to draw a tree's tokens, and its chance."""
    found: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    for node, above in enumerate(parent):
        longer = []
        for tokens, chance in found:
            law = table(_paths(parent[:node], tokens)[above] if above >= 0 else ())
            if not has_replacement:
                siblings = {tokens[other] for other in range(node) if parent[other] == above}
                rest = [0.0 if token in siblings else p for token, p in enumerate(law)]
                # Where nothing likely is left, the drafter hands over tokens that it could not have drawn.
                spare = [0.0 if token in siblings else 1.0 for token in range(VOCAB)]
                law = [p / sum(rest) for p in rest] if sum(rest) > 0 else [p / sum(spare) for p in spare]
            longer += [((*tokens, token), chance * p) for token, p in enumerate(law) if p > 0]
        found = longer
    return found


def _tables(table: Table, parent: Sequence[int], paths: Sequence[Sequence[tuple[int, ...]]]) -> Tensor:
    """Return the law that each node was drawn from, before any removal, [drafts, W, V]."""
    heads = [[nodes[above] if above >= 0 else () for above in parent] for nodes in paths]
    return torch.tensor([[table(head) for head in nodes] for nodes in heads], dtype=torch.float64)


def _check_paths(decision: Decision, proposal: Proposal) -> None:
    """The path must name nodes that hold the written tokens, each the child of the one before; only the last is new."""
    if decision.path is None:
        return
    parent = proposal.parent
    if parent is None:
        parent = torch.arange(-1, proposal.tokens.shape[1] - 1).expand_as(proposal.tokens)
    order = torch.arange(decision.path.shape[1])
    is_draft, path = order < decision.num.unsqueeze(1) - 1, decision.path.clamp(min=0)
    assert bool((is_draft == (decision.path >= 0)).all()), "The last token is counted as a draft, or a draft is not."
    held = proposal.tokens.gather(1, path)
    assert bool((held == decision.tokens)[is_draft].all()), "The path's nodes do not hold the written tokens."
    above = torch.nn.functional.pad(decision.path, (1, 0), value=-1)[:, :-1]
    assert bool((parent.gather(1, path) == above)[is_draft].all()), "The path does not lead along the tree."


def match_error(parent: Sequence[int], tokens: Sequence[int], depth: int, is_parallel: bool = False) -> float:
    """Return the largest error of sample and match on one tree, over texts of `depth + 1` tokens.

    Every box of pick quantiles is run; what is still missing is weighed by plain decoding's law.

    Args:
        parent: the tree, -1 = root.
        tokens: its nodes' tokens.
        depth: its depth.
        is_parallel: match a chain at once instead of walking it (the tree must be a chain then).
    """
    boxes = _grid(PARTS, depth + 1)
    rows = len(boxes)
    proposal = Proposal(
        torch.tensor(list(tokens)).repeat(rows, 1),
        [len(tokens)] * rows,
        parent=None if is_parallel else torch.tensor(list(parent)).repeat(rows, 1),
    )
    laws = [target_table(path) for path in ((), *_paths(parent, tokens))]  # after the root and after every node
    scores = Scores(torch.tensor(laws, dtype=torch.float64).log().expand(rows, -1, -1))
    decision = rules.sample_and_match(proposal, scores, _view(_GridSampler(boxes, is_parallel), rows))
    _check_paths(decision, proposal)
    last = decision.tokens.gather(1, decision.num.unsqueeze(1) - 1)[:, 0]
    drawn = torch.nn.functional.one_hot(last, VOCAB).double()
    weight = torch.full((rows,), 1 / rows, dtype=torch.float64)
    law = _law_of_texts(decision, weight, drawn, depth + 1, target_table)
    return float((law - plain_law(depth + 1)).abs().max())


def _add(law: Tensor, text: tuple[int, ...], weight: float, table: Table) -> None:
    """Add the weight of a text, extended by plain decoding's law to the full length."""
    if weight == 0:
        return
    for rest in itertools.product(range(VOCAB), repeat=law.dim() - len(text)):
        law[(*text, *rest)] += weight * _chance(table, text, rest)


# What each rule is tested on: chains or trees, and whether siblings may be drawn independently, or must not repeat.
# Rules are looked up when a check runs, so that it sees a fault that was planted in one.
_RULES: tuple[tuple[str, bool, tuple[bool, ...]], ...] = (
    ("rejection", True, (True,)),
    ("block_verification", True, (True,)),
    ("multi_candidate", False, (True, False)),
    ("spectr", False, (True,)),
    ("traversal_verification", False, (True, False)),
)


def rule_checks() -> list[Callable[[], None]]:
    """Return the enumerations of all rules, each well below a second: every rule keeps the target's law, exactly."""
    return [check_match_chain, check_match_tree, *itertools.starmap(_rule_check, _RULES)]


def _rule_check(name: str, is_chain: bool, replacements: Sequence[bool]) -> Callable[[], None]:
    def check() -> None:
        for has_replacement in replacements:
            _check(getattr(rules, name), is_chain, has_replacement)

    check.__name__ = f"check_{name}"
    return check


def check_rule(method: Method) -> None:
    """A method's rule keeps the target's law, exactly: on chains, or on trees, with penalties and narrow drafters."""
    shape = getattr(method, "shape", None)
    _check(
        lambda proposal, scores, view: method.accept(proposal, scores, view, None),
        is_chain=not method.needs.has_tree,
        has_replacement=shape is None or shape.has_replacement,
    )


def _check(accept: Accept, is_chain: bool, has_replacement: bool) -> None:
    for parent in CHAINS if is_chain else TREES:
        for draft, penalty in ((draft_table, 0.0), (narrow_table, 0.5)):
            error = rule_error(
                accept, parent, is_chain=is_chain, has_replacement=has_replacement, draft=draft, penalty=penalty
            )
            assert error < 1e-12, f"On drafts of shape {tuple(parent)} the law is off by {error:.3g}."


def check_match_chain() -> None:
    """Sample and match keeps the target's law on every chain of two drafts, walked or at once."""
    for is_parallel in (False, True):
        for tokens in itertools.product(range(VOCAB), repeat=2):
            _check_match((-1, 0), tokens, 2, is_parallel)


def check_match_tree() -> None:
    """Sample and match keeps the target's law on trees: bushy, lopsided, siblings last."""
    _check_match((-1, -1, 0, 0, 1), (0, 2, 1, 2, 0), 2)
    _check_match((-1, 0, -1, 2), (1, 1, 0, 2), 2)
    _check_match((-1, -1, -1), (2, 0, 1), 1)


def _check_match(parent: Sequence[int], tokens: Sequence[int], depth: int, is_parallel: bool = False) -> None:
    error = match_error(parent, tokens, depth, is_parallel)
    assert error < 1e-12, f"Sample and match on {tokens}, drafted as {parent}, is off by {error:.3g}."
