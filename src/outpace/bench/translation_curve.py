"""Quality against speed: translators and decoding methods as points, with transformers and CTranslate2 among them.

    python -m outpace.bench.translation_curve runs/captions-teacher runs/captions-deep-shallow --plot curve.png
    outpace bench --translation tatoeba-pairs:test --model translate,translate-fast

One sentence at a time (S1), all sides in turns, sentence by sentence; the first sentences are not counted. Then all of
them side by side in batches (Smax), the median of three rounds. BLEU, chrF and repeated tokens are of the texts that
were timed one at a time. Peers run where they are installed, CTranslate2 in a process of its own, by the Python that
OUTPACE_PEERS_PYTHON names. Source of S1 and Smax: Kasai et al. (2021), arXiv 2006.10369.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
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
from outpace.bench.report import Report, Table, new_report
from outpace.bench.translation import Answer, Side, Work, peer_side, transformers_side
from outpace.errors import ConfigError
from outpace.methods.misfit import misfits
from outpace.methods.registry import load_method, read_spelled
from outpace.models.loading import resolve
from outpace.train.bleu import SIGNATURE, bleu
from outpace.train.chrf import CHRF_SIGNATURE, chrf
from outpace.train.data import find_data
from outpace.train.translation_quality import read_set

__all__ = ["CurveOptions", "Point", "main", "measure", "run_curve"]

METHODS = ("autoregressive", "beam-search:beams=4", "token-recycling", "jacobi")
WARM = 3  # sentences that are not counted
TURN, REST_S = 16, 0.3  # sentences that a side has in turn, and seconds before it has them


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One side on one model.

    Attributes:
        model, side: their names.
        bleu, chrf: of the counted sentences, in percent.
        bleu_by_length: BLEU of the shorter, middle and longer third of the sources, by their tokens.
        repeated: share of the tokens that equal the one before.
        passes: forwards of the target per sentence; 0 = the side does not tell.
        sentences_per_s: one at a time.
        batched_per_s: sentences per second in batches; 0 = not measured.
        tokens: that were written.
    """

    model: str
    side: str
    bleu: float
    chrf: float = 0.0
    bleu_by_length: tuple[float, ...] = ()
    repeated: float = 0.0
    passes: float = 0.0
    sentences_per_s: float
    batched_per_s: float = 0.0
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveOptions:
    """What is measured.

    Attributes:
        models: zoo names or directories.
        set: source:split:direction.
        sentences: counted ones.
        methods: settings as in beam-search:beams=4; those that fit a model are run on it.
        batch: sentences side by side; 0 = one at a time alone.
        threads: CPU threads; 0 = as they are.
        has_peers: run int8, transformers and CTranslate2 beside ours.
        data: folder of texts; None = ./data.
    """

    models: tuple[str, ...]
    set: str = "multi30k:test:en-de"
    sentences: int = 200
    methods: tuple[str, ...] = METHODS
    batch: int = 32
    threads: int = 0
    has_peers: bool = True
    data: Path | None = None


def own_side(lm: LanguageModel, method: str) -> Side:
    """Return our loop with a method, its settings behind a colon."""
    name, options = read_spelled(method, "," if "," in method else ":")

    def run(work: Work) -> Answer:
        began = time.perf_counter()
        found = lm.generate(work.sources, max_tokens=work.max_tokens, method=name, options=options)
        seconds = time.perf_counter() - began
        passes = max(result.usage.target_nfe for result in found)  # a batch makes one forward for all its rows
        return Answer([list(result.tokens) for result in found], seconds, passes)

    return run


def measure(
    lm: LanguageModel,
    name: str,
    sides: Mapping[str, Side],
    pairs: Sequence[tuple[str, str]],
    max_tokens: int = 96,
    batch: int = 0,
    rest_s: float = REST_S,
) -> list[Point]:
    """Translate pairs with each side in turns of `TURN` sentences, and return a point for each.

    Args:
        lm: the model, whose tokenizer all sides share.
        name: of the model.
        sides: by name; one whose name ends in "beam 4" is asked for that many.
        pairs: sources and references; the first are not counted.
        max_tokens: of a text.
        batch: sentences side by side, once more; 0 = one at a time alone.
        rest_s: seconds before each turn: threads of other libraries spin while they wait for work, a fifth of a second,
            and would take a core from whoever is next.
    """
    written: dict[str, list[list[int]]] = {side: [] for side in sides}
    seconds, passes = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0)
    sources = [lm.encode(source) for source, _ in pairs]
    for first, (side, run) in itertools.product(range(0, len(sources), TURN), sides.items()):
        time.sleep(rest_s)
        for number, ids in enumerate(sources[first : first + TURN], first):
            answer = run(_work_of(name, side, [ids], max_tokens))
            if number >= WARM:
                written[side].append([token for token in answer.tokens[0] if token not in lm.end_tokens])
                seconds[side] += answer.seconds
                passes[side] += answer.passes
    counted = [target for _, target in pairs[WARM:]]
    thirds = _thirds([len(ids) for ids in sources[WARM:]])
    points = []
    for side, run in sides.items():
        texts, tokens = [_words(lm, row) for row in written[side]], sum(map(len, written[side]))
        points.append(
            Point(
                model=name,
                side=side,
                bleu=bleu(texts, counted),
                chrf=chrf(texts, counted),
                bleu_by_length=tuple(bleu([texts[at] for at in part], [counted[at] for at in part]) for part in thirds),
                repeated=sum(a == b for row in written[side] for a, b in itertools.pairwise(row)) / max(1, tokens),
                passes=passes[side] / len(counted),
                sentences_per_s=len(counted) / seconds[side],
                batched_per_s=_batched(name, side, run, sources[WARM:], max_tokens, batch) if batch else 0.0,
                tokens=tokens,
            )
        )
    return points


def _work_of(name: str, side: str, sources: list[list[int]], max_tokens: int) -> Work:
    return Work(name, sources, max_tokens, 4 if side.endswith("beam 4") else 1)


def _batched(name: str, side: str, run: Side, sources: Sequence[list[int]], max_tokens: int, batch: int) -> float:
    """Return sentences per second in batches of similar lengths: the median of three rounds behind one more."""
    order = sorted(sources, key=len)
    parts = [order[start : start + batch] for start in range(0, len(order), batch)]
    rounds = [sum(run(_work_of(name, side, part, max_tokens)).seconds for part in parts) for _ in range(4)]
    return len(order) / statistics.median(rounds[1:])


def _thirds(lengths: Sequence[int]) -> list[list[int]]:
    """Return which texts are the shorter, middle and longer third; one group where there are fewer than three."""
    order = sorted(range(len(lengths)), key=lambda at: lengths[at])
    cuts = [0, len(order) // 3, 2 * len(order) // 3, len(order)] if len(order) >= 3 else [0, len(order)]
    return [order[first:last] for first, last in itertools.pairwise(cuts)]


def _words(lm: LanguageModel, tokens: list[int]) -> str:
    if lm.tokenizer is None:
        raise ConfigError("A model without a tokenizer has no text to be judged.", "Add its tokenizer.json.")
    return lm.tokenizer.decode(tokens)


def fitting(lm: LanguageModel, methods: Sequence[str], tell: Callable[[str], None]) -> list[str]:
    """Return those of some methods, settings behind a colon, that fit a model; to one-pass networks add `one-pass`."""
    offered = lm.target.capabilities
    wanted = ["one-pass", *methods] if offered.is_one_pass else [*methods]
    found = []
    for method in dict.fromkeys(wanted):
        lacks = misfits(load_method(method.partition(":")[0])(), offered)
        if not lacks:
            found.append(method)
        elif method in methods and not offered.is_one_pass:
            tell(f"{method} is left out: it needs {' and '.join(lacks)}.")
    return [
        method
        for method in found
        if not offered.is_one_pass or load_method(method.partition(":")[0])().needs.is_one_pass
    ]


def _sides(
    name: str, asked: CurveOptions, folder: Path, stack: ExitStack, tell: Callable[[str], None]
) -> tuple[LanguageModel, dict[str, Side]]:
    plain = load(name, dtype="float32")
    sides = {method: own_side(plain, method) for method in fitting(plain, asked.methods, tell)}
    if plain.target.capabilities.is_one_pass or not asked.has_peers:
        return plain, sides
    sides["autoregressive, int8"] = own_side(load(name, dtype="float32", quantize="int8"), "autoregressive")
    directory = resolve(name)
    try:
        theirs = transformers_side(directory)
        sides |= {"transformers": theirs, "transformers, beam 4": theirs}
    except ImportError:
        tell("transformers is not installed, and left out.")
    try:
        threads = asked.threads or torch.get_num_threads()
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


def run_curve(asked: CurveOptions, tell: Callable[[str], None]) -> Report:
    """Measure what was asked for.

    Raises:
        ConfigError: no sentences, no such set or model, or no texts where `data` says.
    """
    if asked.sentences < 1:
        raise ConfigError(f"{asked.sentences} sentences were asked for.", "Translate one or more.")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    pairs = read_set(asked.set, find_data(asked.data), asked.sentences + WARM)
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate(asked.models):
            tell(f"{name}: {len(pairs)} sentences.")
            with ExitStack() as stack:
                lm, sides = _sides(name, asked, Path(scratch) / str(number), stack, tell)
                points += measure(lm, Path(name).name, sides, pairs, batch=asked.batch)
    told = asdict(asked) | {"models": [Path(name).name for name in asked.models]}
    notes = [f"BLEU: {SIGNATURE}; chrF: {CHRF_SIGNATURE}. short/middle/long: BLEU of a third of the sources each."]
    notes.append(
        f"S1: sentences per second one at a time; Smax: in batches of {asked.batch}. passes: forwards per sentence."
    )
    rows = [asdict(point) for point in points]
    return new_report("translation-curve", told, describe(), rows, tables=[_table(points)], notes=notes)


def _work(given: argparse.Namespace) -> None:
    asked = CurveOptions(
        models=tuple(given.models),
        set=given.set,
        sentences=given.sentences,
        methods=tuple(given.methods),
        batch=given.batch,
        threads=given.threads,
        data=given.data,
    )
    report = run_curve(asked, lambda line: print(line, file=sys.stderr, flush=True))
    report.write(given.json, given.plot)
    print(*(table.markdown() for table in report.tables()), "", *report.document["notes"], sep="\n")


_COLUMNS = ("model", "side", "BLEU", "short/middle/long", "chrF", "repeated", "passes", "S1", "Smax", "tokens")


def _table(points: Sequence[Point]) -> Table:
    cells = [
        [
            point.model,
            point.side,
            f"{point.bleu:.2f}",
            "/".join(f"{value:.1f}" for value in point.bleu_by_length),
            f"{point.chrf:.1f}",
            f"{point.repeated:.1%}",
            f"{point.passes:.1f}" if point.passes else "",
            f"{point.sentences_per_s:.1f}",
            f"{point.batched_per_s:.1f}" if point.batched_per_s else "",
            str(point.tokens),
        ]
        for point in points
    ]
    return Table("", _COLUMNS, cells, left=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("translation_curve", __doc__)
    parser.add_argument("models", nargs="+", help="zoo names or directories")
    parser.add_argument("--set", default="multi30k:test:en-de", help="source:split:direction")
    parser.add_argument("--sentences", type=int, default=200, help="counted ones")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="settings as in beam-search:beams=4")
    parser.add_argument("--batch", type=int, default=32, help="sentences side by side; 0 = one at a time alone")
    parser.add_argument("--data", type=Path, help="folder of texts (default: ./data)")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--plot", type=Path, help="draw it to this file")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
