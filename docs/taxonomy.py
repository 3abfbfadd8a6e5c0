"""The map from the field's methods to our modules: `taxonomy.tsv` is the source, `taxonomy.md` the page made from it.

    python docs/taxonomy.py                      check the tables and write the pages
    python docs/taxonomy.py --methods FILE       check against the systems of FILE instead of those of `systems.tsv`

Every system of `systems.tsv` in these families has a line. FILE is tab-separated with the columns n, name and family. A
module is one below `outpace`; a module of "-" needs a note that says why not.

`surveys/NUMBER.tsv` is the reading list that a survey's authors publish: category, year, arXiv id, title, the number of
the system in our catalogue, and the name of the line that maps it ("-" = none: not built). `surveys.md` shows them.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from outpace.papers import titles

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

Seven surveys order the field: (13) *A Survey on Non-Autoregressive Generation for Neural Machine Translation and
Beyond*, (32) *A Comprehensive Survey of Accelerated Generation Techniques in Large Language
Models*, (60) *A Survey on Parallel Text Generation: From Parallel Decoding to Diffusion Language Models*, (110)
*Speculative Decoding and Beyond: An In-Depth Survey of Techniques*, (173) *Closer Look at Efficient Inference Methods:
A Survey of Speculative Decoding*, (284) *Unlocking Efficiency in Large Language Model Inference: A Comprehensive Survey
of Speculative Decoding*, (337) *A Survey on Diffusion Language Models*. The first table maps their categories; the rest
map the methods of their field. A method that is not built says why, and what is out of scope is marked so. The
numbers are those of the systems in our catalogue.

Five of them publish a reading list; [the surveys' own lists](surveys.md) place each of its titles on a line below, or
say that it is not built. Of 60 (with additions up to 2026) every title has a line. Of 337 (of July 2025) all have one
but applications, other surveys, the foundations of continuous diffusion, attacks, and studies that propose no method.
Of 13 (of November 2022) the lists of translation and of other text are here, every method of translation with a line;
its lists of speech, pictures and video are left out. 284 and 32 list
systems, applications and analyses beside methods; those without a line are not built. No list by the authors of 110 and
173 was found, and their full texts were not gone through, so a method that only a text names may be missing. *Of the
field of* marks systems of our catalogue that belong to a survey's field and that its list does not name.

Made from `docs/taxonomy.tsv` by `python docs/taxonomy.py`, which fails where a module does not import.
"""

LISTS = {
    "13": "https://github.com/LitterBrother-Xiao/Overview-of-Non-autoregressive-Applications",
    "32": "https://github.com/Arenaa/Accelerated-Generation-Techniques",
    "60": "https://github.com/zhanglingzhe0820/Awesome-Parallel-Text-Generation",
    "284": "https://github.com/hemingkx/SpeculativeDecodingPapers",
    "337": "https://github.com/VILA-Lab/Awesome-DLMs",
}
LISTS_INTRODUCTION = """# The surveys' own lists

The papers that the authors of five surveys list, under their categories, and where each stands here: the line of the
[taxonomy](taxonomy.md) that maps it and its module. Without a line, a paper is not built. A number is that of the
system in our catalogue.

Made from `docs/surveys` by `python docs/taxonomy.py`, which fails where a list or a module is missing, or a title is
not that of its number.
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


@dataclass(frozen=True, slots=True)
class Listed:
    """A title on a survey's list; number and method (the name of a `Line`) are "-" where there is none."""

    category: str
    year: str
    arxiv: str
    title: str
    number: str
    method: str


def read_list(survey: str, folder: Path = HOME / "surveys") -> list[Listed]:
    """Return a survey's list; empty where there is none."""
    path = folder / f"{survey}.tsv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [Listed(**row) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def list_faults(survey: str, listed: Sequence[Listed], lines: Sequence[Line], known: Mapping[int, str]) -> list[str]:
    """Return what is wrong with a survey's list.

    Args:
        survey: its number.
        listed: its titles.
        lines: of the taxonomy.
        known: the titles of our catalogue by number; they agree whatever their case and punctuation.
    """
    ours = {_letters(title): str(number) for number, title in known.items()}
    numbers = {line.name: line.number for line in lines if line.category != "categories"}
    numbered = {line.number for line in lines}
    found = [] if listed else [f"Survey {survey}: no list."]
    for paper in listed:
        number = ours.get(_letters(paper.title), "-")
        if not paper.category or not paper.title:
            found.append(f"Survey {survey}: a line without category or title.")
        if paper.number != number:
            found.append(f"Survey {survey}, {paper.title}: its number is {number}, not {paper.number}.")
        if paper.method != "-" and paper.method not in numbers:
            found.append(f"Survey {survey}, {paper.title}: no line {paper.method}.")
        elif paper.number in numbered - {"-"} and numbers.get(paper.method) != paper.number:
            found.append(f"Survey {survey}, {paper.title}: system {paper.number} has another line than {paper.method}.")
    places = Counter((paper.category, _letters(paper.title)) for paper in listed)
    return found + [
        f"Survey {survey}, {title}: twice in {category}." for (category, title), n in places.items() if n > 1
    ]


def _letters(title: str) -> str:
    return re.sub(r"[^a-z0-9]", "", title.casefold())


def render_lists(lines: Sequence[Line], lists: Mapping[str, Sequence[Listed]]) -> str:
    """Return the page of the surveys' lists."""
    by_name = {line.name: line for line in lines if line.category != "categories"}
    counts, parts = [], []
    for survey, listed in lists.items():
        papers = {_letters(paper.title): by_name.get(paper.method) for paper in listed}
        placed = [line for line in papers.values() if line is not None]
        built = sum(line.module != "-" for line in placed)
        counts.append(f"| [{survey}]({LISTS[survey]}) | {len(papers)} | {len(placed)} | {built} |")
        for category in dict.fromkeys(paper.category for paper in listed):
            rows = [_row(paper, by_name.get(paper.method)) for paper in listed if paper.category == category]
            head = "| year | title | number | method | our module |\n|---|---|---|---|---|"
            parts.append(f"## {survey}: {category}\n\n{head}\n" + "\n".join(rows) + "\n")
    head = "| survey | papers | with a line | of them with a module |\n|---|---|---|---|"
    return "\n".join([LISTS_INTRODUCTION, f"{head}\n" + "\n".join(counts) + "\n", *parts])


def _row(paper: Listed, line: Line | None) -> str:
    title = paper.title.replace("$", "").replace("[", "\\[")
    linked = title if paper.arxiv == "-" else f"{title} (arXiv {paper.arxiv})"
    number = "" if paper.number == "-" else paper.number
    module = "not built" if line is None or line.module == "-" else f"`{line.module}`"
    return f"| {paper.year} | {linked} | {number} | {'' if line is None else line.name} | {module} |"


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
    """Check the tables and write the pages; exit status 1 and the faults where there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=Path, default=HOME / "systems.tsv", help="a table of systems")
    lines, lists = read(), {survey: read_list(survey) for survey in LISTS}
    wrong = faults(lines, parser.parse_args().methods)
    wrong += [fault for survey, listed in lists.items() for fault in list_faults(survey, listed, lines, titles())]
    for fault in wrong:
        print(fault, file=sys.stderr)
    if not wrong:
        (HOME / "taxonomy.md").write_text(render(lines), encoding="utf-8")
        (HOME / "surveys.md").write_text(render_lists(lines, lists), encoding="utf-8")
        print(f"{len(lines)} lines and {sum(map(len, lists.values()))} places of titles on {len(lists)} lists checked.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
