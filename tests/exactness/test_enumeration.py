"""The acceptors keep the law exactly, and samples follow it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from outpace.accept import block_verification, multi_candidate, rejection, spectr, traversal_verification
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.speculative.block_verification import BlockVerification
from outpace.methods.speculative.draft_model import DraftModel
from outpace.methods.speculative.multi_candidate import MultiCandidate
from outpace.methods.speculative.rsd import Rsd
from outpace.methods.speculative.spectr import SpecTr
from outpace.methods.speculative.traversal import Traversal
from outpace.sampling import Sampling, node_key, row_key, uniform
from outpace.testing import enumeration
from outpace.testing.answers import check_drafts, check_texts
from outpace.testing.gtest import g_test, small_model, text_counts, text_law
from outpace.types import Decision, Proposal, Sampled, Scores, Stream, View


@pytest.mark.parametrize("check", enumeration.rule_checks(), ids=lambda check: check.__name__)
def test_every_rule_keeps_the_law(check: Callable[[], None]) -> None:
    check()


SIX = ((-1, -1, 0, 0, 1, 1), (-1, -1, 0, 1, 2, 3), (-1, -1, -1, 0, 0, 1))
TREE_RULES = [
    (multi_candidate, True),
    (multi_candidate, False),
    (spectr, True),
    (traversal_verification, True),
    (traversal_verification, False),
]


@pytest.mark.parametrize("parent", SIX, ids=str)
@pytest.mark.parametrize(("rule", "has_replacement"), TREE_RULES)
def test_larger_trees(rule: Any, has_replacement: bool, parent: tuple[int, ...]) -> None:
    assert enumeration.rule_error(rule, parent, has_replacement=has_replacement) < 1e-12


@pytest.mark.parametrize("rule", [rejection, block_verification, multi_candidate, spectr, traversal_verification])
def test_longer_chains(rule: Any) -> None:
    assert (
        enumeration.rule_error(rule, (-1, 0, 1), is_chain=rule in (rejection, block_verification), penalty=0.5) < 1e-12
    )


def test_the_enumeration_sees_a_wrong_rule() -> None:
    def forgets_law(proposal: Proposal, scores: Scores, view: View) -> Decision:
        assert proposal.law is not None
        flat = torch.full_like(proposal.law.probs, 1 / 3)
        return rejection(replace(proposal, law=Sampled(flat)), scores, view)

    def loses_path(proposal: Proposal, scores: Scores, view: View) -> Decision:
        decision = rejection(proposal, scores, view)
        return replace(decision, num=decision.num.clamp(min=2))

    assert enumeration.rule_error(forgets_law, (-1,), is_chain=True) > 0.01
    with pytest.raises(AssertionError, match="counted as a draft"):
        enumeration.rule_error(loses_path, (-1,), is_chain=True)


DISTRIBUTION = [
    DraftModel(draft_len=2, accept_rule="rejection"),
    MultiCandidate(branches=(2, 1)),
    MultiCandidate(branches=(2, 2), has_replacement=True),
    SpecTr(num_drafts=3, draft_len=2),
    BlockVerification(draft_len=3),
    Traversal(branches=(2, 2)),
    Rsd(beam=3, draft_len=2),
    Rsd(branches=(3, 1)),
]


@pytest.mark.parametrize("method", DISTRIBUTION, ids=str)
def test_what_a_certificate_asks_of_a_method(method: Method) -> None:
    enumeration.check_rule(method)
    check_drafts(method)
    check_texts(method, rows=3_000)


@pytest.mark.parametrize(
    ("method", "settings", "rows"),
    [
        (Autoregressive(), Sampling(temperature=1.3, top_p=0.9), 30_000),
        (DraftModel(draft_len=2, is_adaptive=False), Sampling(temperature=0.7), 100_000),
        (DraftModel(draft_len=2, tree_width=2, is_adaptive=False), Sampling(temperature=1.3, top_k=3), 30_000),
        (DraftModel(draft_len=2, is_adaptive=False, accept_rule="rejection"), Sampling(temperature=0.7), 100_000),
        (DraftModel(draft_len=2, accept_rule="rejection"), Sampling(temperature=1.3, top_k=3), 30_000),
    ],
    ids=["plain", "chain", "tree", "rejection", "rejection top-k"],
)
def test_written_texts_follow_the_law(method: Method, settings: Sampling, rows: int) -> None:
    target = small_model()
    drafter = small_model(seed=4, like=target)
    length = 3 if rows < 100_000 else 2
    counts = text_counts(method, target, length, settings, rows, {"draft": drafter}, seed=11)
    assert g_test(counts, text_law(target, length, settings)) > 1e-3


def test_g_test_rejects_a_wrong_law() -> None:
    torch.manual_seed(0)
    probs = torch.tensor([0.5, 0.3, 0.2])
    draws = torch.multinomial(probs, 20_000, replacement=True).bincount(minlength=3)
    assert g_test(draws, probs) > 0.01
    assert g_test(draws, torch.tensor([0.47, 0.33, 0.2])) < 1e-6
    assert g_test(draws, torch.tensor([0.8, 0.2, 0.0])) == 0


def flat(keys: list[int], stream: Stream = Stream.TARGET, visit: int = 0) -> torch.Tensor:
    place = torch.arange(40).expand(len(keys), -1)
    return uniform(node_key(keys, stream, place, visit), torch.arange(100))


def test_noise_is_uniform() -> None:
    numbers = flat([row_key(3, i) for i in range(25)])
    assert 0 < float(numbers.min()) and float(numbers.max()) < 1
    counts = torch.histc(numbers.flatten().float(), 64, 0, 1)
    assert g_test(counts, torch.full((64,), 1 / 64)) > 1e-3


@pytest.mark.parametrize("other", ["row", "stream", "visit", "position", "id"])
def test_noise_is_independent(other: str) -> None:
    keys = [row_key(3, i) for i in range(25)]
    first = flat(keys)
    second = {
        "row": lambda: flat([row_key(4, i) for i in range(25)]),
        "stream": lambda: flat(keys, Stream.ACCEPT),
        "visit": lambda: flat(keys, visit=1),
        "position": lambda: first.roll(1, 1),
        "id": lambda: first.roll(1, 2),
    }[other]()
    cells = (first * 8).long() * 8 + (second * 8).long()
    assert g_test(cells.flatten().bincount(minlength=64), torch.full((64,), 1 / 64)) > 1e-3
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(float(correlation)) < 4 / math.sqrt(first.numel())
