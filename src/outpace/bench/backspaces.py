"""Texts of a model that takes tokens back (SequenceMatch) beside those of one that was trained by likelihood alone.

    python -m outpace.bench.backspaces
    python -m outpace.bench.backspaces runs/stories-continued runs/stories-backspace --data data

Without models: a toy whose texts count upwards in a circle, and a small network that has half learned it by likelihood.
It is trained on as long by likelihood, and by SequenceMatch; shown are the neighbours that do not count.

With models: each goes on from the beginnings of stories that no recipe trains on. Shown are how alike its texts and the
stories' own are (`outpace.bench.likeness`, the mean of several clusterings), what `stories` says of the texts in nats
per token, and how many tokens were taken back for 100 that stayed. `the stories` are another half of the stories.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from outpace.api.backspaced import backspaced
from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, run_command
from outpace.bench.corrected import FIRST, NUMBERS, counting, errors, opened
from outpace.bench.held_out import text_states
from outpace.bench.likeness import likeness, points
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.errors import ConfigError
from outpace.train.data import find_data
from outpace.train.network import Llama, LlamaShape
from outpace.train.objectives import causal_loss
from outpace.train.objectives_backspace import BACKSPACE_ID, backtracked, match_loss
from outpace.train.sources import held_out_stories

__all__ = ["main", "run_backspaces", "run_toy", "toy_networks"]

BEGINNING, CLUSTERS, SEEDS = 12, 12, 5


def _written(
    lm: LanguageModel, prompts: Sequence[list[int]], length: int, most: int, seed: int, temperature: float
) -> tuple[Any, int]:
    """Return each prompt with the text behind it, and how many tokens were taken back in all."""
    texts, taken = list[list[int]](), 0
    for sample, prompt in enumerate(prompts):
        given: Any = {"max_tokens": length, "seed": seed, "sample": sample, "temperature": temperature}
        tokens, number = backspaced(lm, prompt, backspaces=most, **given)
        texts.append([*prompt, *tokens])
        taken += number
    return texts, taken


def run_backspaces(
    models: Sequence[str], data: Path | None, texts: int = 60, length: int = 48, seed: int = 0, temperature: float = 1.0
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
            found, taken = _written(lm, prompts, length, most, seed, temperature)
            if most == 0 and rows[-1]["taken"] == 0:
                continue  # it has no backspaces to leave out
            label = Path(name).name + ("" if most else ", without backspaces")
            rows.append(_row(label, found, taken, judge, known))
    heads = ("texts", "likeness", "nats per token", "taken back per 100 tokens")
    cells = [[r["texts"], f"{r['likeness']:.3f}", f"{r['nats']:.3f}", f"{r['taken']:.1f}"] for r in rows]
    asked = {"models": [Path(name).name for name in models], "texts": texts, "length": length, "seed": seed}
    return new_report("backspaces", asked, describe(), rows, tables=[Table("", heads, cells)])


def toy_networks(steps: int, seed: int) -> dict[str, Llama]:
    """Return a network that was trained on the toy, and what each way to train it on as long makes of it."""
    vocab = FIRST + NUMBERS
    shape = LlamaShape(hidden=32, layers=2, heads=2, kv_heads=2, head_dim=16, ffn=48, vocab=vocab, context=64)
    found = {"likelihood": Llama(shape, seed)}
    _fit(found["likelihood"], steps, 0, lambda network, texts, _step: causal_loss(network, texts))
    for name in ("likelihood, as long again", "SequenceMatch"):
        found[name] = copy.deepcopy(found["likelihood"])
    _fit(found["likelihood, as long again"], steps, steps, lambda network, texts, _step: causal_loss(network, texts))

    def matched(network: Llama, texts: Tensor, step: int) -> Tensor:
        return match_loss(network, *backtracked(network, texts, 8, step, seed, step / steps - 1))

    _fit(found["SequenceMatch"], steps, steps, matched)
    return found


def _fit(network: Llama, steps: int, begin: int, loss_of: Callable[[Llama, Tensor, int], Tensor]) -> None:
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(begin, begin + steps):
        loss_of(network, counting(16, 25, step), step).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()


def run_toy(steps: int, texts: int = 60, seed: int = 0, temperature: float = 1.0, length: int = 20) -> Report:
    """Train on the toy; count the errors of what each network writes, with backspaces and without.

    Raises:
        ConfigError: a number below 1.
    """
    if min(steps, texts) < 1:
        raise ConfigError("No steps or no texts were asked for.", "Ask for 1 or more of each.")
    rows = []
    for name, network in toy_networks(steps, seed).items():
        with TemporaryDirectory() as place:
            lm = LanguageModel(opened(network, Path(place)))
        for most in (1000, 0):
            given: Any = {"backspaces": most, "max_tokens": length, "backspace": BACKSPACE_ID}
            given["temperature"] = temperature
            prompts = [[FIRST + sample % NUMBERS] for sample in range(texts)]
            found = [backspaced(lm, prompt, seed=seed, sample=at, **given) for at, prompt in enumerate(prompts)]
            wrong = sum(errors([*prompt, *tokens]) for prompt, (tokens, _) in zip(prompts, found, strict=True))
            num, taken = sum(len(tokens) for tokens, _ in found), sum(number for _, number in found)
            if name == "SequenceMatch" or most == 0:
                rows.append(
                    {"trained by": name, "backspaces": most > 0, "errors": wrong / num, "taken": 100 * taken / num}
                )
    cells = [
        [str(row["trained by"]), "yes" if row["backspaces"] else "no", f"{row['errors']:.1%}", f"{row['taken']:.1f}"]
        for row in rows
    ]
    heads = ("trained by", "backspaces", "neighbours that do not count", "taken back per 100 tokens")
    asked = {"steps": steps, "texts": texts, "length": length, "temperature": temperature, "seed": seed}
    return new_report("backspaces-toy", asked, describe(), rows, tables=[Table("", heads, cells)])


def _row(name: str, texts: Sequence[list[int]], taken: int, judge: LanguageModel, known: Tensor) -> dict[str, Any]:
    found = points(judge.target, texts)
    alike = [likeness(known, found, CLUSTERS, seed) for seed in range(SEEDS)]
    said = [-float(text_states(judge.target, text)[0][BEGINNING - 1 :].mean()) for text in texts]
    num = sum(len(text) - BEGINNING for text in texts)
    return {"texts": name, "likeness": mean(alike), "nats": mean(said), "taken": 100 * taken / num}


def _work(given: argparse.Namespace) -> None:
    if given.models:
        report = run_backspaces(given.models, given.data, given.texts, given.length, given.seed, given.temperature)
    else:
        report = run_toy(given.steps, given.texts, given.seed, given.temperature)
    report.write(given.json)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("backspaces", __doc__, threads=1)
    parser.add_argument("models", nargs="*", help="directories of models with the tokens of `stories`")
    parser.add_argument("--data", type=Path, help="folder of public texts (default: ./data)")
    parser.add_argument("--texts", type=int, default=60, help="of each (default: %(default)s)")
    parser.add_argument("--length", type=int, default=48, help="tokens of a text (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the draws (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=90, help="of each part of the toy (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
