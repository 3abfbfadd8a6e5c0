"""Searches through the engine: the library's texts and scores, handed over when they have ended, the best ones only."""

from __future__ import annotations

from typing import Any

from asking import run

from outpace import Ask, Engine
from outpace.api.engine import LanguageModel
from outpace.testing.toy import ToyModel


def test_an_engine_hands_over_the_best_texts_of_a_search() -> None:
    lm = LanguageModel(ToyModel(sharpness=1.2), None, end_tokens=[3])
    given: dict[str, Any] = {"method": "beam-search", "options": {"beams": 4, "n_best": 2}, "max_tokens": 9}
    prompts = [[1, 2, 3, 4], [5]]
    wanted = [lm.generate(prompt, **given) for prompt in prompts]

    async def use(engine: Engine) -> Any:
        plain = await engine.submit(Ask(prompt=[7, 8], arguments={"max_tokens": 9}))
        tickets = [await engine.submit(Ask(prompt=prompt, arguments=given)) for prompt in prompts]
        pieces = [[piece async for piece in ticket] for ticket in tickets]
        return pieces, [await ticket.results() for ticket in tickets], await plain.results()

    pieces, found, _ = run(lambda: Engine(lm), use)
    for told, results, theirs in zip(pieces, found, wanted, strict=True):
        assert [(one.tokens, one.score) for one in results] == [(one.tokens, one.score) for one in theirs]
        assert sorted(piece.sample for piece in told) == [0, 1]  # each at once, and no others
        assert all([token.id for token in piece.tokens] == results[piece.sample].tokens for piece in told)
