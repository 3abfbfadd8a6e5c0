"""What goes wrong with one ask stays with it, and the engine goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import answer, run, told, wanted
from torch import Tensor

import outpace
from outpace import Ask, Engine, LanguageModel
from outpace.engine.face import Busy, Gone
from outpace.engine.limits import Limits
from outpace.errors import CapabilityError, ConfigError, OutpaceError
from outpace.server.errors import Refused
from outpace.server.telling import check_end

LONG = {"max_tokens": 60, "ignore_eos": True, "method": "prompt-lookup"}


@pytest.fixture(scope="module")
def lm(tiny: Path) -> LanguageModel:
    return outpace.load(tiny)


@pytest.fixture(scope="module")
def cyclic(cycle: Path) -> LanguageModel:
    return outpace.load(cycle)


class Tripping:
    """A constraint that allows everything, until a text has three tokens."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def start(self) -> TrippingState:
        return TrippingState(self.vocab_size, [])


class TrippingState:
    is_complete, is_final = True, False

    def __init__(self, vocab_size: int, tokens: list[int]) -> None:
        self.vocab_size, self.tokens = vocab_size, tokens

    def fork(self) -> TrippingState:
        return TrippingState(self.vocab_size, list(self.tokens))

    def push(self, token: int) -> bool:
        if len(self.tokens) == 2:
            raise RuntimeError("tripped")
        self.tokens.append(token)
        return True

    def back(self, count: int) -> None:
        del self.tokens[len(self.tokens) - count :]

    def allowed(self) -> Tensor:
        return torch.ones(self.vocab_size, dtype=torch.bool)


def test_a_row_that_raises_fails_alone(lm: LanguageModel, vocab: int) -> None:
    async def use(engine: Engine) -> None:
        prompts = ["the quick brown fox", "x", "the lazy dog and then"]
        good = [Ask(prompt=prompt, arguments={**LONG, "record": ["log_probs"]}) for prompt in prompts]
        bad = Ask(prompt="the dog", arguments={"max_tokens": 9, "constraint": Tripping(vocab)})
        found = await asyncio.gather(*(answer(engine, ask) for ask in (*good, bad)))
        for ask, (results, _) in zip(good, found, strict=False):
            assert [told(result) for result in results] == wanted(lm, ask.prompt, dict(ask.arguments))
        ((result,), pieces) = found[-1]
        assert result.finish_reason == "error" and len(result.tokens) == 2
        assert any("tripped" in note for note in result.notes) and pieces[-1].finish == "error"
        with pytest.raises(Refused) as refused:  # whoever asked is not to blame
            check_end([result])
        assert refused.value.status_code == 500
        load = await engine.load()
        assert load.finished["error"] == 1 and load.pages_used == load.running == 0

    run(lambda: Engine(lm), use)


def test_a_step_that_nobody_is_to_blame_for_fails_all_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = outpace.load(tiny)
    score, is_broken = lm.target.score, [True]

    def fail(tokens: Tensor, *given: Any, **named: Any) -> Any:
        if is_broken[0] and len(tokens) > 1:
            raise RuntimeError("too many rows")
        return score(tokens, *given, **named)

    monkeypatch.setattr(lm.target, "score", fail)

    async def use(engine: Engine) -> None:
        asks = [Ask(prompt="the dog", arguments={**LONG, "seed": seed}) for seed in range(3)]
        found = await asyncio.gather(*(answer(engine, ask) for ask in asks))
        failed = [result for (result,), _ in found if result.finish_reason == "error"]
        assert failed and all(any("too many rows" in note for note in result.notes) for result in failed)
        is_broken[0] = False
        ((result,), _) = await answer(engine, asks[0])
        assert [told(result)] == wanted(lm, "the dog", {**LONG, "seed": 0})

    run(lambda: Engine(lm), use)


def test_nan_ends_one_row(lm: LanguageModel, altered: Any) -> None:
    poison = lm.encode("x")[0]

    def spoil(weights: dict[str, Tensor]) -> None:
        weights["model.embed_tokens.weight"][poison] = float("nan")

    broken, arguments = outpace.load(altered(spoil)), {"max_tokens": 12, "logit_bias": {poison: -100.0}}

    async def use(engine: Engine) -> None:
        asks = [Ask(prompt=prompt, arguments=arguments) for prompt in ("the dog", "ax", "quick", "the dogx", "brown")]
        found = [results[0] for results, _ in await asyncio.gather(*(answer(engine, ask) for ask in asks))]
        for ask, result in zip(asks, found, strict=True):
            if "x" in str(ask.prompt):
                assert (result.finish_reason, result.tokens) == ("error", [])
                assert any("NaN" in note for note in result.notes)
            else:
                assert [told(result)] == wanted(lm, ask.prompt, arguments)

    run(lambda: Engine(broken), use)


def test_a_cancelled_ask_ends_at_the_next_step_and_keeps_its_text(cyclic: LanguageModel) -> None:
    async def use(engine: Engine) -> None:
        ticket = await engine.submit(Ask(prompt=" ", arguments={"max_tokens": 50_000, "num_samples": 2}))
        waiting = await engine.submit(Ask(prompt=" ", arguments={"max_tokens": 50_000}))
        texts = ["", ""]
        async for piece in ticket:
            texts[piece.sample] += "".join(token.text for token in piece.tokens) + piece.rest
            if len(texts[0]) == 4 and not piece.rest:
                ticket.cancel()
        results = await ticket.results()
        assert [result.text for result in results] == texts and texts[0].startswith("日語é🙂")
        assert {result.finish_reason for result in results} == {"cancelled"}
        waiting.cancel()
        waiting.cancel()
        (result,) = await waiting.results()
        assert result.finish_reason == "cancelled"
        assert (await engine.load()).finished["cancelled"] == 3

    run(lambda: Engine(cyclic, limits=Limits(max_rows=2)), use)


def test_a_full_queue_says_when_to_come_again(cyclic: LanguageModel) -> None:
    async def use(engine: Engine) -> None:
        endless = Ask(prompt=" ", arguments={"max_tokens": 50_000})
        running = await engine.submit(endless)
        await anext(aiter(running))
        waiting = [await engine.submit(endless) for _ in range(2)]
        with pytest.raises(Busy) as caught:
            await engine.submit(endless)
        assert 0 < caught.value.retry_s <= 60
        load = await engine.load()
        assert load.running == 1
        for ticket in (running, *waiting):
            ticket.cancel()
        assert [(await ticket.results())[0].finish_reason for ticket in (running, *waiting)] == ["cancelled"] * 3
        ((result,), _) = await answer(engine, Ask(prompt=" ", arguments={"max_tokens": 5}))
        assert len(result.tokens) == 5

    run(lambda: Engine(cyclic, limits=Limits(max_rows=1, max_queue=2)), use)


def test_without_a_queue_what_can_begin_at_once_is_taken(cyclic: LanguageModel) -> None:
    async def use(engine: Engine) -> None:
        await answer(engine, Ask(prompt=" ", arguments={"max_tokens": 5}))
        running = await engine.submit(Ask(prompt=" ", arguments={"max_tokens": 50_000}))
        await anext(aiter(running))
        with pytest.raises(Busy):
            await engine.submit(Ask(prompt=" ", arguments={"max_tokens": 5}))
        running.cancel()
        await running.results()

    run(lambda: Engine(cyclic, limits=Limits(max_rows=1, max_queue=0)), use)


def test_urgent_asks_come_first(cyclic: LanguageModel) -> None:
    ended: list[int] = []

    async def use(engine: Engine) -> None:
        first = await engine.submit(Ask(prompt=" ", arguments={"max_tokens": 50_000}))
        await anext(aiter(first))

        async def one(number: int, priority: int) -> None:
            ticket = await engine.submit(Ask(prompt=" ", arguments={"max_tokens": 2}, priority=priority))
            await ticket.results()
            ended.append(number)

        tasks = []
        for number, priority in enumerate([2, 1, 1, 0, 0]):
            tasks.append(asyncio.create_task(one(number, priority)))
            while (await engine.load()).waiting <= number:
                await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(*tasks)

    run(lambda: Engine(cyclic, limits=Limits(max_rows=1)), use)
    assert ended == [3, 4, 1, 2, 0]


def test_nobody_waits_for_ever(cyclic: LanguageModel) -> None:
    before = 0

    async def use(engine: Engine) -> None:
        nonlocal before
        late = asyncio.create_task(answer(engine, Ask(prompt=" ", arguments={"max_tokens": 2}, priority=3)))

        async def urgent() -> None:
            nonlocal before
            while not late.done() and before < 500:
                await answer(engine, Ask(prompt=" ", arguments={"max_tokens": 2}))
                before += 1

        await asyncio.gather(*(urgent() for _ in range(6)))
        await late

    run(lambda: Engine(cyclic, limits=Limits(max_rows=1, age=4)), use)
    assert before < 60


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (Ask(prompt=""), ConfigError),
        (Ask(prompt=[]), ConfigError),
        (Ask(prompt=[10**9]), ConfigError),
        (Ask(prompt="x" * 2000), ConfigError),
        (Ask(prompt=["a", "b"]), ConfigError),
        (Ask(prompt="x", arguments={"temprature": 1}), ConfigError),
        (Ask(prompt="x", arguments={"temperature": "hot"}), ConfigError),
        (Ask(prompt="x", arguments={"method": "none"}), ConfigError),
        (Ask(prompt="x", arguments={"max_tokens": 0}), ConfigError),
        (Ask(prompt="x", arguments={"regex": "("}), ConfigError),
        (Ask(prompt="x", arguments={"canvas": [-1]}), CapabilityError),
        (Ask(prompt="x", chat={"tools": []}), ConfigError),
        (Ask(prompt="x", prompt_log_probs=-1), ConfigError),
        (Ask(prompt="x", prompt_log_probs=10**6), ConfigError),
    ],
)
def test_a_bad_ask_gets_a_sentence(shared: Engine, ask: Ask, error: type[OutpaceError]) -> None:
    with pytest.raises(error) as caught:
        shared.generate(ask)
    assert str(caught.value).endswith(".") and caught.value.hint


@pytest.fixture(scope="module")
def shared(lm: LanguageModel) -> Any:
    engine = Engine(lm)
    yield engine
    asyncio.run(engine.close())


def test_a_closed_engine_is_gone(cyclic: LanguageModel) -> None:
    async def use(engine: Engine) -> None:
        running = await engine.submit(Ask(prompt=" ", arguments={"max_tokens": 50_000}))
        await anext(aiter(running))
        await engine.close(0)
        assert (await running.results())[0].finish_reason == "cancelled"
        with pytest.raises(Gone):
            await engine.submit(Ask(prompt=" "))
        with pytest.raises(Gone):
            await engine.embed([[1]])
        assert not (await engine.load()).is_alive

    run(lambda: Engine(cyclic), use)
