"""How good a translator is, and how much work each method needs for its text: BLEU, forwards and drafts per token.

    python -m outpace.train.translation_quality translate --set tatoeba-pairs:test
    python -m outpace.train.translation_quality runs/pairs-gru --set multi30k:test:en-de
    python -m outpace.train.translation_quality correct --set corrections:test --methods autoregressive input-guided
    python -m outpace.train.translation_quality translate --methods autoregressive jacobi:mode=block,window=8

The model is a zoo name or a directory. Steps are counted per sentence, so they do not depend on the batch. `--card`
notes the BLEU of the first method in the card of a directory, and for a drafter how far it agrees with its parent.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from outpace.api.engine import LanguageModel, load
from outpace.api.result import Result
from outpace.errors import ConfigError, nearest
from outpace.failures import guarded
from outpace.methods.registry import read_spelled

from .bleu import SIGNATURE, bleu
from .corrections import CORRECTIONS
from .data import find_data
from .pairs import PAIR_SOURCES, Pair
from .quality import HEADING, note_in_card

__all__ = ["TranslationWork", "measure", "read_set", "translate"]

SETS = ("tatoeba-pairs:test", "multi30k:test")


@dataclass(frozen=True, slots=True, kw_only=True)
class TranslationWork:
    """One method on one set of sentences.

    Attributes:
        set: name of the set.
        method: name and settings, as given.
        sentences: how many.
        tokens: tokens written.
        bleu: of the texts.
        same: share of sentences with the first method's tokens.
        forwards: target forwards per token.
        drafts: drafted tokens per token.
    """

    set: str
    method: str
    sentences: int
    tokens: int
    bleu: float
    same: float
    forwards: float
    drafts: float


def read_set(name: str, data: Path, count: int = 0) -> list[Pair]:
    """Return the pairs of a set named "source:split:direction", or `count` of them, evenly spread.

    Without a direction the source's first is taken, without a split its test split.

    Raises:
        ConfigError: no such source, split or direction, or a file is missing.
    """
    source, _, rest = name.partition(":")
    split, _, direction = rest.partition(":")
    known = {**PAIR_SOURCES, CORRECTIONS.name: CORRECTIONS}
    if source not in known:
        raise ConfigError(f"There is no set of sentence pairs {source!r}.", nearest(source, known, "set"))
    pairs = known[source].pairs(data, split or "test", direction)
    if not 0 < count < len(pairs):
        return pairs
    return [pairs[index * len(pairs) // count] for index in range(count)]


def translate(
    model: LanguageModel, texts: Sequence[str], method: str, *, rows: int = 32, **arguments: Any
) -> list[Any]:
    """Translate texts, `rows` at a time and similar lengths together, and return the results in the given order.

    Args:
        model: an encoder-decoder.
        texts: sentences.
        method: name and settings, like "jacobi:mode=block,window=8".
        rows: batch size.
        **arguments: of `LanguageModel.generate`.
    """
    name, options = read_spelled(method)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    results: dict[int, Result] = {}
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        found = model.generate([texts[index] for index in part], method=name, options=options, **arguments)
        results.update(zip(part, found, strict=True))
    return [results[index] for index in range(len(texts))]


def measure(
    model: LanguageModel, name: str, pairs: Sequence[Pair], methods: Sequence[str], **arguments: Any
) -> list[TranslationWork]:
    """Translate a set with each method."""
    first: list[Result] = []
    works = []
    for method in methods:
        results = translate(model, [source for source, _ in pairs], method, **arguments)
        first = first or results
        tokens = sum(len(result.tokens) for result in results)
        works.append(
            TranslationWork(
                set=name,
                method=method,
                sentences=len(pairs),
                tokens=tokens,
                bleu=bleu([result.text for result in results], [target for _, target in pairs]),
                same=sum(a.tokens == b.tokens for a, b in zip(first, results, strict=True)) / len(pairs),
                forwards=sum(result.usage.num_steps for result in results) / tokens,
                drafts=sum(result.usage.num_proposed for result in results) / tokens,
            )
        )
        print(_line(works[-1]), flush=True)
    return works


_HEAD = (
    "| set | method | sentences | tokens | BLEU | same text | target forwards per token | tokens per forward "
    "| drafts per token |\n|---|---|---|---|---|---|---|---|---|"
)


def _line(work: TranslationWork) -> str:
    return (
        f"| {work.set} | {work.method} | {work.sentences} | {work.tokens:,} | {work.bleu:.2f} | {work.same:.1%} "
        f"| {work.forwards:.3f} | {1 / work.forwards:.2f} | {work.drafts:.2f} |"
    )


def write_card(directory: Path, works: Sequence[TranslationWork]) -> None:
    """Put the figures into the directory's card, in place of earlier ones."""
    rows = [f"| {work.set} | {work.sentences:,} | {work.bleu:.1f} |" for work in works]
    lines = [HEADING, "", "| translated set | sentences | BLEU |", "|---|---|---|", *rows, ""]
    plain = {"autoregressive": "greedy decoding", "one-pass": "one pass"}
    how = plain.get(works[0].method, f"`{works[0].method}`") if works else "greedy decoding"
    lines.append(f"BLEU as sacrebleu counts it ({SIGNATURE}), {how} in float32.")
    note_in_card(directory, "\n".join(lines) + "\n")


def note_figures(path: Path, model: str, works: Sequence[TranslationWork]) -> None:
    """Put a model's figures into a file of many models, in place of earlier ones."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    entries = [entry for entry in known if entry["model"] != model]
    entries.append({"model": model, "translation": [asdict(work) for work in works]})
    path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.translation_quality", description=__doc__)
    parser.add_argument("model", help="zoo name or directory")
    parser.add_argument("--set", nargs="+", default=list(SETS), help=f"default: {' '.join(SETS)}")
    parser.add_argument("--methods", nargs="+", default=["autoregressive"], help="name:key=value,key=value")
    parser.add_argument("--count", type=int, default=0, help="sentences of each set (default: all)")
    parser.add_argument("--rows", type=int, default=32, help="sentences side by side")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path, help="also note the figures here, beside those of other models")
    parser.add_argument("--card", action="store_true", help="note the first method's BLEU in the card")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return guarded(lambda _: _measure_all(given), [])


def _measure_all(given: argparse.Namespace) -> int:
    model, data, works = load(given.model, dtype="float32"), find_data(given.data), []
    print(_HEAD)
    for name in given.set:
        pairs = read_set(name, data, given.count)
        works += measure(model, name, pairs, given.methods, rows=given.rows, max_tokens=given.max_tokens)
    print(f"BLEU: {SIGNATURE}")
    if given.card:
        write_card(Path(given.model), [work for work in works if work.method == given.methods[0]])
    if given.json:
        note_figures(given.json, Path(given.model).name, works)
    return 0


if __name__ == "__main__":
    sys.exit(main())
