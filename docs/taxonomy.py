"""The map from the field's methods to our modules: `taxonomy.tsv` is the source, `taxonomy.md` the page made from it.

    python docs/taxonomy.py                      check the table and write the page
    python docs/taxonomy.py --methods FILE       check against the systems of FILE instead of those of `systems.tsv`

Every system of `systems.tsv` in these families has a line. FILE is tab-separated with the columns n, name and family. A
module is one below `outpace`; a module of "-" needs a note that says why not.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).parent
FAMILIES = (
    "spec-draft-model",
    "spec-trees",
    "spec-verification",
    "spec-training-free",
    "spec-heads",
    "spec-seq2seq",
    "jacobi-parallel",
    "multi-token-prediction",
    "adaptive-depth",
    "image-spec-decoding",
    "model-cascade",
    "nat-oneshot",
    "nat-iterative",
    "nat-insertion-edit",
    "nat-ctc",
    "nat-dag",
    "nat-training",
    "diffusion-lossless",
    "diffusion-decoding",
    "diffusion-cache",
    "diffusion-text-models",
    "block-diffusion",
    "continuous-latent-diffusion",
    "any-order",
    "semantic-parallelism",
)
INTRODUCTION = """# Taxonomy: the field's methods and our modules

Six surveys order the field: (32) *A Comprehensive Survey of Accelerated Generation Techniques in Large Language
Models*, (60) *A Survey on Parallel Text Generation: From Parallel Decoding to Diffusion Language Models*, (110)
*Speculative Decoding and Beyond: An In-Depth Survey of Techniques*, (173) *Closer Look at Efficient Inference Methods:
A Survey of Speculative Decoding*, (284) *Unlocking Efficiency in Large Language Model Inference: A Comprehensive Survey
of Speculative Decoding*, (337) *A Survey on Diffusion Language Models*. The first table maps their categories; the rest
map the methods of their field. A method that is not built says why, and what is out of scope is marked so. The
numbers are those of the systems in our catalogue.

Of the surveys 60 and 337 the tables hold every method on the reading lists that their authors publish:
[60](https://github.com/zhanglingzhe0820/Awesome-Parallel-Text-Generation), with additions up to 2026, and
[337](https://github.com/VILA-Lab/Awesome-DLMs), of July 2025. Left out are the applications of 337, the foundations of
continuous diffusion, attacks, and studies that propose no method. The full texts of 60 and 337 were not at hand, so a
method that only a text names may be missing. *Of the field of* marks systems of our catalogue that belong to a survey's
field and that its list does not name.

Made from `docs/taxonomy.tsv` by `python docs/taxonomy.py`, which fails where a module does not import.
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One method: number ("-" = none), name, category, surveys that treat it, our module ("-" = none), a note."""

    number: str
    name: str
    category: str
    surveys: str
    module: str
    note: str


def read() -> list[Line]:
    """Return the lines of the table."""
    with (HOME / "taxonomy.tsv").open(encoding="utf-8", newline="") as file:
        return [Line(**row) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def faults(lines: Sequence[Line], methods: Path = HOME / "systems.tsv") -> list[str]:
    """Return what is wrong: modules that do not import, lines without a reason, systems without a line, doubles."""
    found = [f"{line.name}: neither a module nor a reason." for line in lines if line.module == "-" and not line.note]
    found += [f"{line.name}: {line.module} does not import." for line in lines if not _imports(line.module)]
    keys = [(line.number, line.name) for line in lines]
    found += [f"{name}: listed twice." for number, name in set(keys) if keys.count((number, name)) > 1]
    listed = {line.number for line in lines}
    with methods.open(encoding="utf-8", newline="") as file:
        systems = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    unknown = listed - {"-"} - {system["n"] for system in systems}
    found += [f"Number {number}: no such system." for number in sorted(unknown)]
    return found + [
        f"System {system['n']}, {system['name']}: no line."
        for system in systems
        if system["family"] in FAMILIES and system["n"] not in listed
    ]


def _imports(module: str) -> bool:
    try:
        is_ours = module.startswith("outpace.")
        return module == "-" or (is_ours and importlib.import_module(module) is not None)
    except ImportError:
        return False


def render(lines: Sequence[Line]) -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    order = ["categories", *sorted({line.category for line in lines} - {"categories"})]
    for category in order:
        chosen = [line for line in lines if line.category == category]
        rows = [
            f"| {'' if line.number == '-' else line.number} | {line.name} | {line.surveys} |"
            f" {'' if line.module == '-' else f'`{line.module}`'} | {line.note} |"
            for line in chosen
        ]
        title = "Categories of the surveys" if category == "categories" else category[0].upper() + category[1:]
        head = "| number | method | surveys | our module | note |\n|---|---|---|---|---|"
        parts.append(f"## {title}\n\n{head}\n" + "\n".join(rows) + "\n")
    built = sum(line.module != "-" for line in lines)
    parts.append(f"{built} of {len(lines)} lines have a module.\n")
    return "\n".join(parts)


def main() -> int:
    """Check the table and write the page; exit status 1 and the faults where there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=Path, default=HOME / "systems.tsv", help="a table of systems")
    lines = read()
    wrong = faults(lines, parser.parse_args().methods)
    for fault in wrong:
        print(fault, file=sys.stderr)
    if not wrong:
        (HOME / "taxonomy.md").write_text(render(lines), encoding="utf-8")
        print(f"{len(lines)} lines checked.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
