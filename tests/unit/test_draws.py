"""The few tokens that may win a draw: compiled code names them, and the token drawn is the one of the whole noise."""

from __future__ import annotations

import pytest
import torch

from outpace.bench import draws
from outpace.kernels import load_library
from outpace.sampling.draws import contenders, drawn, plain_drawn, sampled
from outpace.sampling.noise import gumbel

pytestmark = pytest.mark.skipif(load_library() is None, reason="no compiled kernels here")


@pytest.mark.parametrize("vocab", [1, 2, 7, 511, 512, 520, 3000])
def test_the_winner_is_among_them_and_they_are_few(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    for spread in (0.0, 0.3, 1.0, 4.0, 30.0):
        logits = spread * torch.randn(40, vocab, generator=generator, dtype=torch.float64) - 5
        logits[torch.rand(logits.shape, generator=generator) < 0.2] = float("-inf")
        logits[:, vocab // 2] = 1.0  # no row without a token
        key = torch.randint(-(2**62), 2**62, (40,), generator=generator)
        few = contenders(logits, key)
        assert few is not None and few.shape[1] <= 40
        whole = logits + gumbel(key, torch.arange(vocab))
        best = whole.argmax(-1)
        assert (few == best[:, None]).any(-1).all()
        assert torch.equal(drawn(logits, key), best) and torch.equal(plain_drawn(logits, key), best)


@pytest.mark.parametrize("size", [0.0, 1e6, 1e10, 1e15, 1e300])
def test_equal_logits_are_drawn_alike(size: float) -> None:
    """Also behind a division by a low temperature, where noise is rounded away and the lowest id wins ties."""
    logits, key = torch.full((20_000, 8), size, dtype=torch.float64), torch.arange(20_000) * 7919
    few, found = contenders(logits, key), drawn(logits, key)
    assert few is not None and torch.equal(found, plain_drawn(logits, key))
    if size < 1e12:
        assert torch.bincount(found, minlength=8).min() > 2_300  # of 2,500


def test_rows_that_are_no_laws_do_no_harm() -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[1, 5] = float("nan")
    logits[2] = float("nan")
    key, sound = torch.arange(4), torch.tensor([0, 3])
    assert torch.equal(drawn(logits, key)[sound], plain_drawn(logits, key)[sound])
    logits[2] = float("-inf")
    assert torch.equal(drawn(logits, key)[sound], plain_drawn(logits, key)[sound])
    logits[2] = 1e300  # more tokens than there is room for
    assert contenders(logits, key) is None
    assert torch.equal(drawn(logits, key)[sound], plain_drawn(logits, key)[sound])
    for other in (logits.float(), logits[:, ::2]):
        assert contenders(other, key) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_logits_as_they_come_are_drawn_as_their_quotients(temperature: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    for vocab in (1, 31, 700):
        logits = (3 * torch.randn(60, vocab, generator=generator)).to(dtype)
        logits[torch.rand(logits.shape, generator=generator) < 0.1] = float("-inf")
        logits[:, vocab // 2] = 2.0
        logits[7, 0], logits[8, -1], logits[9] = float("nan"), float("inf"), float("-inf")
        key = torch.randint(-(2**62), 2**62, (60,), generator=generator)
        expected = plain_drawn(logits.double() / temperature, key)
        expected[7:10] = -1
        found = sampled(logits, temperature, key)
        assert found is not None
        assert torch.equal(found, expected)


def test_the_bench_times_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert draws.main(["--rows", "2", "--vocabs", "300", "--rounds", "1"]) == 0
    assert "| 300 | 2 |" in capsys.readouterr().out
    assert draws.main(["--rows", "0"]) == 2
    assert "No rows, tokens or rounds were asked for." in capsys.readouterr().err
