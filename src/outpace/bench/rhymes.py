"""How often the second line of a couplet rhymes: models that write each line behind its last word, and that do not.

    python -m outpace.bench.rhymes runs/verses runs/verses-rhyme-first --data data

Each model reads the first lines of couplets, cut out of stories that no recipe trains on, and draws a second line. Two
lines rhyme if their last words do: by spelling (`outpace.text.rhymes`), and, where a file in the format of the CMU
Pronouncing Dictionary is given, as they are said. `chance` is the share among pairs of the first lines themselves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.errors import ConfigError
from outpace.text.rhymes import Pronunciations, last_word, rhymes
from outpace.train.data import find_data
from outpace.train.verses import held_out_lines, rhyme_first

__all__ = ["Couplet", "main", "run_rhymes", "second_lines"]


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
    report = run_rhymes(given.models, given.data, given.count, given.temperature, given.seed, given.dictionary)
    report.write(given.json)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("rhymes", __doc__, threads=1)
    parser.add_argument("models", nargs="+", help="directories; a name that ends in rhyme-first tells how it is read")
    parser.add_argument("--data", type=Path, help="folder of public texts (default: ./data)")
    parser.add_argument("--count", type=int, default=400, help="couplets of each (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="of the draws (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--dictionary", type=Path, metavar="FILE", help="how words are said, such as cmudict.dict")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and some couplets here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
