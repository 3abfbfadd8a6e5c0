"""Quality against speed: translators and decoding methods as points, with transformers and CTranslate2 among them.

    python -m outpace.bench.translation_curve runs/captions-teacher runs/captions-deep-shallow --plot curve.png

One sentence at a time, all sides in turns, sentence by sentence; the first sentences are not counted. BLEU is of the
texts that were timed. CTranslate2 runs in a process of its own, by the Python that OUTPACE_PEERS_PYTHON names.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from outpace.api.engine import LanguageModel, load
from outpace.bench.child import Child, ChildError
from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.plots import draw_quality
from outpace.bench.report import Table, new_report
from outpace.bench.translation import Answer, Side, Work, peer_side, transformers_side
from outpace.errors import ConfigError
from outpace.models.loading import resolve
from outpace.train.bleu import SIGNATURE, bleu
from outpace.train.data import find_data
from outpace.train.translation_quality import read_set

__all__ = ["Point", "main", "measure"]

METHODS = ("autoregressive", "beam-search:beams=4", "token-recycling", "jacobi")
WARM = 3  # sentences that are not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One side on one model.

    Attributes:
        model, side: their names.
        bleu: of the counted sentences.
        sentences_per_s: one at a time.
        tokens: that were written.
    """

    model: str
    side: str
    bleu: float
    sentences_per_s: float
    tokens: int


def own_side(lm: LanguageModel, method: str) -> Side:
    """Return our loop with a method, its settings behind a colon."""
    name, _, rest = method.partition(":")
    options = dict(item.split("=", 1) for item in rest.split(",") if item)

    def run(work: Work) -> Answer:
        began = time.perf_counter()
        [found] = lm.generate(work.sources, max_tokens=work.max_tokens, method=name, options=options)
        return Answer([list(found.tokens)], time.perf_counter() - began)

    return run


def measure(
    lm: LanguageModel, name: str, sides: Mapping[str, Side], pairs: Sequence[tuple[str, str]], max_tokens: int = 96
) -> list[Point]:
    """Translate pairs with each side in turns, and return a point for each.

    Args:
        lm: the model, whose tokenizer all sides share.
        name: of the model.
        sides: by name; one whose name ends in "beam 4" is asked for that many.
        pairs: sources and references; the first are not counted.
        max_tokens: of a text.
    """
    texts: dict[str, list[str]] = {side: [] for side in sides}
    seconds, tokens = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0)
    for number, (source, _) in enumerate(pairs):
        ids = lm.encode(source)
        for side, run in sides.items():
            answer = run(Work(name, [ids], max_tokens, 4 if side.endswith("beam 4") else 1))
            if number >= WARM:
                written = [token for token in answer.tokens[0] if token not in lm.end_tokens]
                texts[side].append(_words(lm, written))
                seconds[side] += answer.seconds
                tokens[side] += len(written)
    wanted = [target for _, target in pairs[WARM:]]
    return [
        Point(
            model=name,
            side=side,
            bleu=bleu(texts[side], wanted),
            sentences_per_s=len(wanted) / seconds[side],
            tokens=tokens[side],
        )
        for side in sides
    ]


def _words(lm: LanguageModel, tokens: list[int]) -> str:
    if lm.tokenizer is None:
        raise ConfigError("A model without a tokenizer has no text to be judged.", "Add its tokenizer.json.")
    return lm.tokenizer.decode(tokens)


def _sides(
    name: str, methods: Sequence[str], folder: Path, threads: int, stack: ExitStack, tell: Callable[[str], None]
) -> tuple[LanguageModel, dict[str, Side]]:
    plain, small = (load(name, dtype="float32", quantize=kind) for kind in ("none", "int8"))
    sides = {method: own_side(plain, method) for method in methods}
    sides["autoregressive, int8"] = own_side(small, "autoregressive")
    directory = resolve(name)
    try:
        theirs = transformers_side(directory)
        sides |= {"transformers": theirs, "transformers, beam 4": theirs}
    except ImportError:
        tell("transformers is not installed, and left out.")
    try:
        for precision in ("float32", "int8"):
            child = stack.enter_context(Child("ctranslate2", threads))
            child.ask("versions")
            if not (folder / "model.bin").exists():
                child.ask("convert", source=str(directory), target=str(folder), precision="float32")
            job = {"mode": "plain", "precision": precision, "threads": threads, "capacity": 0, "vocab_size": 0}
            child.ask("open", directory=str(folder), **job)
            sides[f"CTranslate2 {precision}"] = peer_side(child)
        sides["CTranslate2 int8, beam 4"] = peer_side(child)
    except ChildError as error:
        tell(f"CTranslate2 is left out: {error}")
    return plain, sides


def _work(given: argparse.Namespace) -> None:
    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if given.sentences < 1:
        raise ConfigError(f"{given.sentences} sentences were asked for.", "Translate one or more.")
    pairs = read_set(given.set, find_data(given.data), given.sentences + WARM)
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate(given.models):
            tell(f"{name}: {len(pairs)} sentences.")
            with ExitStack() as stack:
                threads = given.threads or torch.get_num_threads()
                lm, sides = _sides(name, given.methods, Path(scratch) / str(number), threads, stack, tell)
                points += measure(lm, Path(name).name, sides, pairs)
    rows, table, note = [asdict(point) for point in points], _table(points), f"BLEU: {SIGNATURE}"
    print(table.markdown(), f"\n{note}")
    asked = vars(given) | {"models": [Path(name).name for name in given.models]}
    new_report("translation-curve", asked, describe(), rows, tables=[table], notes=[note]).write(given.json)
    if given.plot is not None:
        draw_quality(rows, f"{given.set}, one sentence at a time", given.plot)


def _table(points: Sequence[Point]) -> Table:
    cells = [
        [point.model, point.side, f"{point.bleu:.2f}", f"{point.sentences_per_s:.1f}", str(point.tokens)]
        for point in points
    ]
    return Table("", ("model", "side", "BLEU", "sentences/s", "tokens"), cells, left=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("translation_curve", __doc__)
    parser.add_argument("models", nargs="+", help="zoo names or directories")
    parser.add_argument("--set", default="multi30k:test:en-de", help="source:split:direction")
    parser.add_argument("--sentences", type=int, default=200, help="counted ones")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="settings as in beam-search:beams=4")
    parser.add_argument("--data", type=Path, help="folder of texts (default: ./data)")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--plot", type=Path, help="draw it to this file")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
