"""Searches through the engine and the server's fields: the library's texts, beside others, and limits by name."""

from __future__ import annotations

from typing import Any

import pytest
from asking import run

from outpace import Ask, Engine
from outpace.api.engine import LanguageModel
from outpace.engine.limits import Limits
from outpace.errors import ConfigError
from outpace.server.asking import arguments
from outpace.server.errors import Refused
from outpace.server.schemas import CompletionBody
from outpace.server.settings import ServerSettings
from outpace.testing.toy import ToyModel

GIVEN: dict[str, Any] = {"search": "best-of", "options": {"n": 4, "n_best": 2}, "max_tokens": 9, "seed": 5}


def test_an_engine_hands_over_the_best_texts_of_a_search() -> None:
    lm = LanguageModel(ToyModel(sharpness=1.2), None, end_tokens=[3])
    wanted, plain = lm.generate([1, 2, 3, 4], **GIVEN), lm.generate([7, 8], max_tokens=9)

    def fails(texts: Any) -> Any:
        raise KeyError("no")

    async def use(engine: Engine) -> Any:
        other = await engine.submit(Ask(prompt=[7, 8], arguments={"max_tokens": 9}))
        ticket = await engine.submit(Ask(prompt=[1, 2, 3, 4], arguments=GIVEN))
        failing = {**GIVEN, "options": {"n": 2, "reward": fails}}
        broken = await engine.submit(Ask(prompt=[1, 2, 3, 4], arguments=failing))
        gone = await engine.submit(Ask(prompt=[1, 2, 3, 4], arguments=GIVEN))
        gone.cancel()
        with pytest.raises(ConfigError, match="holds 9 texts"):
            await engine.submit(Ask(prompt=[1], arguments={"search": "best-of", "options": {"n": 9}}))
        pieces = [piece async for piece in ticket]
        return pieces, [await one.results() for one in (ticket, other, broken, gone)]

    pieces, (found, theirs, broken, gone) = run(lambda: Engine(lm, limits=Limits(max_rows=8)), use)
    assert [(one.tokens, one.score) for one in found] == [(one.tokens, one.score) for one in wanted]
    assert [[token.id for token in piece.tokens] for piece in pieces] == [one.tokens for one in wanted]
    assert theirs[0].tokens == plain.tokens
    assert broken[0].finish_reason == "error" and "KeyError" in broken[0].notes[-1]
    assert {one.finish_reason for one in gone} <= {"cancelled", "eos", "length"}


def asked(**extra: Any) -> dict[str, Any]:
    body = CompletionBody.model_validate({"prompt": "a", "n": 2, "outpace": extra})
    lm = LanguageModel(ToyModel(), None)
    settings = ServerSettings(rewards={"mine": "mine.py:good"})
    from outpace.engine.core import read_traits

    class Face:
        traits, tokenizer = read_traits(lm, 64), None

    return arguments(body, Face(), settings, {"type": "http"}, 1, 4)  # type: ignore[arg-type]


def test_a_request_names_a_search_and_a_reward_of_the_server() -> None:
    found = asked(search="best-of", options={"n": 4, "reward": "mine"})
    assert found["search"] == "best-of" and found["num_samples"] == 1 and found["method"] == "autoregressive"
    assert found["options"] == {"n": 4, "reward": "mine.py:good", "n_best": 2}


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ({"search": "best-of", "options": {"reward": "other.py:good"}}, "no reward of this server"),
        ({"search": "best-of", "options": {"n": 100_000}}, "at most 1024"),
        ({"search": "step-beam"}, "returns one text"),
    ],
)
def test_what_a_request_may_not_ask_of_a_search_is_refused(extra: dict[str, Any], word: str) -> None:
    with pytest.raises(Refused, match=word):
        asked(**extra)
