"""What early exits save and what they cost: mean layers per token, seconds and BLEU of an ELMER at several thresholds.

    python -m outpace.bench.exits runs/nar-elmer --set multi30k:test:en-de --thresholds 1,0.95,0.9,0.7,0.5

One sentence at a time, all thresholds in turns, encoder included. Layers are counted over the tokens of the texts, and
over all places that were computed. Beside seconds stands the time of the processor, all threads
together, which a busy machine does not stretch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Table, new_report
from outpace.errors import ConfigError
from outpace.methods.whole.confident_exit import ConfidentExit
from outpace.models.nar.elmer import Elmer
from outpace.models.nar.model import NarModel
from outpace.train.bleu import SIGNATURE, bleu
from outpace.train.data import find_data
from outpace.train.translation_quality import read_set

__all__ = ["Exits", "Trace", "main", "measure", "trace"]

WARM = 2  # sentences that are not counted


@dataclass(frozen=True, slots=True)
class Trace:
    """One sentence at one threshold.

    Attributes:
        text: what was written.
        depth: layers of each place, those of the text's tokens first.
        tokens: of the text, its end among them where a place said it.
        seconds, cpu_seconds: on the wall and of the processor.
    """

    text: str
    depth: list[int]
    tokens: int
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Exits:
    """All sentences at one threshold.

    Attributes:
        threshold: as of the method `confident-exit`.
        layers: of the decoder, on average over the tokens of the texts.
        place_layers: on average over all places.
        seconds, cpu_seconds: of all sentences.
        bleu: of the texts, in percent.
        same: share of the texts that are those of the first threshold.
    """

    threshold: float
    layers: float
    place_layers: float
    seconds: float
    cpu_seconds: float
    bleu: float
    same: float


@torch.no_grad()
def trace(lm: LanguageModel, source: Sequence[int], threshold: float) -> Trace:
    """Write one text.

    Raises:
        ConfigError: the model is no ELMER.
    """
    model = lm.target
    if not isinstance(model, NarModel) or not isinstance(model.net, Elmer) or lm.tokenizer is None:
        raise ConfigError(f"{lm.name} has no heads between its layers.", "Name a model of the kind elmer.")
    wall, processor = time.perf_counter(), time.process_time()
    run = model.begin([list(source)])
    laws, depth = model.net.exit(run, threshold)
    tokens = model.ended(model.net.laws([laws], run.is_place)[0]).argmax(-1).tolist()
    passed = time.perf_counter() - wall, time.process_time() - processor
    layers = depth[0].tolist()
    return Trace(lm.tokenizer.decode(tokens), layers, min(len(tokens), len(layers)), *passed)


def measure(
    lm: LanguageModel, pairs: Sequence[tuple[str, str]], thresholds: Sequence[float], warm: int = WARM
) -> list[Exits]:
    """Translate all sentences at all thresholds in turns; return what each threshold came to."""
    sources = [lm.encode(source) for source, _ in pairs]
    rows = [[trace(lm, source, threshold) for threshold in thresholds] for source in sources][warm:]
    references = [reference for _, reference in pairs[warm:]]
    found, first = list[Exits](), [row[0].text for row in rows]
    for at, threshold in enumerate(thresholds):
        own = [row[at] for row in rows]
        texts, depths = [one.text for one in own], [one.depth for one in own]
        said = [layer for one in own for layer in one.depth[: one.tokens]]
        found.append(
            Exits(
                threshold=threshold,
                layers=sum(said) / len(said),
                place_layers=sum(map(sum, depths)) / sum(map(len, depths)),
                seconds=sum(one.seconds for one in own),
                cpu_seconds=sum(one.cpu_seconds for one in own),
                bleu=bleu(texts, references),
                same=sum(a == b for a, b in zip(texts, first, strict=True)) / len(texts),
            )
        )
    return found


def _table(found: Sequence[Exits], sentences: int) -> Table:
    columns = (
        "threshold",
        "layers of a token",
        "of a place",
        "ms a sentence",
        "of the processor",
        "BLEU",
        "same texts",
    )
    cells = [
        [
            f"{one.threshold:g}",
            f"{one.layers:.2f}",
            f"{one.place_layers:.2f}",
            f"{1000 * one.seconds / sentences:.2f}",
            f"{1000 * one.cpu_seconds / sentences:.2f}",
            f"{one.bleu:.2f}",
            f"{one.same:.0%}",
        ]
        for one in found
    ]
    return Table("", columns, cells, left=0)


def _work(given: argparse.Namespace) -> None:
    thresholds = [ConfidentExit.from_settings({"threshold": text}) for text in given.thresholds.split(",")]
    if given.sentences < 1:
        raise ConfigError(f"{given.sentences} sentences were asked for.", "Translate one or more.")
    pairs = read_set(given.set, find_data(given.data), given.sentences + WARM)
    found = measure(load(given.model), pairs, [one.threshold for one in thresholds if isinstance(one, ConfidentExit)])
    table, notes = _table(found, len(pairs) - WARM), [f"BLEU: {SIGNATURE}, {len(pairs) - WARM} sentences."]
    print(table.markdown(), "", *notes, sep="\n")
    told = vars(given) | {"model": Path(given.model).name, "data": ""}
    new_report("exits", told, describe(), [asdict(one) for one in found], tables=[table], notes=notes).write(given.json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("exits", __doc__)
    parser.add_argument("model", help="a directory of the kind elmer")
    parser.add_argument("--thresholds", default="1,0.95,0.9,0.7,0.5", help="of the method confident-exit")
    parser.add_argument("--set", default="multi30k:test:en-de", help="source:split:direction")
    parser.add_argument("--sentences", type=int, default=200, help="counted ones")
    parser.add_argument("--data", type=Path, help="folder of texts (default: ./data)")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
