"""The acceptors keep the law exactly, and samples follow it."""

from __future__ import annotations

import math

import pytest
import torch

from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.draft_model import DraftModel
from outpace.sampling import Sampling, node_key, row_key, uniform
from outpace.testing import enumeration
from outpace.testing.gtest import g_test, small_model, text_counts, text_law
from outpace.types import Stream


@pytest.mark.parametrize("draft_len", [1, 2, 3])
def test_rejection_is_exact(draft_len: int) -> None:
    assert enumeration.rejection_error(draft_len) < 1e-12


def test_sample_and_match_is_exact_on_chains() -> None:
    enumeration.check_match_chain()


def test_sample_and_match_is_exact_on_trees() -> None:
    enumeration.check_match_tree()


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
