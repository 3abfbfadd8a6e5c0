"""Texts of a model that takes tokens back (SequenceMatch) beside those of one that was trained by likelihood alone.

    python -m outpace.bench.backspaces runs/stories-continued runs/stories-backspace --data data

Each model goes on from the beginnings of stories that no recipe trains on, at temperature 1. Shown are how alike its
texts and the stories' own are (`outpace.bench.likeness`, the mean of several clusterings), what `stories` says of the
texts in nats per token, and how many tokens were taken back for 100 that stayed. `the stories` are another half of the
stories themselves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from torch import Tensor

from outpace.api.backspaced import backspaced
from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, run_command
from outpace.bench.held_out import text_states
from outpace.bench.likeness import likeness, points
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.errors import ConfigError
from outpace.train.data import find_data
from outpace.train.sources import held_out_stories

__all__ = ["main", "run_backspaces"]

BEGINNING, CLUSTERS, SEEDS = 12, 12, 5


def _written(lm: LanguageModel, prompts: Sequence[list[int]], length: int, most: int, seed: int) -> tuple[Any, int]:
    """Return each prompt with the text behind it, and how many tokens were taken back in all."""
    texts, taken = list[list[int]](), 0
    for sample, prompt in enumerate(prompts):
        given: Any = {"max_tokens": length, "seed": seed, "sample": sample, "temperature": 1.0}
        tokens, number = backspaced(lm, prompt, backspaces=most, **given)
        texts.append([*prompt, *tokens])
        taken += number
    return texts, taken


def run_backspaces(
    models: Sequence[str], data: Path | None, texts: int = 100, length: int = 48, seed: int = 0
) -> Report:
    """Measure models side by side: each with backspaces, and those that have any, without them too.

    Raises:
        ConfigError: too few texts for the clusters, or no tokens.
    """
    if texts < CLUSTERS or length < 1:
        raise ConfigError(f"{texts} texts of {length} tokens were asked for.", f"Ask for {CLUSTERS} texts or more.")
    judge = load("stories")
    encoded = [judge.encode(story, is_special=False) for story in held_out_stories(find_data(data))]
    stories = [ids for ids in encoded if len(ids) >= BEGINNING + length][: 2 * texts]
    own, others = stories[::2], stories[1::2]
    size = BEGINNING + length
    known = points(judge.target, [ids[:size] for ids in own])
    prompts = [ids[:BEGINNING] for ids in own]
    rows = [_row("the stories", [ids[:size] for ids in others], 0, judge, known)]
    for name in models:
        lm = load(name)
        for most in (texts * length, 0):
            found, taken = _written(lm, prompts, length, most, seed)
            if most == 0 and rows[-1]["taken"] == 0:
                continue  # it has no backspaces to leave out
            label = Path(name).name + ("" if most else ", without backspaces")
            rows.append(_row(label, found, taken, judge, known))
    heads = ("texts", "likeness", "nats per token", "taken back per 100 tokens")
    cells = [[r["texts"], f"{r['likeness']:.3f}", f"{r['nats']:.3f}", f"{r['taken']:.1f}"] for r in rows]
    asked = {"models": [Path(name).name for name in models], "texts": texts, "length": length, "seed": seed}
    return new_report("backspaces", asked, describe(), rows, tables=[Table("", heads, cells)])


def _row(name: str, texts: Sequence[list[int]], taken: int, judge: LanguageModel, known: Tensor) -> dict[str, Any]:
    found = points(judge.target, texts)
    alike = [likeness(known, found, CLUSTERS, seed) for seed in range(SEEDS)]
    said = [-float(text_states(judge.target, text)[0][BEGINNING - 1 :].mean()) for text in texts]
    num = sum(len(text) - BEGINNING for text in texts)
    return {"texts": name, "likeness": mean(alike), "nats": mean(said), "taken": 100 * taken / num}


def _work(given: argparse.Namespace) -> None:
    report = run_backspaces(given.models, given.data, given.texts, given.length, given.seed)
    report.write(given.json)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("backspaces", __doc__, threads=1)
    parser.add_argument("models", nargs="+", help="directories of models with the tokens of `stories`")
    parser.add_argument("--data", type=Path, help="folder of public texts (default: ./data)")
    parser.add_argument("--texts", type=int, default=100, help="of each (default: %(default)s)")
    parser.add_argument("--length", type=int, default=48, help="tokens of a text (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
