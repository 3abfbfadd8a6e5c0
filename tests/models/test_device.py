"""Device checks: on a device that is not there, which shows that they run, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pretend
import pytest
import tape
import torch

import outpace
from outpace.models.graphs import Graphs
from outpace.testing import device as checks

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
QUICK = [checks.check_noise, checks.check_picks, checks.check_caches, checks.check_adapters]


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("check", checks.DEVICE_CHECKS)
def test_on_a_gpu(check: Callable[[str], None]) -> None:
    check("cuda")


def test_graphs_on_a_tape() -> None:
    checks.check_graphs("cpu", Graphs("on", tape.record))


@pytest.mark.parametrize("check", QUICK)
def test_on_a_device_that_is_not_there(check: Callable[[str], None]) -> None:
    """Nothing mixes devices: not the forwards, nor caches, nor the sampler, nor these checks."""
    with pretend.cuda():
        check("cuda")


def test_forwards_on_a_device_that_is_not_there() -> None:
    with pretend.cuda():
        checks.check_forwards("cuda", ["stories-block"], [torch.float64])


def test_checks_of_texts_run() -> None:
    checks.check_texts("cpu", 3)
    checks.check_canvases("cpu", 3)


def test_checks_find_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that is another the second time, a forward that is off, a graph whose replay does nothing."""
    calls: list[int] = []

    def later(function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            calls.append(1)
            return function(*args) if len(calls) % 2 else change(function(*args))

        return wrapped

    monkeypatch.setattr(checks, "uniform", later(checks.uniform, lambda drawn: drawn + 2.0**-52))
    with pytest.raises(AssertionError, match="uniform noise has other bits"):
        checks.check_noise("cpu")
    calls.clear()
    off = later(checks._forwards, lambda found: {**found, "a tree": found["a tree"] * (1 + 1e-6)})
    monkeypatch.setattr(checks, "_forwards", off)
    with pytest.raises(AssertionError, match=r"stories-block in torch\.float64, a tree"):
        checks.check_forwards("cpu", ["stories-block"], [torch.float64])

    def record_nothing(function: Callable[[], tuple[torch.Tensor, ...]], pool: Any) -> Any:
        recorded, found = tape.record(function, pool)
        recorded.notes.clear()
        return recorded, found

    with pytest.raises(AssertionError, match=r"recorded forward in torch\.float32 is off"):
        checks.check_graphs("cpu", Graphs("on", record_nothing))


def test_a_pretended_device_refuses_what_a_device_refuses() -> None:
    with pretend.cuda():
        there = torch.zeros(3, device="cuda")
        assert (there + 1).device.type == "cuda" and (there + 1).cpu().device.type == "cpu"
        assert there[torch.tensor([0, 2])].device.type == "cuda"
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.zeros(3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.zeros(3)[torch.zeros(1, dtype=torch.int64, device="cuda")]
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


@pytest.mark.parametrize("method", ["auto", "multi-candidate"])
def test_methods_mix_no_devices(method: str) -> None:
    arguments = {"max_tokens": 4, "temperature": 0.8, "top_k": 20}
    prompts = ["Once upon a time there was a cat. The cat", "One day, Tom and"]
    with pretend.cuda():
        lm = outpace.load("stories", dtype="float64", device="cuda", graphs="off")
        ours = lm.generate(prompts, method=method, **arguments)
        assert lm.target.device.type == "cuda"
    plain = outpace.load("stories", dtype="float64", is_compiled=False).generate(prompts, **arguments)
    if method != "multi-candidate":  # which promises the law alone
        assert [result.tokens for result in ours] == [result.tokens for result in plain]
