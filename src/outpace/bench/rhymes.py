"""How often the second line of a couplet rhymes: models that write each line behind its last word, and that do not.

    python -m outpace.bench.rhymes
    python -m outpace.bench.rhymes runs/verses runs/verses-rhyme-first --data data

Without models: a toy, whose lines are words of a topic and end in a word of it; a couplet's ends are two words of a
rhyme, as a rule of two topics. Two equal networks learn it, one with each line behind its last word.

With models: each reads the first lines of couplets, cut out of stories that no recipe trains on, and draws a second
line. Lines rhyme if their last words do: by spelling (`outpace.text.rhymes`), and, where a file in the format of the
CMU Pronouncing Dictionary is given, as they are said. `chance` is the share among pairs of the first lines themselves.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, run_command
from outpace.bench.corrected import opened
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.errors import ConfigError
from outpace.text.rhymes import Pronunciations, last_word, rhymes
from outpace.train.data import find_data
from outpace.train.network import Llama, LlamaShape
from outpace.train.objectives import causal_loss
from outpace.train.verses import held_out_lines, rhyme_first

__all__ = ["Couplet", "main", "run_rhymes", "run_toy", "second_lines", "toy_couplets", "toy_network"]

RHYMES = 24  # of the toy


@dataclass(frozen=True, slots=True)
class Couplet:
    """Two lines.

    Attributes:
        first: given.
        second: written, without a word before it.
        told: the word before the second line; "" = none stood there.
    """

    first: str
    second: str
    told: str = ""


def second_lines(
    lm: LanguageModel, lines: Sequence[str], *, is_rhyme_first: bool, temperature: float = 0.7, seed: int = 0
) -> list[Couplet]:
    """Return each line with the one that a model draws behind it.

    Args:
        lm: a causal model of couplets.
        lines: first lines.
        is_rhyme_first: whether it was trained on lines behind their last words.
        temperature: of the draws.
        seed: of the draws.
    """
    prompts = [f"{rhyme_first(line) if is_rhyme_first else line}\n" for line in lines]
    given: Any = {"max_tokens": 40, "stop": ["\n"], "temperature": temperature, "seed": seed}
    found = []
    for at in range(0, len(prompts), 64):
        for line, result in zip(lines[at : at + 64], lm.generate(prompts[at : at + 64], **given), strict=True):
            told, mark, second = result.text.partition(": ") if is_rhyme_first else ("", "", result.text)
            found.append(Couplet(line, second, told) if mark or not is_rhyme_first else Couplet(line, result.text))
    return found


def run_rhymes(
    models: Sequence[str],
    data: Path | None,
    count: int = 400,
    temperature: float = 0.7,
    seed: int = 0,
    dictionary: Path | None = None,
) -> Report:
    """Measure models side by side; those whose name ends in `rhyme-first` read and write the word first.

    Raises:
        ConfigError: no couplet is asked for, or the dictionary cannot be read.
    """
    if count < 2:
        raise ConfigError(f"{count} couplets were asked for.", "Draw 2 or more.")
    said = None if dictionary is None else Pronunciations.read(dictionary)
    known = held_out_lines(find_data(data))
    lines = [known[at * len(known) // count] for at in range(min(count, len(known)))]
    measured = {
        Path(name).name: second_lines(
            load(name), lines, is_rhyme_first=name.endswith("rhyme-first"), temperature=temperature, seed=seed
        )
        for name in models
    }
    apart = zip(lines, lines[len(lines) // 2 :] + lines[: len(lines) // 2], strict=True)
    measured["chance"] = [Couplet(*pair) for pair in apart]
    rows = [_row(name, couplets, said) for name, couplets in measured.items()]
    heads = ["lines", "rhyme by spelling, %", "rhyme as said, %", "end in the word told, %", "different lines, %"]
    columns = ["spelt", "said", "kept", "different"]
    cells = [[row["lines"], *("" if row[key] is None else f"{row[key]:.1f}" for key in columns)] for row in rows]
    asked = {"models": list(measured)[:-1], "count": count, "temperature": temperature, "seed": seed}
    examples = {name: [f"{one.first} / {one.second}" for one in couplets[:8]] for name, couplets in measured.items()}
    return new_report("rhymes", asked, describe(), rows, tables=[Table("", heads, cells)], examples=examples)


def toy_couplets(count: int, seed: int, is_rhyme_first: bool) -> list[list[int]]:
    """Return couplets of the toy as tokens, ends of text at both sides; the same ones with the rhyme first and without.

    Ids: 0 ends a text, 1 a line; then come last words, three of a rhyme, and behind them words of topics.
    """
    topics = list(range(RHYMES * 3))
    random.Random(0).shuffle(topics)  # of each last word; two last words have a topic in common
    generator, found = random.Random(seed), []
    for _ in range(count):
        rhyme = generator.randrange(RHYMES)
        text = [0]
        for word in generator.sample(range(3 * rhyme, 3 * rhyme + 3), 2):
            begin = 2 + 3 * RHYMES + 4 * (topics[word] // 2)
            line = [begin + generator.randrange(4) for _ in range(generator.randint(3, 5))]
            text += [*([2 + word] if is_rhyme_first else []), *line, 2 + word, 1]
        found.append([*text, 0])
    return found


def toy_rhymes(first: int, second: int) -> bool:
    """Whether two tokens of the toy are two last words of a rhyme."""
    are_last = all(2 <= token < 2 + 3 * RHYMES for token in (first, second))
    return are_last and first != second and (first - 2) // 3 == (second - 2) // 3


def toy_network(steps: int, seed: int, is_rhyme_first: bool) -> Llama:
    """Return a network after some steps on the toy."""
    vocab = 2 + 3 * RHYMES + 4 * ((3 * RHYMES + 1) // 2)
    shape = LlamaShape(hidden=48, layers=2, heads=3, kv_heads=3, head_dim=16, ffn=96, vocab=vocab, context=64)
    network = Llama(shape, seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3)
    for step in range(steps):
        texts = toy_couplets(32, seed * 1_000_003 + step, is_rhyme_first)
        longest = max(map(len, texts))
        causal_loss(network, torch.tensor([text + [0] * (longest - len(text)) for text in texts])).backward()
        optimiser.step()
        optimiser.zero_grad()
    return network


def run_toy(steps: int, count: int, temperature: float = 0.7, seed: int = 0) -> Report:
    """Train both networks on the toy, and count the rhymes of second lines that they draw.

    Raises:
        ConfigError: no step, or no couplet.
    """
    if min(steps, count) < 1:
        raise ConfigError("No steps or no couplets were asked for.", "Ask for 1 or more of each.")
    rows: list[dict[str, Any]] = []
    for name, is_first in (("plain", False), ("rhyme first", True)):
        with TemporaryDirectory() as place:
            lm = LanguageModel(opened(toy_network(steps, seed, is_first), Path(place)), end_tokens=[1])
        held = toy_couplets(count, -1 - seed, is_first)
        prompts = [text[: text.index(1) + 1] for text in held]
        drawn = lm.generate(prompts, max_tokens=16, temperature=temperature, seed=seed)
        pairs = [
            (prompt[-2], one.tokens[-2] if len(one.tokens) > 1 else 0)
            for prompt, one in zip(prompts, drawn, strict=True)
        ]
        alike = [a != b and 2 <= b < 2 + 3 * RHYMES and (a - 2) // 3 == (b - 2) // 3 for a, b in pairs]
        rows.append({"lines": name, "rhymes": 100 * sum(alike) / count})
    table = Table("", ("lines", "rhymes, %"), [[str(row["lines"]), f"{row['rhymes']:.1f}"] for row in rows])
    asked = {"steps": steps, "count": count, "temperature": temperature, "seed": seed}
    return new_report("rhymes-toy", asked, describe(), rows, tables=[table])


def _row(name: str, couplets: Sequence[Couplet], said: Pronunciations | None) -> dict[str, Any]:
    ends = [(last_word(one.first), last_word(one.second)) for one in couplets]
    told = [last_word(one.second) == one.told for one in couplets if one.told]
    return {
        "lines": name,
        "spelt": 100 * sum(rhymes(*pair) for pair in ends) / len(ends),
        "said": None if said is None else 100 * sum(rhymes(*pair, said) for pair in ends) / len(ends),
        "kept": 100 * sum(told) / len(told) if told else None,
        "different": 100 * len({one.second for one in couplets}) / len(couplets),
    }


def _work(given: argparse.Namespace) -> None:
    rest = (given.count, given.temperature, given.seed)
    report = (
        run_rhymes(given.models, given.data, *rest, given.dictionary) if given.models else run_toy(given.steps, *rest)
    )
    report.write(given.json)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("rhymes", __doc__, threads=1)
    parser.add_argument("models", nargs="*", help="directories; a name that ends in rhyme-first tells how it is read")
    parser.add_argument("--data", type=Path, help="folder of public texts (default: ./data)")
    parser.add_argument("--count", type=int, default=400, help="couplets of each (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="of the draws (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="of the toy's networks (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--dictionary", type=Path, metavar="FILE", help="how words are said, such as cmudict.dict")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and some couplets here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
