"""FreeCache with guided diffusion, against decoding written out, and at its neutral settings."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from guided_oracle import decode
from torch import Tensor

from outpace.canvas.rules.agreed import leading
from outpace.errors import ConfigError
from outpace.methods.diffusion.freecache import FreeCache
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.sampling import Sampler, Sampling
from outpace.testing.toy import ToyModel
from outpace.testing.world import PeriodicModel, drive, make_rows, make_run, target_for, write

WARM = Sampling(temperature=0.8)
KINDS = [("full", False), ("full", True), ("block", False), ("block", True)]


@functools.lru_cache(maxsize=8)
def model(attention: str, shift: bool = False, sharpness: float = 3.0) -> ToyModel:
    """A masked model that says much the same as the causal one of the toy world."""
    like = target_for("causal")
    return ToyModel(
        attention=attention, logits_shift=shift, block_size=8, like=like, noise=0.1, seed=3, sharpness=sharpness
    )


def among(top_k: int, ratio: float) -> object:
    def agreement(own: Tensor, guide: Tensor, drawn: list[int], places: list[int], visit: int) -> list[bool]:
        del own, places, visit
        guide[:, 12] = float("-inf")
        agrees = []
        for law, token in zip(guide.softmax(-1).tolist(), drawn, strict=True):
            better = sum(chance > law[token] for chance in law)
            agrees.append(better < top_k and law[token] >= ratio * max(law))
        return agrees

    return agreement


@pytest.mark.parametrize(("attention", "shift"), KINDS)
@pytest.mark.parametrize("settings", [Sampling(), WARM], ids=["greedy", "warm"])
def test_guided_decoding_by_the_slow_way(attention: str, shift: bool, settings: Sampling) -> None:
    target, guide = model(attention, shift), target_for("causal")
    method = FreeCache(cache="none", block=8, top_k=5, ratio=0.05)
    rows = write(method, settings, make_rows(), target=target, models={"guide": guide})
    assert min(row.usage.num_steps for row in rows) < 16
    for row in rows[::3]:
        sampler = Sampler(settings, [row.key])
        wanted, steps = decode(target, guide, row.tokens[: row.num_prompt], 16, sampler, among(5, 0.05), block=8)
        assert row.written == wanted
        assert row.usage.num_steps == steps


@pytest.mark.parametrize(("attention", "shift"), KINDS)
def test_without_cache_and_guide_it_is_the_plain_sampler(attention: str, shift: bool) -> None:
    target = model(attention, shift)
    for settings in (Sampling(), WARM):
        bare = write(FreeCache(cache="none", is_guided=False, block=4), settings, make_rows(), target=target, models={})
        plain = write(MaskedDiffusion(cache="none", block=4), settings, make_rows(), target=target)
        assert [row.written for row in bare] == [row.written for row in plain]


@pytest.mark.parametrize("settings", [Sampling(), WARM], ids=["greedy", "warm"])
def test_at_both_ends_of_agreement(settings: Sampling) -> None:
    target = model("full")
    everything = FreeCache(cache="none", block=4, top_k=13, ratio=0.0)
    blocks = write(MaskedDiffusion(block=4, per_step=4, order="left"), settings, make_rows(), target=target)
    got = write(everything, settings, make_rows(), target=target)
    assert [row.written for row in got] == [row.written for row in blocks]
    # A guide that expects tokens which are never drawn agrees with nothing.
    never = FreeCache(cache="none", block=4, top_k=1, ratio=1.0)
    banned = Sampling(temperature=settings.temperature, logit_bias=dict.fromkeys(range(6), -1e9))
    left = write(MaskedDiffusion(block=4, order="left"), banned, make_rows(), target=target)
    got = write(never, banned, make_rows(), target=target, models={"guide": PeriodicModel(6)})
    assert [row.written for row in got] == [row.written for row in left]


def test_guide_forwards_are_counted_and_steps_drop() -> None:
    rows = make_rows()
    run = make_run(
        FreeCache(block=8, top_k=5, ratio=0.05), target=model("full"), models={"guide": target_for("causal")}
    )
    drive(run, rows)
    assert run.counters["draft"].nfe == run.num_steps
    assert sum(row.usage.num_steps for row in rows) < 16 * len(rows)
    assert all(row.usage.draft_nfe == row.usage.num_steps for row in rows)


def test_the_free_cache_computes_fewer_positions() -> None:
    spent = {}
    for cache in ("none", "free"):
        rows = write(FreeCache(cache=cache, window=2, block=8), WARM, make_rows(), target=model("full", True))
        spent[cache] = sum(row.usage.positions_scored for row in rows) / sum(row.usage.num_steps for row in rows)
    assert spent["free"] < spent["none"]
    fresh = write(FreeCache(refresh=1, window=2, block=8), WARM, make_rows(), target=model("full", True))
    plain = write(FreeCache(cache="none", block=8), WARM, make_rows(), target=model("full", True))
    assert [row.written for row in fresh] == [row.written for row in plain]


def test_rows_of_a_batch_are_guided_apart() -> None:
    for attention, shift in (("full", False), ("block", True)):
        target, method = model(attention, shift), FreeCache(block=8, window=3)
        together = write(method, WARM, make_rows(), target=target)
        for index, row in enumerate(make_rows()):
            write(method, WARM, [row], target=target)
            assert row.written == together[index].written


def test_beyond_its_context_the_guide_is_silent() -> None:
    short = ToyModel(max_positions=12)
    near, far = make_rows()[1], make_rows()[3]
    method = FreeCache(cache="none", block=8, top_k=13, ratio=0.0)
    write(method, WARM, [near, far], target=model("full"), models={"guide": short})
    # 16 places behind a prompt of 1: one step up to the guide's last word (place 12), then one place a step.
    assert near.usage.num_steps == 2 + 4
    assert far.usage.num_steps == 16


def test_an_end_token_inside_the_agreed_run_ends_the_row() -> None:
    method = FreeCache(block=8, top_k=13, ratio=0.0)
    row = make_rows()[0]
    write(method, WARM, [row], target=model("full"))
    end = row.written[2]
    cut = make_rows(end_tokens=(end,))[0]
    write(method, WARM, [cut], target=model("full"))
    assert cut.written == row.written[: row.written.index(end) + 1]
    assert cut.usage.num_steps == 1


@pytest.mark.parametrize("agrees", [[], [0], [1, 1, 0, 1], [0, 1, 1], [1, 1, 1]])
def test_leading(agrees: list[int]) -> None:
    run = next((index for index, is_so in enumerate(agrees) if not is_so), len(agrees))
    wanted = [index < max(1, run) for index in range(len(agrees))]
    assert leading(np.array(agrees, dtype=bool)).tolist() == wanted


def test_bad_settings() -> None:
    for bad in ({"window": -1}, {"top_k": 0}, {"ratio": 1.5}, {"ratio": -0.1}, {"order": "x"}, {"cache": "x"}):
        with pytest.raises(ConfigError):
            FreeCache(**bad)
    assert FreeCache(is_guided=False).needs.models == ()
