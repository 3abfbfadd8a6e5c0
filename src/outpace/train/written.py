"""Texts that a causal model wrote: sequence-level knowledge distillation for models that write in parallel.

Several tokens can be written at once where they follow from what is there. Human text leaves much open, so a model
trained on it is rarely sure of several places. A model trained on what a parent writes greedily has one answer to learn
per beginning, and is (Kim and Rush, 2016, arXiv 1606.07947; Gu et al., 2018, arXiv 1711.02281, for parallel decoding).

    python -m outpace.train.written --data DATA --out FILE

Each story of the training texts is cut at several sentence ends, and the parent goes on from there.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from rich.progress import track

from outpace.api.engine import LanguageModel, load
from outpace.errors import ConfigError

from .sources import SOURCES, Source

__all__ = ["beginnings", "main", "write_texts"]

_SENTENCE = re.compile(r"[.!?][\"']?\s+")


def beginnings(source: Source, data: Path, cuts: int) -> Iterator[str]:
    """Yield, for each document of a source, its text up to `cuts` evenly spread sentence ends (of the first twelve)."""
    for document in source.read(data):
        ends = [found.end() for found in _SENTENCE.finditer(document) if found.end() >= 40][:12]
        for number in range(min(cuts, len(ends))):
            end = ends[number * len(ends) // cuts]
            yield document[:end].rstrip()


def write_texts(
    lm: LanguageModel, prompts: Sequence[str], out: Path, max_tokens: int = 64, rows: int = 32, temperature: float = 0.0
) -> int:
    """Continue every prompt and append prompt and continuation to `out`, one JSON string per line.

    Texts that are there already are not written again, so an interrupted run goes on where it stopped.

    Returns:
        Tokens written by this call.
    """
    done = len(out.read_text(encoding="utf-8").splitlines()) if out.is_file() else 0
    order = list(range(len(prompts)))
    Random(0).shuffle(order)  # a run that is cut short has still seen everything
    total = 0
    with out.open("a", encoding="utf-8") as file:
        for start in track(range(done, len(order), rows), description="writing"):
            batch = [prompts[index] for index in order[start : start + rows]]
            results = lm.generate(batch, max_tokens=max_tokens, temperature=temperature)
            for prompt, result in zip(batch, results, strict=True):
                is_whole = result.finish_reason == "eos"
                file.write(json.dumps({"text": prompt + result.text, "is_whole": is_whole}) + "\n")
                total += len(result.tokens)
            file.flush()
    return total


def main() -> None:
    """Write the texts."""
    parser = argparse.ArgumentParser(description="Write texts with a causal model, to train parallel ones on.")
    parser.add_argument("--model", default="stories")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of training texts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sources", default="tinystories,tinystories-lowercase")
    parser.add_argument("--cuts", type=int, default=3, help="beginnings per document")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rows", type=int, default=32)
    asked = parser.parse_args()
    wanted = [source for source in SOURCES if source.name in asked.sources.split(",")]
    if not wanted:
        raise ConfigError("No such source.", f"Sources: {', '.join(source.name for source in SOURCES)}.")
    prompts = [text for source in wanted for text in beginnings(source, asked.data, asked.cuts)]
    print(f"{write_texts(load(asked.model), prompts, asked.out, asked.max_tokens, asked.rows):,} tokens written")


if __name__ == "__main__":
    main()
