"""What clients ask for: code, summaries and open questions, half of them sampled, each with settings of its own."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from outpace.bench.prompts import read_prompts, set_names
from outpace.text.tokenizer import Tokenizer

__all__ = ["COMPLETIONS", "METHODS", "make_traffic", "with_method"]

COMPLETIONS = "/v1/completions"
# What every server understands; a law of ours alone would leave peers out.
LAWS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.7, "top_p": 0.95},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.4, "top_p": 1.0},
)
METHODS = {"off": "autoregressive"}  # other names are methods themselves


def make_traffic(
    mix: Sequence[str], tokenizer: Tokenizer | None, count: int, max_tokens: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Return bodies of requests to /v1/completions, without the model.

    Every second one is sampled; lengths go from half to one and a half times `max_tokens`.

    Args:
        mix: names of prompt sets, in turns; "code" stands for "ask-code" where only that is a set.
        tokenizer: its chat template frames what is asked, so that every server gets the same text; None = as it is.
        count: requests.
        max_tokens: to write, on average.
        seed: of prompts, lengths and laws; two seeds ask differently.
    """
    rng = random.Random(seed)
    texts = [_texts(name, tokenizer) for name in mix]
    for group in texts:
        rng.shuffle(group)
    bodies = []
    for number in range(count):
        group = texts[number % len(texts)]
        law = {"temperature": 0.0} if number % 2 == 0 else rng.choice(LAWS)
        length = rng.choice((max_tokens // 2, max_tokens, max_tokens + max_tokens // 2))
        prompt = group[number // len(texts) % len(group)]
        bodies.append({"prompt": prompt, "max_tokens": max(1, length), "seed": rng.randrange(1 << 31), **law})
    return bodies


def with_method(body: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return a body that asks our server for a method; "off" = plain decoding, "" = what the server does anyway.

    Methods share no prefixes: who comes second would find what the first has read.
    """
    if not method:
        return dict(body)
    return {**body, "outpace": {"method": METHODS.get(method, method)}, "cache_salt": method}


def _texts(name: str, tokenizer: Tokenizer | None) -> list[str]:
    asked = f"ask-{name}"
    prompts = read_prompts(asked if asked in set_names() else name)
    if tokenizer is None or not tokenizer.has_chat:
        return [prompt.text for prompt in prompts]
    return [
        tokenizer.render_chat([{"role": "user", "content": prompt.text}]) if prompt.is_asked else prompt.text
        for prompt in prompts
    ]
