"""Pages: prefixes are found again, rows wait when pages run out, and every text stays what it is alone."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest
from asking import answer, run, told, wanted

import outpace
from outpace import Ask, Engine, LanguageModel
from outpace.api.starting import CHUNK, own, prepare, shared_run
from outpace.cache import PagedCache
from outpace.engine.limits import Limits
from outpace.engine.memory import new_memory
from outpace.errors import ConfigError

PREFIX = "Once upon a time there was a little girl who liked to play in the garden with her dog. " * 3


@pytest.fixture(scope="module")
def lm(tiny: Path) -> LanguageModel:
    return outpace.load(tiny)


@pytest.fixture(scope="module")
def stories() -> LanguageModel:
    return outpace.load("stories")


@pytest.mark.parametrize("kind", ["eager", "compiled"])
def test_rows_that_had_to_wait_go_on_where_they_stood(lm: LanguageModel, stories: LanguageModel, kind: str) -> None:
    model, chance = lm if kind == "eager" else stories, random.Random(7)
    asks = [
        Ask(
            prompt="the lazy dog " * chance.randint(1, 6),
            arguments={
                "method": chance.choice(["autoregressive", "prompt-lookup", "jacobi"]),
                "max_tokens": 100,
                "temperature": chance.choice([0.0, 1.0]),
                "seed": number,
                "ignore_eos": True,
                "repetition_penalty": 1.1,
                "record": ["log_probs"],
            },
            priority=chance.randint(0, 1),
        )
        for number in range(6)
    ]

    expected = [wanted(model, ask.prompt, dict(ask.arguments)) for ask in asks]

    async def use(engine: Engine) -> None:
        for salt in "abcdefgh":  # until enough came at once
            fresh = [replace(ask, salt=salt) for ask in asks]
            found = await asyncio.gather(*(answer(engine, ask) for ask in fresh))
            assert [[told(result) for result in results] for results, _ in found] == expected
            load = await engine.load()
            assert load.pages == 7 and load.pages_used == load.running == load.waiting == 0
            if load.preempted:
                return
        raise AssertionError("nobody had to wait")

    run(lambda: Engine(model, limits=Limits(max_rows=6, cache_tokens=7 * 32, step_tokens=64)), use)


def test_a_prefix_is_read_once(stories: LanguageModel) -> None:
    size = len(stories.encode(PREFIX))
    arguments = {"max_tokens": 12, "ignore_eos": True, "method": "prompt-lookup"}

    async def use(engine: Engine) -> None:
        asks = [Ask(prompt=PREFIX + tail, arguments=arguments) for tail in ("He", "She", "One day", "Then")]
        found = await asyncio.gather(*(answer(engine, ask) for ask in asks))  # all at once: one reads for the others
        found.append(await answer(engine, asks[0]))
        for ask, (results, _) in zip([*asks, asks[0]], found, strict=True):
            assert [told(result) for result in results] == wanted(stories, ask.prompt, arguments)
        cached = [results[0].cached_tokens for results, _ in found]
        known = sorted(cached[:4])
        assert known[0] == 0 and known[1] >= size // 32 * 32 - 32 and cached[4] >= known[1]
        load = await engine.load()
        assert load.cached_tokens == sum(cached)
        again, _ = await answer(engine, Ask(prompt=PREFIX + "He", arguments=arguments, salt="mine"))
        assert again[0].cached_tokens == 0 and again[0].tokens == found[0][0][0].tokens
        # What was written is a prefix, too.
        ids = found[0][0][0].prompt_tokens + found[0][0][0].tokens
        longer, _ = await answer(engine, Ask(prompt=ids, arguments=arguments))
        assert longer[0].cached_tokens >= len(ids) // 32 * 32 - 32
        assert [told(result) for result in longer] == wanted(stories, ids, arguments)

    run(lambda: Engine(stories), use)


def test_a_drafting_model_finds_what_it_has_read(stories: LanguageModel) -> None:
    arguments = {"max_tokens": 8, "ignore_eos": True, "method": "draft-model"}

    async def use(engine: Engine) -> None:
        read = []
        for salt in ("", "", "mine"):
            ((result,), _) = await answer(engine, Ask(prompt=PREFIX * 10, arguments=arguments, salt=salt))
            assert [told(result)] == wanted(stories, PREFIX * 10, arguments)
            read.append(result.usage.draft_nfe)  # forwards of a few hundred tokens each
        first, again, other = read
        assert again < first == other

    run(lambda: Engine(stories), use)


def test_samples_share_the_pages_of_their_prompt(stories: LanguageModel) -> None:
    arguments = {"max_tokens": 8, "num_samples": 16, "temperature": 1.0, "ignore_eos": True}
    pages: list[int] = []

    async def use(engine: Engine) -> None:
        ticket = await engine.submit(Ask(prompt=PREFIX, arguments=arguments))
        async for _ in ticket:
            pages.append((await engine.load()).pages_used)
        assert [told(result) for result in await ticket.results()] == wanted(stories, PREFIX, arguments)

    run(lambda: Engine(stories, limits=Limits(max_rows=16)), use)
    whole = len(stories.encode(PREFIX)) // 32
    assert max(pages) <= whole + 16 * 2


def test_a_text_that_pages_never_hold_is_refused(lm: LanguageModel) -> None:
    async def use(engine: Engine) -> None:
        with pytest.raises(ConfigError, match="cache"):
            await engine.submit(Ask(prompt="the dog", arguments={"max_tokens": 300}))
        results, _ = await answer(engine, Ask(prompt="the dog", arguments={"max_tokens": 20}))
        assert [told(result) for result in results] == wanted(lm, "the dog", {"max_tokens": 20})

    run(lambda: Engine(lm, limits=Limits(cache_tokens=96)), use)


def test_texts_are_as_long_as_the_cache_allows(lm: LanguageModel) -> None:
    async def use(engine: Engine) -> None:
        room = engine.traits.context - len(lm.encode("the dog"))
        given = {"max_tokens": room, "ignore_eos": True, "method": "token-recycling", "options": {"nodes": 64}}
        results, _ = await answer(engine, Ask(prompt="the dog", arguments=given))
        assert len(results[0].tokens) == room

    run(lambda: Engine(lm, limits=Limits(cache_tokens=160)), use)


@pytest.mark.parametrize("method", ["auto", "suffix", "token-recycling", "lookahead", "draft-model", "layer-skip"])
def test_what_has_ended_holds_no_pages_while_others_are_written(stories: LanguageModel, method: str) -> None:
    memory = new_memory(stories.target, 640, 4, CHUNK)
    assert memory is not None
    shared = shared_run(stories, memory.pages, memory.store)
    for prompt, max_tokens in (([5] * 90, 2), ([6], 60)):
        plan = prepare(stories, prompt, {"method": method, "max_tokens": max_tokens, "ignore_eos": True})
        own(plan)
        shared.join(plan.rows, in_line=True)
        shared.step(200)
    while len(shared.rows) > 1:
        shared.step(200)
    assert isinstance(cache := shared.batch.cache, PagedCache)
    assert memory.pages.num_pages - memory.pages.num_free == len(cache.row_tables[0])
