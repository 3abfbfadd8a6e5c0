"""How good a corrector is, and how much it writes: edits found, clean sentences kept, tokens and steps per sentence.

    python -m outpace.train.correction_quality correct --set corrections:test jfleg:dev
    python -m outpace.train.correction_quality correct runs/correct-ctc runs/correct-edit5 runs/correct-spans
    python -m outpace.train.correction_quality --set ua-gec:test wiki-split:test

An edit is a place in the source's words and marks and what stands there instead, as `outpace.text.edits` finds it, its
blanks aside. Precision and recall count edits that a sentence shares with its reference, with that of several which
serves it best; F0.5 weighs precision twice as much (Dahlmeier and Ng, 2012, who align more loosely). A model that
writes edit spans or programs is measured by the text that they make.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from outpace.api.engine import LanguageModel, load
from outpace.errors import ConfigError, nearest
from outpace.failures import guarded
from outpace.text.edits import Span, apply_spans, edit_spans, read_spans, realised, units, write_spans

from .corrections import CORRECTION_SPANS, CORRECTIONS, REORDERED
from .data import find_data
from .quality import HEADING, note_in_card
from .recipes import TRANSLATIONS
from .sources import open_text, read_jsonl
from .translation.editing import edited

__all__ = ["CorrectionWork", "measure", "read_set", "score"]

Sample = tuple[str, tuple[str, ...]]  # a sentence and its corrections
SETS = ("corrections:test", "jfleg:dev")


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionWork:
    """One model on one set of sentences.

    Attributes:
        model: name of the model.
        set: name of the set.
        method: how it was decoded.
        sentences: how many.
        right: share of the texts that are a reference.
        fixed: share of the sentences with mistakes whose text is a reference.
        kept: share of the sentences without mistakes that are left as they are.
        precision, recall, f05: of edits.
        tokens: tokens that the model wrote, per sentence, ends included.
        rewriting: tokens of the texts that they stand for: what full rewriting writes.
        steps: forwards of the model's writing part, per sentence.
    """

    model: str
    set: str
    method: str
    sentences: int
    right: float
    fixed: float
    kept: float
    precision: float
    recall: float
    f05: float
    tokens: float
    rewriting: float
    steps: float


def read_set(name: str, data: Path, count: int = 0) -> list[Sample]:
    """Return the sentences of a set, or `count` of them, evenly spread.

    Args:
        name: "corrections:SPLIT", "corrections-reordered:SPLIT" (mistakes made by rule), "jfleg:dev", "ua-gec:SPLIT" or
            "wiki-split:SPLIT".
        data: folder of the texts.
        count: how many; 0 = all.

    Raises:
        ConfigError: no such set or split, or a file is missing.
    """
    source, _, split = name.partition(":")
    known = {one.name: one for one in (CORRECTIONS, REORDERED)}
    found: list[Sample]
    if source in known:
        found = [(wrong, (right,)) for wrong, right in known[source].pairs(data, split or "test")]
    elif source in _READERS:
        found = _READERS[source](data, split or "test")
    else:
        raise ConfigError(f"There is no set of corrections {source!r}.", nearest(source, [*known, *_READERS], "set"))
    if not 0 < count < len(found):
        return found
    return [found[index * len(found) // count] for index in range(count)]


def _jfleg(data: Path, split: str) -> list[Sample]:
    del split  # its test half is held out
    folder = data / "jfleg"
    files = ["dev.src", *(f"dev.ref{number}" for number in range(4))]
    for file in files:
        if not (folder / file).is_file():
            hint = "Get it from github.com/keisks/jfleg (CC BY-NC-SA 4.0)."
            raise ConfigError(f"{file} is missing in {folder}", hint)
    columns = [[_joined(line) for line in open_text(folder / file).rstrip("\n").split("\n")] for file in files]
    return [(row[0], tuple(row[1:])) for row in zip(*columns, strict=True)]


def _ua_gec(data: Path, split: str) -> list[Sample]:
    return [(row["src"], (row["tgt"],)) for row in read_jsonl(_file(data / f"ua_gec/{split}.jsonl.gz"))]


def _wiki_split(data: Path, split: str) -> list[Sample]:
    lines = open_text(_file(data / f"wiki_split/{split}.tsv.gz")).rstrip("\n").split("\n")
    return [(row[0], (row[1].replace("<::::> ", ""),)) for row in (line.split("\t") for line in lines)]


def _file(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(f"{path.name} is missing in {path.parent}", "Sets are named SET:SPLIT.")
    return path


_READERS = {"jfleg": _jfleg, "ua-gec": _ua_gec, "wiki-split": _wiki_split}


def oracle_line(name: str, samples: Sequence[Sample]) -> str:
    """Return a row on edit spans made from the references: what writing them costs at least, and that they suffice."""
    pairs = [(source, references[0]) for source, references in samples]
    written = [write_spans(edit_spans(source, target)) for source, target in pairs]
    same = sum(
        apply_spans(source, read_spans(spans)) == target for (source, target), spans in zip(pairs, written, strict=True)
    )
    spans, texts = sum(map(len, written)), sum(len(target) for _, target in pairs)
    return f"| {name} | {len(pairs):,} | {same:,} | {spans:,} | {texts:,} | {spans / texts:.1%} |"


def _joined(line: str) -> str:
    """Return a tokenised sentence as people write it."""
    line = re.sub(r" (?=[.,;:!?%)\]]|n't\b|'(?:s|re|ve|ll|d|m)\b)", "", line.strip())
    return re.sub(r"(?<=[(\[]) ", "", line)


def _edits(source: str, target: str) -> set[Span]:
    bare, other = ("\n".join(unit.strip() for unit in units(text)) for text in (source, target))
    return {Span(a, b, text.strip()) for a, b, text in edit_spans(bare, other)}


def score(samples: Sequence[Sample], texts: Sequence[str]) -> tuple[float, float, float]:
    """Return precision, recall and F0.5 of the edits in some texts."""
    hits = proposed = wanted = 0
    for (source, references), text in zip(samples, texts, strict=True):
        ours = _edits(source, text)
        every = [_edits(source, reference) for reference in references]
        best = max(every, key=lambda theirs: (_f05(len(ours & theirs), len(ours), len(theirs)), -len(theirs)))
        hits, proposed, wanted = hits + len(ours & best), proposed + len(ours), wanted + len(best)
    return hits / max(proposed, 1), hits / max(wanted, 1), _f05(hits, proposed, wanted)


def _f05(hits: int, proposed: int, wanted: int) -> float:
    """1.25 P R / (0.25 P + R), which is 1 where nothing was proposed and nothing wanted."""
    return 1.25 * hits / (proposed + 0.25 * wanted) if proposed + wanted else 1.0


def measure(
    model: LanguageModel,
    name: str,
    samples: Sequence[Sample],
    *,
    method: str = "",
    has_spans: bool = False,
    rows: int = 32,
) -> tuple[CorrectionWork, list[str]]:
    """Correct a set of sentences; return the figures and the texts.

    Args:
        model: the corrector.
        name: of the set.
        samples: its sentences.
        method: how to decode; "" = as `edited` chooses.
        has_spans: the model writes edit spans.
        rows: sentences side by side.
    """
    assert model.tokenizer is not None
    encode = model.tokenizer.encode
    sources = [encode(source) for source, _ in samples]
    order = sorted(range(len(samples)), key=lambda at: len(sources[at]))
    texts, tokens, steps = [""] * len(samples), 0, 0
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        longest = 2 * max(len(sources[at]) for at in part) + 16
        for at, (result, found) in zip(part, edited(model, [sources[at] for at in part], longest, method), strict=True):
            written = model.tokenizer.decode(found)
            texts[at] = realised(samples[at][0], written) if has_spans else written
            tokens, steps = tokens + len(result.tokens), steps + result.usage.num_steps
    is_right = [text in references for (_, references), text in zip(samples, texts, strict=True)]
    clean = [source in references for source, references in samples]
    precision, recall, f05 = score(samples, texts)
    size = len(samples)
    is_kept = [text == source for (source, _), text in zip(samples, texts, strict=True)]
    is_wrong = [not one for one in clean]
    work = CorrectionWork(
        model=Path(model.name).name,
        set=name,
        method=method or ("one-pass" if model.target.capabilities.is_one_pass else "autoregressive"),
        sentences=size,
        right=sum(is_right) / size,
        fixed=_share(is_right, is_wrong),
        kept=_share(is_kept, clean),
        precision=precision,
        recall=recall,
        f05=f05,
        tokens=tokens / size,
        rewriting=sum(len(encode(text)) for text in texts) / size,
        steps=steps / size,
    )
    return work, texts


def _share(values: Sequence[bool], chosen: Sequence[bool]) -> float:
    """Return the share of true values among the chosen ones; 0 where none is chosen."""
    return sum(a and b for a, b in zip(values, chosen, strict=True)) / max(sum(chosen), 1)


HEAD = (
    "| model | set | method | sentences | right | mistakes fixed | clean kept | precision | recall | F0.5 "
    "| tokens written | full rewriting | steps |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def line(work: CorrectionWork) -> str:
    """Return a row of the table that `HEAD` begins."""
    return (
        f"| {work.model} | {work.set} | {work.method} | {work.sentences:,} | {work.right:.1%} | {work.fixed:.1%} "
        f"| {work.kept:.1%} | {work.precision:.1%} | {work.recall:.1%} | {work.f05:.3f} | {work.tokens:.1f} "
        f"| {work.rewriting:.1f} | {work.steps:.1f} |"
    )


def write_card(directory: Path, works: Sequence[CorrectionWork]) -> None:
    """Put the figures into the directory's card, in place of earlier ones."""
    rows = [
        f"| {work.set} | {work.sentences:,} | {work.fixed:.1%} | {work.kept:.1%} | {work.precision:.1%} "
        f"| {work.recall:.1%} | {work.f05:.3f} |"
        for work in works
    ]
    head = "| corrected set | sentences | mistakes fixed | clean kept | precision | recall | F0.5 |"
    lines = [HEADING, "", head, "|---|---|---|---|---|---|---|", *rows, ""]
    lines.append("Fixed: sentences with mistakes that became a reference. Kept: right sentences left as they are.")
    lines.append("Edits are compared with the reference that serves best. Greedy decoding in float32.")
    note_in_card(directory, "\n".join(lines) + "\n")


def note_figures(path: Path, model: str, works: Sequence[CorrectionWork]) -> None:
    """Put a model's figures into a file of many models, in place of earlier ones."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    entries = [entry for entry in known if entry["model"] != model]
    entries.append({"model": model, "correction": [asdict(work) for work in works]})
    path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.correction_quality", description=__doc__)
    parser.add_argument("models", nargs="*", help="zoo names or directories; none = edit spans of the references")
    parser.add_argument("--set", nargs="+", default=list(SETS), help=f"default: {' '.join(SETS)}")
    parser.add_argument("--method", default="", help="default: one-pass where the model writes so, else plain")
    parser.add_argument("--count", type=int, default=0, help="sentences of each set (default: all)")
    parser.add_argument("--rows", type=int, default=32, help="sentences side by side")
    parser.add_argument("--show", type=int, default=0, help="texts to show of each set")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path, help="also note the figures here, beside those of other models")
    parser.add_argument("--card", action="store_true", help="note the figures in the card")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return guarded(lambda _: _measure_all(given), [])


def _measure_all(given: argparse.Namespace) -> int:
    data = find_data(given.data)
    if not given.models:
        print("| set | pairs | reconstructed | characters of spans | of targets | share |\n|---|---|---|---|---|---|")
        for set_name in given.set:
            print(oracle_line(set_name, read_set(set_name, data, given.count)))
        return 0
    print(HEAD)
    for name in given.models:
        model, works = load(name, dtype="float32"), []
        for set_name in given.set:
            samples = read_set(set_name, data, given.count)
            recipe = TRANSLATIONS.get(Path(name).name)
            has_spans = recipe is not None and recipe.source is CORRECTION_SPANS
            work, texts = measure(model, set_name, samples, method=given.method, has_spans=has_spans, rows=given.rows)
            works.append(work)
            print(line(work), flush=True)
            for (source, _), text in list(zip(samples, texts, strict=True))[: given.show]:
                print(f"    {source}\n    -> {text}")
        if given.card:
            write_card(Path(name), works)
        if given.json:
            note_figures(given.json, Path(name).name, works)
    return 0


if __name__ == "__main__":
    sys.exit(main())
