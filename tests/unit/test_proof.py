"""Where a certificate ends texts to see that nothing follows a stop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from outpace.testing.proof import Work

PIECES = ["once ", "upon ", "", "a ", "time"]  # the third token writes nothing


def decode(tokens: list[int]) -> str:
    return "".join(PIECES[token] for token in tokens)


def test_a_text_is_ended_by_a_string_that_its_token_completes() -> None:
    work: Any = object.__new__(Work)
    work.lm = SimpleNamespace(tokenizer=SimpleNamespace(decode=decode))
    written: Any = SimpleNamespace(tokens=[0, 1, 2, 3, 4], text="".join(PIECES))
    assert work._ends_at(written, 2) is None  # such a string would stand there one token earlier
    _, changes = work._ends_at(written, 4)
    (stop,) = changes["stop"]
    assert stop in decode([0, 1, 2, 3, 4]) and stop not in decode([0, 1, 2, 3])
