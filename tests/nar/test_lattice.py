"""The programs over lattices against all paths, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise, product

import pytest
import torch
from torch import Tensor

from outpace.kernels import lattice as compiled
from outpace.models.nar.lattice import best_paths, log_likelihood, plain_log_likelihood

REACH = 3


def random_lattice(sizes: list[int], vocab: int, seed: int, reach: int = REACH) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of symbols [B, L, V] and links [B, L, M] in float64; rows are padded with nonsense."""
    source = torch.Generator().manual_seed(seed)
    most = max(sizes)
    said = (2 * torch.randn(len(sizes), most, vocab, generator=source, dtype=torch.float64)).log_softmax(-1)
    links = 2 * torch.randn(len(sizes), most, reach, generator=source, dtype=torch.float64)
    target = torch.arange(most)[:, None] + 1 + torch.arange(reach)
    for row, size in enumerate(sizes):
        links[row] = links[row].masked_fill(target >= size, float("-inf"))
    return said, links.log_softmax(-1).nan_to_num(nan=float("-inf"))


def paths(size: int, length: int, reach: int = REACH) -> Iterator[tuple[int, ...]]:
    """Yield the places between start and end of every path that says `length` tokens."""
    for inner in combinations(range(1, size - 1), length):
        whole = (0, *inner, size - 1)
        if all(b - a <= reach for a, b in pairwise(whole)):
            yield inner


def path_score(said: Tensor, links: Tensor, size: int, path: tuple[int, ...], text: tuple[int, ...]) -> Tensor:
    """Return the log-probability of one path and what it says."""
    whole = (0, *path, size - 1)
    steps = [links[a, b - a - 1] for a, b in pairwise(whole)]
    return torch.stack([*steps, *(said[at, token] for at, token in zip(path, text, strict=True))]).sum()


SIZES, TEXTS = [7, 6, 5, 2], [(1, 0, 1), (2, 2), (0, 1, 2), ()]


def batch(said: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return emissions [B, T, L], places and lengths of TEXTS."""
    targets = torch.zeros(len(TEXTS), 3, dtype=torch.int64)
    for row, text in enumerate(TEXTS):
        targets[row, : len(text)] = torch.tensor(text, dtype=torch.int64)
    emissions = said.transpose(1, 2).gather(1, targets[:, :, None].expand(-1, -1, said.shape[1]))
    return emissions, torch.tensor(SIZES), torch.tensor([len(text) for text in TEXTS])


def test_the_sum_and_its_gradient_are_those_of_all_paths() -> None:
    said, links = random_lattice(SIZES, 3, seed=1)
    said.requires_grad_()
    links.requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    brute = torch.stack(
        [
            torch.logsumexp(
                torch.stack([path_score(said[r], links[r], n, path, text) for path in paths(n, len(text))]),
                0,
            )
            for r, (n, text) in enumerate(zip(SIZES, TEXTS, strict=True))
        ]
    )
    wanted = torch.autograd.grad((brute * weights).sum(), (said, links))
    for program in (log_likelihood, plain_log_likelihood):
        emissions, places, lengths = batch(said)
        found = program(emissions, links, places, lengths)
        torch.testing.assert_close(found, brute)
        for one, other in zip(torch.autograd.grad((found * weights).sum(), (said, links)), wanted, strict=True):
            torch.testing.assert_close(one, other)


def test_all_texts_together_have_probability_one() -> None:
    said, links = random_lattice([6], 2, seed=2)
    total = 0.0
    for length in range(5):
        texts = torch.tensor(list(product(range(2), repeat=length)), dtype=torch.int64).view(2**length, length)
        emissions = said.transpose(1, 2).expand(len(texts), -1, -1).gather(1, texts[:, :, None].expand(-1, -1, 6))
        rows = torch.full((len(texts),), 6), torch.full((len(texts),), length)
        total += float(log_likelihood(emissions, links.expand(len(texts), -1, -1), *rows).exp().sum())
    assert total == pytest.approx(1.0, abs=1e-12)


def test_the_best_path_is_the_best_of_all() -> None:
    said, links = random_lattice(SIZES, 3, seed=3)
    for emissions, into in ((batch(said)[0], links), (batch(said)[0].float(), links.float())):
        found, scores = best_paths(emissions, into, *batch(said)[1:])
        for row, (size, text) in enumerate(zip(SIZES, TEXTS, strict=True)):
            ranked = {
                path: float(path_score(said[row], links[row], size, path, text)) for path in paths(size, len(text))
            }
            best = max(ranked, key=ranked.__getitem__)
            assert found[row].tolist() == [*best, *[0] * (3 - len(text))]
            assert float(scores[row]) == pytest.approx(ranked[best], abs=1e-5)


def test_compiled_programs_equal_those_in_pytorch() -> None:
    sizes, length, reach = [70, 33, 9, 64], 8, 12
    said, links = random_lattice(sizes, 5, seed=4, reach=reach)
    emissions = said[:, :, [0, 1, 2, 3, 4, 0, 1, 2]].transpose(1, 2).contiguous()
    places, lengths = torch.tensor(sizes), torch.tensor([length, 5, 7, 6])
    if not compiled.fits(emissions.float()):
        pytest.skip("no compiled kernels here")
    results = []
    for dtype in (torch.float64, torch.float32):
        given = emissions.to(dtype).requires_grad_(), links.to(dtype).requires_grad_()
        found = log_likelihood(*given, places, lengths)
        path, score = best_paths(*given, places, lengths)
        results.append((found, *torch.autograd.grad(found[:2].sum() - found[2], given), path, score))
    for exact, single in zip(*results, strict=True):
        torch.testing.assert_close(single, exact, check_dtype=False, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_target_without_a_path_has_no_gradient_and_no_infinity(dtype: torch.dtype) -> None:
    said, links = random_lattice([5, 5, 9], 3, seed=5)
    emissions = said[:, :, [0, 1, 2, 0]].transpose(1, 2).to(dtype).detach().requires_grad_()
    linked = links.to(dtype).requires_grad_()
    # Four tokens do not fit between start and end of five places; one token does not bridge nine by jumps of three.
    found = log_likelihood(emissions, linked, torch.tensor([5, 5, 9]), torch.tensor([4, 3, 1]))
    assert (found < -1e20).tolist() == [True, False, True]
    assert found.isfinite().all()
    found.sum().backward()
    for grad in (emissions.grad, linked.grad):
        assert grad is not None
        assert grad.isfinite().all()
        assert grad[[0, 2]].abs().sum() == 0
    assert best_paths(emissions, linked, torch.tensor([5, 5, 9]), torch.tensor([4, 3, 1]))[0][0].tolist() == [0] * 4
