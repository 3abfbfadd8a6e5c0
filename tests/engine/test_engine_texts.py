"""The engine writes what the library writes, token for token, whoever is served beside it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from asking import METHODS, answer, arguments, run, told, wanted

import outpace
from outpace import Ask, Engine, LanguageModel
from outpace.engine.limits import Limits

PROMPTS = ["the quick brown fox", "the lazy dog and then the", "x", "sleeps " * 30]


@pytest.fixture(scope="module")
def lm(tiny: Path) -> LanguageModel:
    return outpace.load(tiny)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def stories(request: pytest.FixtureRequest) -> LanguageModel:
    return outpace.load("stories", dtype=request.param)


def check(
    lm: LanguageModel, seed: int, count: int, limits: Limits, prompts: list[str], methods: list[str] = METHODS
) -> None:
    chance = random.Random(seed)
    asks = [(chance.choice(prompts), arguments(chance, methods=methods)) for _ in range(count)]

    async def use(engine: Engine) -> None:
        given = [Ask(prompt=prompt, arguments=one, priority=chance.randint(0, 2)) for prompt, one in asks]
        for (prompt, one), (results, _) in zip(
            asks, await asyncio.gather(*(answer(engine, ask) for ask in given)), strict=True
        ):
            assert [told(result) for result in results] == wanted(lm, prompt, one), (prompt, one)
        load = await engine.load()
        assert (load.running, load.waiting, load.pages_used) == (0, 0, 0)

    run(lambda: Engine(lm, limits=limits), use)


@pytest.mark.parametrize(("max_rows", "count"), [(1, 4), (7, 12), (32, 32)])
def test_a_full_batch_writes_what_each_ask_alone_writes(lm: LanguageModel, max_rows: int, count: int) -> None:
    check(lm, max_rows, count, Limits(max_rows=max_rows, step_tokens=40), PROMPTS)


def test_compiled_kernels_write_the_same(stories: LanguageModel) -> None:
    prompts = ["Once upon a time", "Tom had a red ball. " * 8, "A"]
    methods = [*METHODS, "draft-model", "layer-skip", "suffix"]
    check(stories, 3, 16, Limits(max_rows=8, step_tokens=48), prompts, methods)
