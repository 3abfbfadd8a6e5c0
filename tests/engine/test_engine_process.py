"""The engine in a process of its own: killed and hung under load, it fails what it held and is started again."""

from __future__ import annotations

import asyncio
import os
import queue
import random
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asking import answer, arguments, told, wanted

import outpace
from outpace import Ask, LanguageModel
from outpace.engine.child import _Child
from outpace.engine.face import Gone
from outpace.engine.limits import Limits
from outpace.engine.process import EngineProcess
from outpace.engine.wire import Message
from outpace.errors import ConfigError, ModelError

PROMPTS = ["Once upon a time", "Tom had a red ball.", "A"]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return outpace.load("stories")


@pytest.fixture(scope="module")
def process() -> Any:
    engine = EngineProcess("stories", limits=Limits(max_rows=8, max_queue=64), hang_s=6, threads=1)
    yield engine
    asyncio.run(engine.close(5))
    assert engine.process_id is None


def test_it_answers_as_the_library_does(lm: LanguageModel, process: EngineProcess) -> None:
    chance = random.Random(11)
    asks = [Ask(prompt=chance.choice(PROMPTS), arguments=arguments(chance, 12)) for _ in range(12)]

    async def use() -> None:
        assert process.tokenizer is not None and process.traits.context == lm.target.capabilities.max_positions
        for ask, (results, _) in zip(asks, await asyncio.gather(*(answer(process, ask) for ask in asks)), strict=True):
            assert [told(result) for result in results] == wanted(lm, ask.prompt, dict(ask.arguments)), ask
        (vector,) = await process.embed([lm.encode("A dog")], "last")
        assert sum(value * value for value in vector) == pytest.approx(1)
        for bad in ({"temprature": 1}, {"watch": print}, {"regex": lambda: 0}, {"max_tokens": 0}):
            with pytest.raises(ConfigError):
                await process.submit(Ask(prompt="x", arguments=bad))
        with pytest.raises(ConfigError):
            await process.embed([[10**9]])
        ticket = await process.submit(Ask(prompt=PROMPTS[0], arguments={"max_tokens": 900, "ignore_eos": True}))
        await anext(aiter(ticket))
        ticket.cancel()
        assert (await ticket.results())[0].finish_reason == "cancelled"

    asyncio.run(use())


def test_an_ask_that_has_ended_leaves_nothing_in_the_process(tiny: Path) -> None:
    told = queue.SimpleQueue[Message]()
    channel = SimpleNamespace(send=lambda frame: [told.put(message) for message in frame])
    child = _Child(channel, str(tiny), Limits(), {})
    asks = [{"max_tokens": 2}, {"max_tokens": 2, "temprature": 1}, {"max_tokens": 2, "num_samples": 2}]
    for number, given in enumerate(asks):
        child._ask(number, Ask(prompt="the dog", arguments=given))
    left = set(range(len(asks)))
    while left:
        kind, number, *_ = told.get(timeout=60)
        left -= {number} if kind in ("end", "refused") else set()
    child._worker.close(0)
    assert not child._cancels


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_is_started_again(lm: LanguageModel, process: EngineProcess, how: int) -> None:
    given = {"max_tokens": 900, "ignore_eos": True}

    async def use() -> None:
        before = (await process.load()).restarts
        tickets = [await process.submit(Ask(prompt="A", arguments={**given, "seed": seed})) for seed in range(4)]
        pieces = [await anext(aiter(ticket)) for ticket in tickets]
        assert all(piece.tokens for piece in pieces) and process.process_id is not None
        os.kill(process.process_id, how)
        for ticket in tickets:
            with pytest.raises(Gone):
                await asyncio.wait_for(ticket.results(), 60)
        for _ in range(6000):
            try:
                results, _ = await answer(process, Ask(prompt=PROMPTS[0], arguments={"max_tokens": 8}))
                break
            except Gone as error:
                assert error.hint
                await asyncio.sleep(0.01)
        assert [told(result) for result in results] == wanted(lm, PROMPTS[0], {"max_tokens": 8})
        load = await process.load()
        assert load.is_alive and load.restarts == before + 1 and load.running == 0

    asyncio.run(use())


def test_a_model_that_cannot_be_loaded_is_named() -> None:
    with pytest.raises(ModelError):
        EngineProcess("no-such-model")
