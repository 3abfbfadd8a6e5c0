"""Cache policies of canvases: what stays, that nothing approximate is read at refresh=1, and what the others change."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

from outpace.api.engine import LanguageModel
from outpace.bench.canvas_caches import caches, main, table
from outpace.canvas import Canvas, CanvasRow, FixedBlocks, Parts, make_policy
from outpace.canvas.policies import POLICIES, Step
from outpace.canvas.reading import Reading
from outpace.canvas.rules import Ranked
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.diffusion.dkv_cache import DkvCache
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.run.row import Row
from outpace.sampling import Sampler, Sampling, row_key
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, make_rows, write
from outpace.trace.divergence import Divergence, divergence

GREEDY, WARM = Sampling(), Sampling(temperature=0.8)
KINDS = [(attention, shift) for attention in ("full", "block") for shift in (False, True)]
APPROXIMATE = tuple(POLICIES)
MASK = 12


@functools.lru_cache(maxsize=8)
def model(attention: str, shift: bool) -> ToyModel:
    return ToyModel(attention=attention, logits_shift=shift, block_size=8)


def rows_of(attention: str, shift: bool, settings: Sampling, **options: object) -> list[Row]:
    method = MaskedDiffusion(**{"block": 4, **options})  # type: ignore[arg-type]
    return write(method, settings, make_rows(), target=model(attention, shift))


@functools.lru_cache(maxsize=16)
def uncached(attention: str, shift: bool, is_warm: bool) -> tuple[list[list[int]], int]:
    rows = rows_of(attention, shift, WARM if is_warm else GREEDY, cache="none")
    return [row.written for row in rows], sum(row.usage.positions_scored for row in rows)


@pytest.mark.parametrize(("attention", "shift"), KINDS)
@pytest.mark.parametrize("cache", APPROXIMATE)
def test_refreshed_at_every_step_equals_uncached(cache: str, attention: str, shift: bool) -> None:
    for is_warm in (False, True):
        rows = rows_of(attention, shift, WARM if is_warm else GREEDY, cache=cache, refresh=1)
        assert [row.written for row in rows] == uncached(attention, shift, is_warm)[0]


@pytest.mark.parametrize("cache", ["none", "block", "prefix", "delayed"])
@pytest.mark.parametrize("attention", ["block", "causal-block"])
def test_a_step_is_one_forward_once_the_prompt_is_read(attention: str, cache: str) -> None:
    """A finished block is read beside the next one, and without a cache the text beside everything else."""
    most = math.ceil(max(map(len, PROMPTS)) / 4)  # forwards of a prompt
    for row in rows_of(attention, False, GREEDY, cache=cache):
        assert row.usage.num_steps <= row.usage.target_nfe <= row.usage.num_steps + most


@pytest.mark.parametrize("shift", [False, True])
def test_the_block_cache_is_exact(shift: bool) -> None:
    for is_warm in (False, True):
        rows = rows_of("block", shift, WARM if is_warm else GREEDY, cache="block")
        wanted, positions = uncached("block", shift, is_warm)
        assert [row.written for row in rows] == wanted
        assert sum(row.usage.positions_scored for row in rows) < positions


@pytest.mark.parametrize(("attention", "shift"), KINDS)
@pytest.mark.parametrize("cache", APPROXIMATE)
def test_fewer_positions_are_computed(cache: str, attention: str, shift: bool) -> None:
    most = uncached(attention, shift, False)[1]
    never, often = (
        sum(row.usage.positions_scored for row in rows_of(attention, shift, GREEDY, cache=cache, refresh=n))
        for n in (0, 2)
    )
    assert never < most
    assert never <= often <= most


@pytest.mark.parametrize("cache", APPROXIMATE)
def test_a_row_in_a_batch_equals_it_alone(cache: str) -> None:
    method = MaskedDiffusion(block=8, cache=cache, refresh=3, ahead=4)
    target = model("full", True)
    together = write(method, WARM, make_rows(), target=target)
    for index, row in enumerate(make_rows()):
        write(method, WARM, [row], target=target)
        assert row.written == together[index].written


def random_step(source: np.random.Generator, canvas: Canvas) -> Step:
    """A row of 30 places, some of them written now, as rules would leave it."""
    base = int(source.integers(4, 20))
    tokens = source.integers(0, MASK, 30)
    tokens[base:][source.random(30 - base) < 0.7] = MASK
    end = base + int(source.integers(1, 30 - base))
    after = tokens.copy()
    masked = np.flatnonzero(tokens == MASK)
    after[masked[source.random(len(masked)) < 0.3]] = 5
    before = CanvasRow(tokens, tokens != MASK, np.zeros(30), 4, base, end)
    rest = np.flatnonzero(after[base:end] == MASK)
    moved = base if len(rest) else end
    return Step(before, CanvasRow(after, tokens != MASK, np.zeros(30), 4, moved, end), canvas)


@pytest.mark.parametrize("seed", range(12))
def test_policies_against_their_definitions(seed: int) -> None:
    step = random_step(np.random.default_rng(seed), Canvas(MASK))
    before, after = step.before.tokens.tolist(), step.after.tokens.tolist()
    radius = seed % 4
    clean = before.index(MASK) if MASK in before else 30
    fresh = [p for p in range(30) if before[p] != after[p]]
    todo = [p for p in range(step.after.base, step.after.end) if after[p] == MASK]
    wanted = {
        "delayed": [before[p] != MASK and before[p] == after[p] for p in range(30)],
        "greedy": [not step.is_block_done and all(abs(p - q) > radius for q in fresh + todo) for p in range(30)],
        "free": [p < clean - radius for p in range(30)],
    }
    for name, stays in wanted.items():
        assert make_policy(name, 0, radius).stay(step).tolist() == stays, name


def test_a_token_that_is_masked_again_leaves_the_delayed_cache() -> None:
    step = random_step(np.random.default_rng(0), Canvas(MASK))
    place = int(np.flatnonzero(step.before.tokens != MASK)[-1])
    step.after.tokens[place] = MASK
    assert not make_policy("delayed").stay(step)[place]


def slow_kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def reading_of(logits: torch.Tensor) -> Reading:
    places = np.arange(len(logits))
    return Reading(places, places, logits, Sampler(GREEDY, [1]), 0)


def test_divergence_of_laws_by_the_formula() -> None:
    source = torch.Generator().manual_seed(0)
    both = torch.randn(2, 6, 9, generator=source, dtype=torch.float64)
    both[..., 4] = float("-inf")
    seen = Divergence("x")
    seen._compare(reading_of(both[0]), reading_of(both[1]))
    p, q = both.softmax(-1).tolist()
    each = [slow_kl(a, b) for a, b in zip(p, q, strict=True)]
    assert seen.mean_kl == pytest.approx(sum(each) / 6)
    assert seen.worst_kl == pytest.approx(max(each))
    assert seen.changed == sum(a.index(max(a)) != b.index(max(b)) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize(("attention", "shift"), [("full", True), ("block", False), ("block", True)])
def test_divergence_is_nothing_for_exact_caches_and_something_for_others(attention: str, shift: bool) -> None:
    target = model(attention, shift)
    canvas = Canvas(MASK, target.capabilities.block_size, shift)
    parts = Parts(canvas, Ranked(), FixedBlocks(8), make_policy("none"))
    policies = [make_policy("delayed", 1), make_policy("delayed"), make_policy("greedy", 0, 0)]
    policies += [make_policy("block")] if canvas.block_size else []
    sampler = Sampler(WARM, [row_key(7, 0)] * 2, [(), (3,)])
    found = divergence(target, parts, PROMPTS[:2], 16, policies, sampler)
    exact = [found[0], *found[3:]]
    assert all(seen.worst_kl < 1e-12 and seen.changed == 0 and seen.agreement == 1 for seen in exact)
    assert all(seen.kl > 1e-6 and seen.laws > seen.steps > 0 for seen in found[1:3])
    assert found[0].positions_share == (1 if attention == "full" else pytest.approx(found[0].positions_share))
    assert all(0 < seen.positions_share < 1 for seen in found[1:])


def test_the_uncached_side_is_plain_decoding() -> None:
    """With the plain text as the only agreeing one, a policy that changes nothing agrees with it wholly."""
    target = model("full", False)
    row = make_rows()[0]
    write(MaskedDiffusion(block=8, cache="delayed"), WARM, [row], target=target)
    plain = make_rows()[0]
    write(MaskedDiffusion(block=8, cache="none"), WARM, [plain], target=target)
    parts = Parts(Canvas(MASK), Ranked(), FixedBlocks(8), make_policy("none"))
    seen = divergence(target, parts, [PROMPTS[0]], 16, [make_policy("delayed")], Sampler(WARM, [row.key], [()]))[0]
    assert seen.agreeing == sum(a == b for a, b in zip(row.written, plain.written, strict=True))
    assert seen.tokens == 16


def test_dkv_cache() -> None:
    for variant in ("decode", "greedy"):
        rows = write(DkvCache(block=4, variant=variant, refresh=1), WARM, make_rows(), target=model("full", True))
        assert [row.written for row in rows] == uncached("full", True, True)[0]
        rows = write(DkvCache(block=4, variant=variant), GREEDY, make_rows(), target=model("full", True))
        assert sum(row.usage.positions_scored for row in rows) < uncached("full", True, False)[1]
    for bad in ({"variant": "x"}, {"window": -1}, {"cache": "dual"}, {"refresh": -1}):
        with pytest.raises(ConfigError):
            DkvCache(**bad)


def test_the_table() -> None:
    lm = LanguageModel(model("block", True), end_tokens=(3,))
    found = caches(lm, [PROMPTS[0], PROMPTS[2]], max_tokens=8)
    lines = table(found).splitlines()
    assert len(lines) == 2 + len(found)
    assert lines[2].startswith("| block | 0 |")
    assert lines[2].endswith("| 0.0000 | 0.00 | 0.0% | 100.0% | " + lines[2].split(" | ")[-1])
    assert len(caches(LanguageModel(model("full", False)), [PROMPTS[1]], max_tokens=4)) == len(found) - 1
    with pytest.raises(CapabilityError):
        caches(LanguageModel(ToyModel()), [PROMPTS[0]])
    with pytest.raises(ConfigError):
        caches(lm, [])


def test_the_command_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-model"]) == 2
    assert "no-such-model" in capsys.readouterr().err
