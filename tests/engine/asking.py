"""Random asks, and what of an engine's answers has to be as the library's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from outpace import Ask, LanguageModel, Result
from outpace.engine.face import Face, Piece

METHODS = ["autoregressive", "prompt-lookup", "suffix", "token-recycling", "lookahead", "jacobi", "auto"]


def run(make: Callable[[], Face], use: Callable[[Any], Awaitable[Any]]) -> Any:
    """Use an engine in a loop of its own."""

    async def main() -> Any:
        engine = make()
        try:
            return await asyncio.wait_for(use(engine), 120)
        finally:
            await asyncio.wait_for(engine.close(5), 60)

    return asyncio.run(main())


def arguments(chance: random.Random, most: int = 24, methods: Sequence[str] = METHODS) -> dict[str, Any]:
    """What an ask may want, method and law included."""
    found: dict[str, Any] = {
        "method": chance.choice(methods),
        "max_tokens": chance.randint(1, most),
        "seed": chance.randrange(1000),
        "temperature": chance.choice([0.0, 0.7, 1.2]),
        "ignore_eos": chance.random() < 0.3,
    }
    for name, values in {
        "top_k": [5, 40],
        "top_p": [0.9],
        "min_p": [0.05],
        "repetition_penalty": [1.2],
        "stop": [["e"], ["the", ". "]],
        "num_samples": [2, 3],
        "regex": ["[a-z ]{3,20}"],
        "record": [["log_probs"]],
        "logit_bias": [{5: 2.0, 9: -5.0}],
    }.items():
        if chance.random() < 0.15:
            found[name] = chance.choice(values)
    return found


def told(result: Result) -> tuple[Any, ...]:
    """What of a result does not depend on drafts, batches and time."""
    shares = [round(value, 6) for value in result.log_probs]
    return result.tokens, result.text, result.finish_reason, result.sample, result.prompt_tokens, shares


def wanted(lm: LanguageModel, prompt: Any, given: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What the library writes."""
    found = lm.generate(prompt, **given)
    return [told(result) for result in (found if isinstance(found, list) else [found])]


async def answer(engine: Face, ask: Ask) -> tuple[list[Result], list[Piece]]:
    """Submit an ask, read all pieces, and hold them against the results."""
    ticket = await engine.submit(ask)
    pieces = [piece async for piece in ticket]
    results = await ticket.results()
    for result in results:
        own = [piece for piece in pieces if piece.sample == result.sample]
        tokens = [token for piece in own for token in piece.tokens]
        assert [token.id for token in tokens] == result.tokens
        assert "".join(token.text for token in tokens) + own[-1].rest == result.text
        assert [piece.finish for piece in own if piece.finish] == [result.finish_reason] and own[-1].finish
        assert [token.source for token in tokens] == result.sources
        assert all(bool(token.drafter) == (token.source == "draft") for token in tokens)
        if result.log_probs:
            assert [token.log_prob for token in tokens] == result.log_probs
        assert sum(kept for _, kept in result.steps) == result.usage.num_accepted
        assert sum(drafted for drafted, _ in result.steps) == result.usage.num_proposed
    return results, pieces
