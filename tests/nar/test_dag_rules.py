"""Rules that read a text from a graph, against all paths and all texts of tiny ones."""

from __future__ import annotations

import math
from itertools import combinations, pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from outpace.errors import ConfigError, ModelError
from outpace.methods.registry import load_method
from outpace.methods.whole.dag_beam import DagBeam
from outpace.methods.whole.dag_lookahead import DagLookahead
from outpace.methods.whole.dag_viterbi import DagViterbi
from outpace.models.nar.language import Language, read_language
from outpace.models.nar.lattice import log_likelihood
from outpace.models.nar.paths import beam_texts, likeliest_paths
from outpace.run.row import Row
from outpace.sampling import Sampling, row_key
from outpace.testing.checks import run_contract
from outpace.testing.one_pass import toy_network
from outpace.testing.world import drive, make_run
from outpace.text.ngram import NGram

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


@pytest.mark.parametrize("name", ["dag-lookahead", "dag-viterbi", "dag-beam"])
def test_the_rules_keep_the_contract(name: str) -> None:
    failures = run_contract(load_method(name))
    assert not failures, failures


def test_a_language_model_for_beams_is_the_model_of_streams() -> None:
    source = torch.Generator().manual_seed(0)
    texts = [torch.randint(1, 6, (3 + at % 5,), generator=source).tolist() for at in range(40)]
    model, stream = Language(texts, 6, 0), [0]
    for text in texts:
        stream += [*text, 0]
    streams = NGram(np.array(stream), 4, 6)
    for text in ([2, 5, 1], [4, 4, 4, 4, 4], []):
        wanted = -np.log(2) * streams.bits(np.array([0, *text, 0]))
        found = [model(tuple(text[:at]), token) for at, token in enumerate([*text, -1])]
        assert found == pytest.approx(wanted.tolist())
        total = sum(math.exp(model(tuple(text), token)) for token in (-1, *range(1, 6)))
        assert total == pytest.approx(1.0)


def test_the_text_of_a_beam_is_what_its_laws_say() -> None:
    model, sources = toy_network("dag"), [[1, 5, 9, 2], [4, 8]]
    rows = [Row([0], 1, row_key(0, at), 20, (3,), source=list(source)) for at, source in enumerate(sources)]
    drive(make_run(DagBeam(beam=6, candidates=4), Sampling(), target=model, capacity=96), rows)
    run = model.begin(sources)
    for row, (said, links, size) in zip(
        rows, zip(*model.net.finish(run), run.is_place.sum(1).tolist(), strict=True), strict=True
    ):
        best = list(beam_texts(said[:size].detach(), links[:size].detach(), 6, 4)[0][1])
        whole = best[: best.index(3)] if 3 in best else best
        assert row.written == [*whole, 3][:20]


def test_a_language_model_without_a_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no text to count"):
        read_language(str(tmp_path / "none.txt"), None, 9, 0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="too few"):
        Language([], 9, 0)
