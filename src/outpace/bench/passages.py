"""Passages found by n-grams that a model writes, beside BM25 and chance; and how fast the index answers.

    python -m outpace.bench.passages --questions xquad.en.json.gz --model smollm2
    python -m outpace.bench.passages --speed CORPUS --model stories

Questions are a file in SQuAD's form. A hit is a question whose own passage is among the first ten; of passages drawn by
chance that is ten in their number.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from outpace.api.engine import LanguageModel, load
from outpace.api.passages import PassageFinder
from outpace.bench.machine import describe
from outpace.bench.report import Table, new_report
from outpace.draft.corpus import Corpus
from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.retrieve.bm25 import Bm25
from outpace.retrieve.fm_index import FmIndex

__all__ = ["measure_hits", "measure_speed", "read_questions"]

_TOP = 10


def read_questions(path: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the passages of a file in SQuAD's form (perhaps gzipped), and each question with its passage's number.

    Raises:
        ConfigError: it cannot be read, or has another form.
    """
    passages, questions = list[str](), list[tuple[str, int]]()
    try:
        data = path.read_bytes()
        found = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
        for article in found["data"]:
            for paragraph in article["paragraphs"]:
                questions += [(asked["question"], len(passages)) for asked in paragraph["qas"]]
                passages.append(paragraph["context"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no questions as SQuAD does.", "Name a file such as xquad.en.json.") from error
    return passages, questions


def measure_hits(
    lm: LanguageModel, passages: Sequence[str], questions: Sequence[tuple[str, int]], beams: int, length: int
) -> list[dict[str, Any]]:
    """Return a row per way of finding: hits@10 in per cent, and seconds per question."""
    finder, words = PassageFinder(lm, passages, beams=beams, length=length), Bm25(passages)
    ways: dict[str, Callable[[str], list[int]]] = {
        f"n-grams of {lm.name}": lambda query: [found.number for found in finder.find(query, _TOP)],
        "BM25": lambda query: [number for number, _ in words.rank(query, _TOP)],
    }
    rows = []
    for name, find in ways.items():
        began = time.perf_counter()
        hits = sum(own in find(query) for query, own in questions)
        seconds = (time.perf_counter() - began) / len(questions)
        rows.append({"way": name, "hits": 100 * hits / len(questions), "seconds": seconds})
    return [*rows, {"way": "chance", "hits": 100 * min(1.0, _TOP / len(passages)), "seconds": 0.0}]


def measure_speed(lm: LanguageModel, files: Sequence[Path], repeats: int = 2000, longest: int = 6) -> dict[str, Any]:
    """Return what an index of a corpus takes: seconds to build, microseconds to look up.

    Looked up are n-grams of the corpus drawn with a fixed seed: each is extended token by token, and what may follow is
    asked for once at its end.
    """
    corpus = Corpus()
    corpus.read(files, lambda text: lm.encode(text, is_special=False))
    began = time.perf_counter()
    index = FmIndex(corpus.texts, lm.target.capabilities.vocab_size)
    built, draw = time.perf_counter() - began, random.Random(0)
    steps, asks, whole = list[float](), list[float](), list[float]()
    for _ in range(repeats):
        text = draw.choice(corpus.texts)
        at, size = draw.randrange(len(text)), draw.randint(1, longest)
        ngram = text[at : at + size].tolist()
        t0 = time.perf_counter()
        rows = index.find(ngram)
        t1 = time.perf_counter()
        index.following(rows)
        t2 = time.perf_counter()
        steps.append((t1 - t0) / len(ngram))
        whole.append(t1 - t0)
        asks.append(t2 - t1)
    told = {"text_mb": corpus.num_bytes / 1e6, "tokens": index.num_tokens, "build_s": built}
    for name, values in (("step", steps), ("find", whole), ("following", asks)):
        told[f"{name}_us"] = 1e6 * statistics.median(values)
        told[f"{name}_us_p95"] = 1e6 * statistics.quantiles(values, n=20)[-1]
    return told


def main(arguments: list[str] | None = None) -> int:
    """Print a table, and write it."""
    parser = argparse.ArgumentParser(description="Passages found by n-grams, beside BM25 and chance.")
    parser.add_argument("--model", default="stories", help="a causal model")
    parser.add_argument("--questions", type=Path, help="a file in SQuAD's form")
    parser.add_argument("--speed", type=Path, nargs="+", help="a corpus whose index is timed")
    parser.add_argument("--count", type=int, default=100, help="questions, drawn with a fixed seed")
    parser.add_argument("--beams", type=int, default=24, help="n-grams written side by side")
    parser.add_argument("--length", type=int, default=8, help="tokens of each")
    parser.add_argument("--json", help="write the figures here")
    asked = parser.parse_args(arguments)
    if (asked.questions is None) == (asked.speed is None):
        raise ConfigError("Name questions or a corpus.", "Give --questions FILE or --speed CORPUS.")
    lm = load(asked.model)
    if asked.speed is not None:
        rows = [measure_speed(lm, asked.speed)]
        cells = [[name, f"{value:,.1f}"] for name, value in rows[0].items()]
        table = Table("", ("index of a corpus", ""), cells)
    else:
        passages, questions = read_questions(asked.questions)
        some = random.Random(0).sample(questions, min(asked.count, len(questions)))
        rows = measure_hits(lm, passages, some, asked.beams, asked.length)
        cells = [[row["way"], f"{row['hits']:.1f}", f"{row['seconds']:.3f}"] for row in rows]
        table = Table("", ("found by", f"hits@{_TOP}, %", "seconds per question"), cells)
    told = {name: value for name, value in vars(asked).items() if name not in ("questions", "speed")}
    report = new_report("passages", told, describe(), rows, tables=[table])
    print(report.markdown())
    if asked.json:
        report.write(asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
