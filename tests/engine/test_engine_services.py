"""What an engine does beside plain texts: other models, vectors, log-probabilities of prompts, what steps did."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import torch
from asking import answer, run, told, wanted

import outpace
from outpace import Ask, Engine, LanguageModel
from outpace.engine.limits import Limits
from outpace.errors import CapabilityError, ConfigError
from outpace.types import Outputs

PROMPT = "Once upon a time there was a dog. The dog was"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return outpace.load("stories")


@pytest.fixture(scope="module")
def engine(lm: LanguageModel) -> Any:
    engine = Engine(lm, limits=Limits(step_tokens=16))
    yield engine
    asyncio.run(engine.close())


def test_vectors_are_those_of_the_last_hidden_states(lm: LanguageModel, engine: Engine) -> None:
    texts = [lm.encode(text) for text in (PROMPT, "A", PROMPT * 30, "The cat.")]
    for pooling in ("mean", "last"):
        found = asyncio.run(engine.embed(texts, pooling))
        for ids, vector in zip(texts, found, strict=True):
            tokens, position = torch.tensor([ids]), torch.arange(len(ids)).unsqueeze(0)
            cache = lm.target.new_cache(1, len(ids))
            last = lm.target.score(tokens, position, None, cache, outputs=Outputs(has_last=True)).last
            assert last is not None
            state = last[0].double().mean(0) if pooling == "mean" else last[0, -1].double()
            assert torch.allclose(torch.tensor(vector).double(), state / state.norm(), atol=1e-6)
    for bad, error in (([[]], ConfigError), ([[10**9]], ConfigError), ([texts[0] * 999], ConfigError)):
        with pytest.raises(error):
            asyncio.run(engine.embed(bad))
    with pytest.raises(ConfigError, match="pooling"):
        asyncio.run(engine.embed(texts, "most"))


def test_a_prompt_has_its_log_probabilities(lm: LanguageModel, engine: Engine) -> None:
    (result,) = engine.generate(Ask(prompt=PROMPT, arguments={"max_tokens": 3}, prompt_log_probs=2))
    scored = lm.score(PROMPT)
    assert [one for one, _ in result.prompt_log_probs] == pytest.approx(scored.log_probs)
    assert result.prompt_log_probs[0] == (None, [])
    assert all(len(top) == 2 and top[0][1] >= max(own, top[1][1]) for own, top in result.prompt_log_probs[1:])
    assert told(result) == wanted(lm, PROMPT, {"max_tokens": 3})[0]


def test_tokens_come_with_their_log_probabilities_and_steps(lm: LanguageModel, engine: Engine) -> None:
    arguments = {"max_tokens": 24, "top_log_probs": 2, "method": "prompt-lookup"}
    results, pieces = asyncio.run(answer(engine, Ask(prompt=PROMPT * 3, arguments=arguments, is_traced=True)))
    (result,), tokens = results, [token for piece in pieces for token in piece.tokens]
    assert [token.top for token in tokens] == lm.generate(PROMPT * 3, **arguments).top_log_probs
    assert all(token.log_prob is not None for token in tokens)
    steps = [piece.step for piece in pieces if piece.step is not None]
    assert [(step["proposed"], step["accepted"]) for step in steps] == result.steps and any(
        kept for _, kept in result.steps
    )
    for piece, step in zip(pieces, steps, strict=True):
        assert len(step["tokens"]) == len(step["parents"]) == step["proposed"]
        drafted = [token.id for token in piece.tokens if token.source == "draft"]
        assert drafted == step["tokens"][: len(drafted)] and len(drafted) == step["accepted"]
        assert step["drafter"] == ("prompt-lookup" if step["proposed"] else "")


def test_approximate_methods_and_fixed_widths_stand_beside_others(lm: LanguageModel, engine: Engine) -> None:
    asks = [
        Ask(
            prompt=PROMPT,
            arguments={"method": "typical-acceptance", "max_tokens": 16, "num_samples": 2, "temperature": 1.0},
        ),
        Ask(prompt=PROMPT, arguments={"max_tokens": 8, "is_batch_invariant": True}),
        Ask(prompt=PROMPT, arguments={"max_tokens": 8}),
    ]

    async def use() -> None:
        for ask, (results, _) in zip(asks, await asyncio.gather(*(answer(engine, ask) for ask in asks)), strict=True):
            assert [told(result) for result in results] == wanted(lm, ask.prompt, dict(ask.arguments))

    asyncio.run(use())


def test_masked_models_are_served() -> None:
    masked = outpace.load("stories-mask")
    asks = [
        Ask(prompt="Once upon a time", arguments={"method": "masked-diffusion", "max_tokens": 16, "seed": seed})
        for seed in range(2)
    ]
    asks.append(Ask(prompt="Once upon a time", arguments={"method": "masked-diffusion", "canvas": [-1, -1, 20, -1]}))

    async def use(engine: Engine) -> None:
        assert engine.traits.is_canvas
        for ask, (results, _) in zip(asks, await asyncio.gather(*(answer(engine, ask) for ask in asks)), strict=True):
            assert [told(result) for result in results] == wanted(masked, ask.prompt, dict(ask.arguments))
        with pytest.raises(CapabilityError):
            await engine.submit(Ask(prompt="x", prompt_log_probs=0))

    run(lambda: Engine(masked), use)


@pytest.mark.parametrize(("name", "method"), [("translate", "autoregressive"), ("translate-fast", "one-pass")])
def test_encoder_decoders_are_served(name: str, method: str) -> None:
    lm = outpace.load(name)
    asks = [Ask(prompt=text, arguments={"max_tokens": 12}) for text in ("The dog is here.", "I see the house.")]

    async def use(engine: Engine) -> None:
        assert engine.traits.is_encoder_decoder and not engine.traits.has_hidden
        assert engine.traits.plain_method == method
        for ask, (results, _) in zip(asks, await asyncio.gather(*(answer(engine, ask) for ask in asks)), strict=True):
            assert [told(result) for result in results] == wanted(lm, ask.prompt, dict(ask.arguments))

    run(lambda: Engine(lm), use)


def test_callers_from_several_threads_share_an_engine(lm: LanguageModel, engine: Engine) -> None:
    expected = {seed: wanted(lm, PROMPT, {"max_tokens": 12, "seed": seed, "temperature": 1.0}) for seed in range(8)}
    found: dict[int, list[Any]] = {}

    def call(seed: int) -> None:
        ask = Ask(prompt=PROMPT, arguments={"max_tokens": 12, "seed": seed, "temperature": 1.0})
        results = engine.generate(ask) if seed % 2 else asyncio.run(answer(engine, ask))[0]
        found[seed] = [told(result) for result in results]

    threads = [threading.Thread(target=call, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == expected
