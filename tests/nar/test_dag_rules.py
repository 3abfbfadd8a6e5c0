"""Rules that read a text from a graph, against all paths and all texts of tiny ones."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import pytest
import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.methods.registry import load_method
from outpace.methods.whole.dag_lookahead import DagLookahead
from outpace.methods.whole.dag_viterbi import DagViterbi
from outpace.models.nar.lattice import log_likelihood
from outpace.models.nar.paths import beam_texts, likeliest_paths
from outpace.testing.checks import run_contract

REACH, VOCAB, SIZES = 3, 3, [7, 6, 4, 2]


def lattice(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of tokens, links and which places are real, ragged, in float64."""
    source = torch.Generator().manual_seed(seed)
    said = (2 * torch.randn(len(SIZES), 7, VOCAB, generator=source, dtype=torch.float64)).log_softmax(-1)
    links = 2 * torch.randn(len(SIZES), 7, REACH, generator=source, dtype=torch.float64)
    is_place = torch.arange(7) < torch.tensor(SIZES)[:, None]
    ahead = torch.arange(7)[:, None] + 1 + torch.arange(REACH)
    links = links.masked_fill(ahead >= torch.tensor(SIZES)[:, None, None], float("-inf"))
    return said, links.log_softmax(-1).nan_to_num(nan=float("-inf")), is_place


def every_path(size: int) -> list[list[int]]:
    """Return the places of the tokens on each path."""
    inner = [list(path) for count in range(size - 1) for path in combinations(range(1, size - 1), count)]
    return [path for path in inner if all(b - a <= REACH for a, b in pairwise([0, *path, size - 1]))]


def score(path: list[int], links: Tensor, gains: Tensor, size: int) -> float:
    whole = [0, *path, size - 1]
    return float(sum(links[a, b - a - 1] for a, b in pairwise(whole))) + float(sum(gains[at] for at in path))


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_viterbi_finds_the_best_of_all_paths(joint: bool, penalty: float) -> None:
    said, links, is_place = lattice(1)
    found = DagViterbi(joint=joint, length_penalty=penalty).paths(said, links, is_place)
    for row, size in enumerate(SIZES):
        gains = said[row].amax(-1) * joint
        wanted = max(every_path(size), key=lambda p: score(p, links[row], gains, size) / (len(p) + 1) ** penalty)
        assert found[row] == wanted


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0])
def test_lookahead_takes_the_best_next_place(weight: float) -> None:
    said, links, is_place = lattice(2)
    found = DagLookahead(weight=weight).paths(said, links, is_place)
    for row, size in enumerate(SIZES):
        path, at = [], 0
        while True:
            nexts = range(at + 1, min(at + 1 + REACH, size))
            at = max(nexts, key=lambda b, a=at: float(links[row, a, b - a - 1] + weight * said[row, b].max()))
            if at == size - 1:
                break
            path.append(at)
        assert found[row] == path


def language(before: tuple[int, ...], token: int) -> float:
    """Return a made-up language model's log-probability: alternation is likely."""
    return -0.1 if not before or before[-1] != token else -3.0


@pytest.mark.parametrize(("weight", "penalty"), [(0.0, 0.0), (0.0, 1.0), (0.8, 0.6)])
def test_a_beam_of_everything_finds_the_best_of_all_texts(weight: float, penalty: float) -> None:
    said, links, _ = lattice(3)
    for row, size in enumerate(SIZES):
        scores = {}
        for count in range(size - 1):
            for text in product(range(VOCAB), repeat=count):
                emissions = said[row, :size, list(text)].T[None].reshape(1, count, size)
                given = torch.tensor([size]), torch.tensor([count])
                value = float(log_likelihood(emissions, links[row : row + 1, :size], *given))
                value += weight * sum(language(text[:at], token) for at, token in enumerate((*text, -1)))
                scores[text] = value / (count + 1) ** penalty if value > -1e20 else -1e30
        found = beam_texts(said[row, :size], links[row, :size], 10_000, VOCAB, language, weight, penalty)
        ranked = sorted((score, text) for text, score in scores.items() if score > -1e20)[::-1]
        assert [text for _, text in found] == [text for _, text in ranked]
        assert [score for score, _ in found] == pytest.approx([score for score, _ in ranked])


def test_a_lattice_without_a_path_is_refused() -> None:
    said, links, is_place = lattice(4)
    links[1, 2:] = float("-inf")
    links[1, :2, 1:] = float("-inf")
    with pytest.raises(ModelError, match="row 1 has no path"):
        likeliest_paths(links, said.amax(-1), is_place.sum(1), 1.0)
    assert beam_texts(said[1, :6], links[1, :6], 10, VOCAB) == []


@pytest.mark.parametrize("name", ["dag-lookahead", "dag-viterbi"])
def test_the_rules_keep_the_contract(name: str) -> None:
    failures = run_contract(load_method(name))
    assert not failures, failures
