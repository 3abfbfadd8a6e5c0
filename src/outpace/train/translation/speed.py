"""What a translator's shape costs: decoder forwards and layers per sentence, one at a time and many side by side.

    python -m outpace.train.translation.speed runs/captions-teacher runs/captions-deep-shallow --set multi30k:test:en-de

Source: Kasai et al. (2021, arXiv 2006.10369), section 2: S1 is the speed of one sentence at a time, Smax that of the
largest batch. The encoder runs once per batch and the decoder once per token, so decoder layers are what one at a time
waits for. The first model is the one that the others are compared with. Models take turns, and the fastest of their
rounds counts; what the forwards of both sides take of it says how much a smaller decoder could still bring.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from outpace.api.engine import LanguageModel, load
from outpace.failures import guarded
from outpace.papers import Paper
from outpace.train.bleu import SIGNATURE, bleu
from outpace.train.data import find_data
from outpace.train.pairs import Pair
from outpace.train.translation_quality import read_set, translate

__all__ = ["Cost", "cost", "main"]

PAPERS = (
    Paper(
        "Deep Encoder, Shallow Decoder: Reevaluating Non-autoregressive Machine Translation",
        "Kasai et al.",
        2020,
        "2006.10369",
        38,
        "Twelve encoder layers, and its large data sets.",
        "outpace train captions-deep-shallow",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a set of sentences cost.

    Attributes:
        rows: Sentences side by side.
        forwards: Decoder forwards per sentence; a batch makes as many as its longest translation has.
        layers: Layers that a sentence waits for: decoder layers times forwards, and the encoder's once a batch.
        seconds: Per sentence.
        forwards_s: Of them in the encoder's and the decoder's forwards.
        bleu: Of the translations.
    """

    rows: int
    forwards: float
    layers: float
    seconds: float
    forwards_s: float
    bleu: float


def cost(model: LanguageModel, depths: tuple[int, int], pairs: Sequence[Pair], rows: int, max_tokens: int) -> Cost:
    """Translate a set greedily, `rows` at a time.

    Args:
        model: an encoder-decoder.
        depths: layers of its encoder and of its decoder.
        pairs: sources and references.
        rows: batch size.
        max_tokens: of a translation.
    """
    started = time.perf_counter()
    results = translate(model, [source for source, _ in pairs], "autoregressive", rows=rows, max_tokens=max_tokens)
    seconds = time.perf_counter() - started
    # The batches are those of `translate`: similar lengths together.
    ordered = [results[index] for index in sorted(range(len(pairs)), key=lambda at: len(pairs[at][0]))]
    batches = [ordered[start : start + rows] for start in range(0, len(ordered), rows)]
    forwards = sum(max(one.usage.num_steps for one in batch) for batch in batches)
    times = [batch[0].timing for batch in batches]  # the rows of a batch share theirs
    return Cost(
        rows=rows,
        forwards=forwards / len(pairs),
        layers=(forwards * depths[1] + len(batches) * depths[0]) / len(pairs),
        seconds=seconds / len(pairs),
        forwards_s=sum(one["prefill_s"] + one["score_s"] for one in times) / len(pairs),
        bleu=bleu([result.text for result in results], [target for _, target in pairs]),
    )


def depths_of(directory: Path) -> tuple[int, int]:
    """Return the layers of a directory's encoder and decoder."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return int(config["encoder_layers"]), int(config["decoder_layers"])


_HEAD = (
    "| model | encoder-decoder | batch | BLEU | decoder forwards per sentence | layers waited for per sentence "
    "| fewer layers | sentences per second | faster | ms per sentence | of them forwards | forwards faster |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def _line(name: str, depths: tuple[int, int], found: Cost, first: Cost) -> str:
    return (
        f"| {name} | {depths[0]}-{depths[1]} | {found.rows} | {found.bleu:.2f} | {found.forwards:.2f} "
        f"| {found.layers:.1f} | {first.layers / found.layers:.2f}x | {1 / found.seconds:.1f} "
        f"| {first.seconds / found.seconds:.2f}x | {1e3 * found.seconds:.2f} | {1e3 * found.forwards_s:.2f} "
        f"| {first.forwards_s / found.forwards_s:.2f}x |"
    )


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.translation.speed", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, help="directories that `outpace train` wrote")
    parser.add_argument("--set", default="multi30k:test:en-de")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 128], help="batch sizes: one, and the largest")
    parser.add_argument("--count", type=int, default=0, help="sentences (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each model")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return guarded(lambda _: _compare(given), [])


def _compare(given: argparse.Namespace) -> int:
    pairs = read_set(given.set, find_data(given.data), given.count)
    models = [(directory, load(directory, dtype="float32")) for directory in given.models]
    found = dict[tuple[Path, int], Cost]()
    for _ in range(given.rounds):
        for directory, model in models:
            for rows in given.rows:
                one, key = cost(model, depths_of(directory), pairs, rows, given.max_tokens), (directory, rows)
                found[key] = min(found.get(key, one), one, key=lambda cost: cost.seconds)
    print(_HEAD)
    for (directory, rows), one in found.items():
        print(_line(directory.name, depths_of(directory), one, found[given.models[0], rows]))
    print(f"BLEU: {SIGNATURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
