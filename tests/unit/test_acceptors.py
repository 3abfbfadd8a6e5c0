"""Rules for sampled drafts on numbers worked out by hand, and what each accepts beside the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from outpace.accept import (
    block_verification,
    match,
    multi_candidate,
    rejection,
    sample_and_match,
    spectr,
    traversal_verification,
    typical_acceptance,
)
from outpace.accept.spectr import division_factor
from outpace.cache import Cache
from outpace.errors import ConfigError
from outpace.sampling import Sampler, Sampling, row_key
from outpace.testing.enumeration import enumerate_rule
from outpace.types import Decision, Proposal, Sampled, Scores, View

RULES = [rejection, block_verification, multi_candidate, spectr, traversal_verification]
TREE_RULES = [multi_candidate, spectr, traversal_verification]
Rule = Callable[[Proposal, Scores, View], Decision]


class Told(Sampler):
    """Tests come out by comparing their chance with one number; the law of the last token is noted."""

    def __init__(self, rows: int, level: float, temperature: float = 1.0) -> None:
        super().__init__(Sampling(temperature=temperature), [row_key(0, i) for i in range(rows)])
        self.level, self.chances = level, list[list[float]]()

    def accepts(self, chance: Tensor, position: Tensor) -> Tensor:
        self.chances.append(chance.flatten().tolist())
        return chance > self.level

    def draw(self, law: object, key: Tensor) -> Tensor:
        self.law = law.probs()  # type: ignore[attr-defined]
        return torch.zeros_like(key)


def step(
    rule: Rule,
    target: list[list[float]],
    draft: list[list[float]],
    tokens: list[int],
    parent: list[int] | None = None,
    level: float = 0.5,
    has_replacement: bool = True,
) -> tuple[Decision, Told]:
    """Run a rule on one row; `target` holds the laws after the root and after each node."""
    sampler = Told(1, level)
    law = Sampled(torch.tensor([draft], dtype=torch.float64), has_replacement)
    above = None if parent is None else torch.tensor([parent])
    proposal = Proposal(torch.tensor([tokens]), [len(tokens)], above, law=law)
    view = View([[0]], [1], [64], 0, Cache([], 1), sampler)
    return rule(proposal, Scores(torch.tensor([target], dtype=torch.float64).log()), view), sampler


def near(got: Tensor, wanted: list[float]) -> bool:
    return torch.allclose(got[0], torch.tensor(wanted, dtype=torch.float64), atol=1e-12)


P, Q = [0.2, 0.5, 0.3], [0.5, 0.25, 0.25]


def test_multi_candidate_by_hand() -> None:
    # Token 0 has ratio 0.4 and fails; (p - q)+ = (0, 0.25, 0.05) becomes (0, 5/6, 1/6). With replacement, token 2 has
    # ratio (1/6) / (1/4) = 2/3 and passes.
    decision, seen = step(multi_candidate, [P, P, P], [Q, Q], [0, 2], [-1, -1])
    assert seen.chances[0] == pytest.approx([0.4]) and seen.chances[1] == pytest.approx([2 / 3])
    assert decision.num.tolist() == [2] and decision.path is not None and decision.path[0, 0] == 1
    # Without replacement, token 2 was drawn from (0, 1/2, 1/2): ratio 1/3, which fails. What is left is
    # (5/6 - 1/2, 0) = token 1 alone.
    decision, seen = step(multi_candidate, [P, P, P], [Q, Q], [0, 2], [-1, -1], has_replacement=False)
    assert seen.chances[1] == pytest.approx([1 / 3])
    assert decision.num.tolist() == [1] and decision.is_recovered is not None and bool(decision.is_recovered[0])
    assert near(seen.law, [0, 1, 0])


def test_equal_siblings_are_stood_on_at_once() -> None:
    # Both chains begin with token 1, which passes; the second chain's next token is a candidate as well.
    laws = [P, P, P, P, P]
    decision, _ = step(multi_candidate, laws, [Q] * 4, [1, 1, 0, 1], [-1, -1, 0, 1])
    assert decision.num.tolist() == [3]
    assert decision.path is not None and decision.path[0, :3].tolist() == [1, 3, -1]
    decision, _ = step(spectr, laws, [Q] * 4, [1, 1, 0, 1], [-1, -1, 0, 1], level=0.3)
    assert decision.num.tolist() == [3]


def test_k_seq_by_hand() -> None:
    target, draft = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.5, 0.5]]).double()
    # beta(rho) = min(1/2, 1/rho), so at k = 2 and rho <= 2: 1 - 1/4 = rho / 2, rho = 3/2.
    factor = division_factor(target, draft, torch.tensor([[2]]))
    assert float(factor) == pytest.approx(1.5, abs=1e-9)
    assert float(division_factor(target, draft, torch.tensor([[1]]))) == 1
    assert float(division_factor(draft, draft, torch.tensor([[5]]))) == pytest.approx(1, abs=1e-2)


def most_accepted(target: list[float], draft: list[float], number: int) -> float:
    """Return the optimum of the transport problem between `number` independent drafts and the target.

    The plan maximises the mass that goes from lists of drafts to a token on them. By the duality of flows and cuts that
    is the least, over sets of tokens, of the target's mass on the set plus the chance of a draft outside of it.
    """
    best = 1.0
    for size in range(len(target) + 1):
        for kept in itertools.combinations(range(len(target)), size):
            inside = sum(draft[token] for token in kept)
            best = min(best, sum(target[token] for token in kept) + 1 - inside**number)
    return best


LAWS = [
    ([0.2, 0.5, 0.3], [0.5, 0.25, 0.25]),
    ([0.1, 0.1, 0.8], [0.6, 0.2, 0.2]),
    ([0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]),
    ([0.9, 0.1, 0.0], [0.1, 0.1, 0.8]),
]


def k_seq_accepts(target: list[float], draft: list[float], number: int) -> float:
    p, q = (torch.tensor([law], dtype=torch.float64) for law in (target, draft))
    one = torch.minimum(q, p / division_factor(p, q, torch.tensor([[number]]))).sum()
    return float(1 - (1 - one) ** number)


@pytest.mark.parametrize(("target", "draft"), LAWS)
def test_k_seq_lies_between_one_draft_and_the_optimum(target: list[float], draft: list[float]) -> None:
    assert most_accepted(target, draft, 1) == pytest.approx(sum(min(p, q) for p, q in zip(target, draft, strict=True)))
    before = k_seq_accepts(target, draft, 1)
    assert before == pytest.approx(most_accepted(target, draft, 1))
    for number in (2, 3, 8):
        accepted, best = k_seq_accepts(target, draft, number), most_accepted(target, draft, number)
        assert before < accepted <= best + 1e-9
        assert accepted >= (1 - (1 - 1 / number) ** number) * best - 1e-9  # theorem 2 of the paper
        before = accepted


def test_k_seq_accepts_what_its_formula_says() -> None:
    target, draft = [7 / 16, 3 / 16, 6 / 16], [0.5, 0.25, 0.25]  # the toy laws at the root
    for number in (1, 2, 3):
        accepted = enumerate_rule(spectr, (-1,) * number).accepted
        assert accepted == pytest.approx(k_seq_accepts(target, draft, number), abs=1e-9)


def test_block_verification_by_hand() -> None:
    # The ratios are 2 and 1/4. P_1 = 1 and P_2 = 1/4; S_1 = (p - q)+ = 3/4 and h_1 = (3/4) / (3/4 + 1 - 1) = 1.
    target, draft = [[0.5, 0.5], [0.125, 0.875], [1.0, 0.0]], [[0.25, 0.75], [0.5, 0.5]]
    decision, seen = step(block_verification, target, draft, [0, 0])
    assert seen.chances[0] == pytest.approx([1.0, 0.25])
    assert decision.num.tolist() == [2] and near(seen.law, [0, 1])
    # The other way round, 1/4 and 2: one by one, the first is kept with 1/4 and both with 1/4. P_1 = 1/4, P_2 = 1/2.
    # S_1 = (0.25 * (0.5, 0.5) - (0.25, 0.75))+ = 0, so h_1 = 0: the block stays with chance 1/2, twice as often.
    target, draft = [[0.125, 0.875], [0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [0.25, 0.75]]
    decision, seen = step(block_verification, target, draft, [0, 0], level=0.4)
    assert seen.chances[0] == pytest.approx([0.0, 0.5])
    assert decision.num.tolist() == [3] and decision.is_recovered is not None and not bool(decision.is_recovered[0])
    decision, _ = step(rejection, target, draft, [0, 0], level=0.4)
    assert decision.num.tolist() == [1]


def test_traversal_by_hand() -> None:
    # Two children of the root without replacement, token 0 with a child of its own. Shares: token 0 has 0.2 / 0.5 =
    # 0.4, its child 0 the ratio 2, so 0.8. Both fail at 0.85: the child takes (0.4 p - q)+ from its parent.
    target = [P, [1.0, 0.0, 0.0], P, P]
    draft = [Q, Q, [0.5, 0.25, 0.25]]
    decision, seen = step(traversal_verification, target, draft, [0, 2, 0], [-1, -1, 0], 0.85, has_replacement=False)
    chances = [chance for (chance,) in seen.chances]
    # The child is 0.4 * 1 / 0.5 = 0.8. Then S = (0.4 - 0.5)+ = 0: the parent has nothing left. The root is left with
    # (0, 5/6, 1/6) and its second child, drawn from (0, 1/2, 1/2), has 1/3.
    assert chances == pytest.approx([0.8, 0.0, 1 / 3])
    assert decision.num.tolist() == [1] and near(seen.law, [0, 1, 0])
    decision, _ = step(traversal_verification, target, draft, [0, 2, 0], [-1, -1, 0], 0.75, has_replacement=False)
    assert decision.path is not None and decision.path[0, :3].tolist() == [0, 2, -1]


def random_step(rows: int, parent: list[int], seed: int, vocab: int = 6) -> tuple[Proposal, Scores, View]:
    torch.manual_seed(seed)
    width = len(parent)
    above = torch.tensor(parent).expand(rows, -1)
    laws = torch.rand(rows, width + 1, vocab, dtype=torch.float64).softmax(-1) ** 2
    laws = laws / laws.sum(-1, keepdim=True)
    probs = laws[:, 1:].clone()
    for node, up in enumerate(parent):  # siblings share their law
        first = parent.index(up)
        probs[:, node] = probs[:, first]
    tokens = torch.multinomial(probs.flatten(0, 1), 1).view(rows, width)
    logits = torch.rand(rows, width + 1, vocab, dtype=torch.float64) * 2
    sampler = Sampler(Sampling(temperature=1.0), [row_key(seed, i) for i in range(rows)])
    proposal = Proposal(tokens, [width] * rows, above, law=Sampled(probs))
    return proposal, Scores(logits), View([[0, 1]] * rows, [1] * rows, [64] * rows, 0, Cache([], 1), sampler)


def test_traversal_equals_block_verification_on_chains() -> None:
    proposal, scores, view = random_step(400, [-1, 0, 1, 2], 0)
    ours = traversal_verification(proposal, scores, view)
    proposal.parent = None
    theirs = block_verification(proposal, scores, view)
    assert torch.equal(ours.num, theirs.num) and torch.equal(ours.tokens, theirs.tokens)
    assert 1 < float(ours.num.double().mean()) < 5


def test_rules_accept_as_much_as_the_papers_say() -> None:
    def accepted(rule: Rule, parent: tuple[int, ...], has_replacement: bool = True) -> float:
        is_chain = rule in (rejection, block_verification)
        return enumerate_rule(rule, parent, is_chain=is_chain, has_replacement=has_replacement).accepted

    chain, pair, bush = (-1, 0, 1), (-1, -1, 0, 1), (-1, -1, 0, 1, 1)
    # Block verification is never worse than the ratio test, and equal to leaf to root; others are the test itself.
    assert accepted(block_verification, chain) > accepted(rejection, chain) + 0.05
    assert accepted(traversal_verification, chain) == pytest.approx(accepted(block_verification, chain))
    for rule in (multi_candidate, spectr):
        assert accepted(rule, chain) == pytest.approx(accepted(rejection, chain))
    # More candidates are better than one; k-seq better than one by one; whole paths better than one by one; siblings
    # without replacement better than with it.
    for rule in TREE_RULES:
        assert accepted(rule, pair) > accepted(rejection, (-1, 0)) + 0.01
    for parent in (pair, bush):
        assert accepted(spectr, parent) > accepted(multi_candidate, parent)
        assert accepted(traversal_verification, parent, False) > accepted(multi_candidate, parent, False)
        assert accepted(traversal_verification, parent, False) > accepted(traversal_verification, parent)
    for siblings in ((-1, -1), (-1, -1, -1)):
        assert (
            accepted(multi_candidate, siblings, False)
            > accepted(multi_candidate, siblings)
            > accepted(rejection, (-1,))
        )
        assert accepted(spectr, siblings) > accepted(multi_candidate, siblings)


def test_typical_acceptance_by_hand() -> None:
    # (1/2, 1/4, 1/4) has entropy 1.04 and floor min(0.3, exp(-1.04)) = 0.3: only token 0 passes. A sure law has floor
    # min(0.3, 1): token 1 passes at 0.9 and not at 0.1.
    even, sure = [0.5, 0.25, 0.25], [0.1, 0.9, 0.0]
    laws, draft = [even, sure, even, even, even], [Q] * 4

    def rule(proposal: Proposal, scores: Scores, view: View) -> Decision:
        return typical_acceptance(proposal, scores, view, epsilon=0.3, delta=1.0)

    decision, seen = step(rule, laws, draft, [0, 1, 0, 1], [-1, -1, 0, 0])
    assert decision.path is not None and decision.path[0, :3].tolist() == [0, 3, -1]
    assert near(seen.law, even)
    decision, seen = step(rule, laws, draft, [1, 2, 0, 1], [-1, -1, 0, 0])
    assert decision.num.tolist() == [1] and near(seen.law, even)
    # Of equally long paths the likeliest: 0.6 before 0.35.
    decision, _ = step(rule, [[0.35, 0.6, 0.05], even, even], [Q] * 2, [0, 1], [-1, -1])
    assert decision.path is not None and decision.path[0, 0] == 1


@pytest.mark.parametrize("rule", [*RULES, typical_acceptance])
def test_a_nan_row_writes_no_token(rule: Rule) -> None:
    proposal, scores, view = random_step(3, [-1, 0, 1], 1)
    proposal.parent = None
    whole = rule(proposal, scores, view)
    logits = scores.logits.clone()
    logits[1] = float("nan")
    decision = rule(proposal, Scores(logits), view)
    assert int(decision.num[1]) == 1 and int(decision.tokens[1, 0]) == -1
    for row in (0, 2):
        assert decision.tokens[row].tolist() == whole.tokens[row].tolist()


@pytest.mark.parametrize("rule", RULES)
def test_forbidden_tokens_are_never_written(rule: Rule) -> None:
    proposal, scores, view = random_step(300, [-1, 0, 1], 2)
    proposal.parent = None
    scores.logits[:, :, [0, 3]] = float("-inf")
    decision = rule(proposal, scores, view)
    order = torch.arange(decision.tokens.shape[1])
    written = decision.tokens[order < decision.num.unsqueeze(1)]
    assert not bool(torch.isin(written, torch.tensor([0, 3])).any())
    assert int(decision.num.max()) > 1


@pytest.mark.parametrize("rule", RULES)
def test_padding_is_no_draft(rule: Rule) -> None:
    proposal, scores, view = random_step(200, [-1, 0, 1], 3)
    proposal.parent = None
    proposal.length = [i % 4 for i in range(200)]
    assert proposal.law is not None
    for row, length in enumerate(proposal.length):
        proposal.law.probs[row, length:] = float("nan")
    decision = rule(proposal, scores, view)
    lengths = torch.tensor(proposal.length)
    assert bool((decision.num - 1 <= lengths).all()) and bool((decision.num - 1 == lengths).any())
    assert bool((decision.tokens >= 0)[torch.arange(4) < decision.num.unsqueeze(1)].all())


def test_a_tree_drawn_at_once_equals_one_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    source = torch.Generator().manual_seed(6)
    for case in range(40):
        rows, width = 1 + case % 3, 1 + case % 9
        parent = torch.stack([torch.randint(-1, i, (rows,), generator=source) for i in range(width)], 1)
        tokens = torch.randint(0, 2, (rows, width), generator=source)
        length = torch.randint(0, width + 1, (rows,), generator=source).tolist()
        proposal = Proposal(tokens, length, parent)
        scores = Scores(torch.randn(rows, 1 + width, 2, generator=source))
        view = View([[0]] * rows, [1] * rows, [64] * rows, 0, Cache([], 1), Sampler(Sampling(), list(range(rows))))
        found = []
        for few in (1 << 19, 0):
            monkeypatch.setattr(match, "_FEW", few)
            decision = sample_and_match(proposal, scores, view)
            assert decision.path is not None and decision.is_recovered is not None
            parts = (decision.tokens, decision.num, decision.path, decision.is_recovered)
            found.append([part.tolist() for part in parts])
        assert found[0] == found[1]


@pytest.mark.parametrize("rule", [multi_candidate, spectr, traversal_verification, block_verification])
def test_drafts_without_a_law_are_matched(rule: Rule) -> None:
    proposal, scores, view = random_step(50, [-1, 0, 1], 4)
    proposal.parent = proposal.law = None
    ours, theirs = rule(proposal, scores, view), sample_and_match(proposal, scores, view)
    assert torch.equal(ours.tokens, theirs.tokens) and torch.equal(ours.num, theirs.num)


def test_drafts_that_a_rule_cannot_take() -> None:
    proposal, scores, view = random_step(2, [-1, -1], 5)
    for rule in (rejection, block_verification):
        with pytest.raises(ConfigError, match="not trees"):
            rule(proposal, scores, view)
    assert proposal.law is not None
    proposal.law = Sampled(proposal.law.probs, has_replacement=False)
    with pytest.raises(ConfigError, match="independent drafts"):
        spectr(proposal, scores, view)
