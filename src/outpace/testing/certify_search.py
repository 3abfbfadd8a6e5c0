"""Certificates of searches: under the settings that reduce it, a search writes its reference's text, token for token.

What a search finds otherwise is approximate on purpose, and gets no certificate. In float64, in a ragged batch, under
every law that its reference can be asked for, with the method that is to write beside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from outpace.api.engine import LanguageModel, load
from outpace.errors import ConfigError
from outpace.methods.base import Method
from outpace.search.base import Search
from outpace.testing.certificate import Certificate, Line
from outpace.testing.certify_texts import SEARCHES, SETTINGS, own_prompts
from outpace.types import Guarantee

__all__ = ["certify_search"]


def certify_search(
    model: str | LanguageModel,
    search: Search,
    method: Method,
    prompts: Sequence[str] | None = None,
    *,
    device: str = "auto",
    seed: int = 0,
    limit_s: float = 300.0,
    max_tokens: int = 48,
) -> Certificate:
    """Compare a search, reduced, with its reference.

    Args:
        model: zoo name, directory or hub id, or the model in float64.
        search, method: with their settings.
        prompts: texts; None = `own_prompts`.
        device: where to compute.
        seed: of every draw.
        limit_s: seconds in all; settings that are not begun by then are named.
        max_tokens: per text.

    Raises:
        ConfigError: the method is not one that a search can write with.
    """
    began = time.monotonic()
    lm = model if isinstance(model, LanguageModel) else load(model, dtype="float64", device=device)
    reduced, reference = search.reduced(), search.reference()
    if method.guarantee is not Guarantee.EXACT:
        raise ConfigError(f"The method {method.name!r} is not exact.", "Name one that is, such as prompt-lookup.")
    laws = SETTINGS if reference.draws and not search.takes_likeliest else SEARCHES
    given = own_prompts(lm) if prompts is None else [lm.encode(prompt) for prompt in prompts]
    told = {**reduced.to_dict(), "method": method.name}
    found = Certificate(lm.name, search.name, told, Guarantee.EXACT.value, reference=reference.name)
    for number, (name, each) in enumerate(laws.items()):
        line = Line(name, "float64", missing=["any text"])
        for law in each:
            if time.monotonic() - began < limit_s and not ("regex" in law and lm.tokenizer is None):
                rest: dict[str, Any] = {"seed": seed + number, "max_tokens": max_tokens, "temperature": 0.0, **law}
                ours = lm.generate(given, search=reduced, method=method, **rest)
                _compare(line, lm.generate(given, method=reference, **rest), ours)
        found.lines += [line] if line.rows else []
        found.missing += [] if line.rows else [name]
    found.seconds = time.monotonic() - began
    return found


def _compare(line: Line, theirs: Sequence[Any], ours: Sequence[Any]) -> None:
    """Compare texts token for token."""
    line.missing = []
    for row, (plain, one) in enumerate(zip(theirs, ours, strict=True)):
        line.rows, line.tokens = line.rows + 1, line.tokens + len(plain.tokens)
        line.accepted += one.usage.num_accepted
        line.rejected += one.usage.num_proposed - one.usage.num_accepted
        if (plain.tokens, plain.text, plain.finish_reason) != (one.tokens, one.text, one.finish_reason):
            line.faults.append(f"Prompt {row}: the text differs from {plain.method}.")
