"""Short asks from many callers who cancel, ask for nonsense and give up: none is lost or crossed, nothing is kept."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from asking import run, told, wanted

import outpace
from outpace import Ask, Engine
from outpace.engine.face import Busy, Ticket
from outpace.engine.limits import Limits
from outpace.errors import ConfigError

CALLERS, ASKS = 64, 1000
PROMPTS = [[5, 9, 2], [5, 9, 2, 7, 7, 1], [3], list(range(1, 80))]
KINDS: list[dict[str, Any]] = [
    {"max_tokens": 2},
    {"max_tokens": 4, "method": "prompt-lookup"},
    {"max_tokens": 6, "temperature": 1.0},
    {"max_tokens": 3, "temperature": 0.7, "top_k": 9, "num_samples": 2},
    {"max_tokens": 5, "method": "token-recycling", "stop": ["e"]},
]


def test_a_thousand_short_asks() -> None:
    lm, known = outpace.load("stories"), dict[str, Any]()
    counts = dict.fromkeys(("done", "cancelled", "bad", "left", "busy"), 0)

    async def submit(engine: Engine, ask: Ask) -> Ticket:
        while True:
            try:
                return await engine.submit(ask)
            except Busy as error:
                counts["busy"] += 1
                await asyncio.sleep(min(0.01, error.retry_s))

    async def one(engine: Engine, chance: random.Random) -> None:
        prompt, given = chance.choice(PROMPTS), {**chance.choice(KINDS), "seed": chance.randrange(3)}
        what = chance.choices(["done", "cancelled", "bad", "left"], [80, 8, 6, 6])[0]
        if what == "bad":
            with pytest.raises(ConfigError):
                await submit(engine, Ask(prompt=prompt, arguments={**given, "max_tokens": -1}))
            counts[what] += 1
            return
        ticket = await submit(engine, Ask(prompt=prompt, arguments=given, priority=chance.randint(0, 2)))
        assert ticket.prompt_tokens == prompt
        if what == "left":  # a caller who is no longer there
            ticket.cancel()
            counts[what] += 1
            return
        texts: dict[int, list[int]] = {}
        async for piece in ticket:
            texts.setdefault(piece.sample, []).extend(token.id for token in piece.tokens)
            if what == "cancelled":
                ticket.cancel()
        results = await ticket.results()
        assert [result.tokens for result in results] == [texts[result.sample] for result in results]
        expected = known.setdefault(f"{prompt} {given}", None) or wanted(lm, prompt, given)
        known[f"{prompt} {given}"] = expected
        for result, (tokens, *rest) in zip(results, expected, strict=True):
            if result.finish_reason == "cancelled":
                assert result.tokens == tokens[: len(result.tokens)]
            else:
                assert told(result) == (tokens, *rest)
        counts[what] += 1

    async def use(engine: Engine) -> None:
        left = iter(range(ASKS))

        async def caller(number: int) -> None:
            chance = random.Random(number)
            for _ in left:
                await one(engine, chance)

        await asyncio.gather(*(caller(number) for number in range(CALLERS)))
        while (load := await engine.load()).running or load.waiting:
            await asyncio.sleep(0.01)
        del counts["busy"]
        assert sum(counts.values()) == ASKS and min(counts.values()) > 20
        assert load.pages_used == 0 and load.pages == 40

    run(lambda: Engine(lm, limits=Limits(max_rows=16, max_queue=40, cache_tokens=40 * 32)), use)
