"""How many keywords stand in the texts of a model of templates, with and without the law that has them written.

    python -m outpace.bench.templates runs/story-templates --data data

The keywords are those of held-out sentences. A text holds a keyword where it stands as a word of its own.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.errors import ConfigError
from outpace.laws.base import Site
from outpace.laws.template import Template
from outpace.train.data import find_data
from outpace.train.templates import TEMPLATES

__all__ = ["held", "main", "run_templates"]


def held(text: str, words: Sequence[str]) -> float:
    """Return the share of words that stand in a text."""
    return sum(bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)) for word in words) / len(words)


def _bare(lm: LanguageModel, law: Template, **given: Any) -> str:
    """Return what the model writes for the law's keywords where nothing has their numbers written."""
    site = Site(lm.target, lm.tokenizer, lm.name, lm.directory, lm.partners.named)
    speller = law.tokenizer(site)
    assert speller is not None
    return speller.decode(lm.generate(speller.encode(""), **given).tokens)


def run_templates(
    model: str, data: Path | None, count: int = 100, temperature: float = 0.0, method: str = "autoregressive"
) -> Report:
    """Write a text for the keywords of `count` held-out sentences, with the law and without.

    Raises:
        ConfigError: no text is asked for.
        CapabilityError: the model writes no templates.
    """
    if count < 1:
        raise ConfigError(f"{count} texts were asked for.", "Ask for 1 or more.")
    lm, pairs = load(model), TEMPLATES.pairs(find_data(data), "valid")
    sources = [pairs[at * len(pairs) // count][0] for at in range(min(count, len(pairs)))]
    texts: dict[str, list[tuple[str, list[str]]]] = {"model alone": [], "law template": []}
    for seed, source in enumerate(sources):
        law = Template(keywords="+".join(re.split(r" ?<\d> ", source)[1:]))
        given: dict[str, Any] = {"max_tokens": 48, "temperature": temperature, "seed": seed}
        texts["model alone"].append((_bare(lm, law, **given), law.words))
        texts["law template"].append((lm.generate("", law=law, method=method, **given).text, law.words))
    rows = []
    for name, found in texts.items():
        shares = [held(text, words) for text, words in found]
        whole = sum(share == 1 for share in shares)
        mean = sum(shares) / len(shares)
        rows.append({"by": name, "keywords": 100 * mean, "texts": 100 * whole / len(shares)})
    cells = [[str(row["by"]), f"{row['keywords']:.1f}", f"{row['texts']:.1f}"] for row in rows]
    heads = ("written by", "keywords held, %", "texts with all of theirs, %")
    asked = {"model": model, "count": count, "temperature": temperature, "method": method}
    examples = [f"{', '.join(words)}: {text}" for text, words in texts["law template"][:8]]
    table = Table("", heads, cells)
    return new_report("templates", asked, describe(), rows, tables=[table], notes=examples[:3], examples=examples)


def _work(given: argparse.Namespace) -> None:
    report = run_templates(given.model, given.data, given.count, given.temperature, given.method)
    report.write(given.json)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("templates", __doc__, threads=1)
    parser.add_argument("model", help="directory of a model of templates")
    parser.add_argument("--data", type=Path, help="folder of public texts (default: ./data)")
    parser.add_argument("--count", type=int, default=100, help="texts (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the draws (default: %(default)s)")
    parser.add_argument("--method", default="autoregressive", help="how they are decoded under the law")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
