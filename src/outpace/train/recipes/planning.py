"""The recipe of a small network that solves puzzles as often as not, for searches to be measured on; none ships."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from outpace.tasks import training_examples
from outpace.tasks.planning import countdown_prompt
from outpace.train.network import LlamaShape
from outpace.train.sources import Source, read_jsonl

from .record import Recipe

__all__ = ["PUZZLED"]

_TEST = "planning/cd3_test.jsonl"
_EXAMPLES = 40_000


def _countdowns(data: Path) -> Iterator[str]:
    known = {countdown_prompt(str(row["input"])) for row in read_jsonl(data / _TEST)}
    for example in training_examples("countdown-3", _EXAMPLES):
        if example.prompt not in known:
            yield example.prompt + example.answer


_COUNTDOWN = Recipe(
    name="countdown",
    summary="A causal Llama of half a million parameters that plays Countdown with three numbers; for research.",
    shape=LlamaShape(hidden=128, layers=4, heads=4, kv_heads=2, head_dim=32, ffn=344, vocab=320, context=256),
    objective="causal",
    steps=1600,
    gpu_steps=4000,
    length=128,
    long_share=0.0,
    sources=(
        Source(
            name="countdown-3",
            files=(_TEST,),
            origin="outpace.tasks, generated; puzzles of the test file of github.com/DreamLM/Dream are left out",
            licence="Apache-2.0",
            note=f"{_EXAMPLES:,} puzzles of three numbers",
            weight=1.0,
            read=_countdowns,
        ),
    ),
)
PUZZLED: dict[str, Recipe] = {_COUNTDOWN.name: _COUNTDOWN}
