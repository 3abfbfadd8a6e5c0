"""What copying and reading a collection does to texts: tokens per step, what was copied, and how much they repeat.

    python -m outpace.bench.copying --phrases runs/phrases --data DATA
    python -m outpace.bench.copying --chunks runs/chunks --data DATA

Phrases are copied from two collections that the maps were not trained for, stories and dialogues; that every copied
phrase stands in its collection is checked on the way. Chunks are read from the collection that lies beside the reader;
prompts are the first tokens of held-out dialogues, and the model alone writes behind the same ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from outpace.api.engine import LanguageModel, load
from outpace.bench.distinct import PROMPTS, distinct
from outpace.bench.machine import describe
from outpace.bench.report import Table, new_report
from outpace.errors import ConfigError, OutpaceError
from outpace.failures import guarded
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.parallel.chunk_retrieval import ChunkRetrieval
from outpace.methods.parallel.copy_phrases import CopyPhrases
from outpace.train.chunks import dialogues, drawn_dialogues
from outpace.train.sources import held_out_stories
from outpace.types import Outcome

__all__ = ["written_by"]

_ORDER = 4
_PROMPT, _PROMPTS = 48, 8  # tokens of a dialogue, and dialogues


def written_by(
    lm: LanguageModel, method: Method, prompts: Sequence[Any], max_tokens: int, temperature: float
) -> dict[str, Any]:
    """Return what texts come to: tokens per step, the share of tokens in copied phrases, repetition-4, in per cent.

    Raises:
        OutpaceError: a copied phrase does not stand in the method's collection.
    """
    num_tokens, steps, spans, repeated = 0, 0, list[list[int]](), list[float]()
    for number, prompt in enumerate(prompts):
        written = list[list[int]]()

        def watch(rows: Any, outcome: Outcome, written: list[list[int]] = written) -> None:
            del rows
            written.append(list(outcome.emitted[0]))

        given: dict[str, Any] = {"temperature": temperature, "seed": number, "watch": watch, "max_tokens": max_tokens}
        one = lm.generate(prompt, method=method, **given)
        num_tokens, steps = num_tokens + len(one.tokens), steps + sum(bool(step) for step in written)
        spans += [step for step in written[:-1] if len(step) > 1]  # the last may be cut
        repeated.append(100 * (1 - distinct([one.tokens], _ORDER)))
    if isinstance(method, CopyPhrases) and method.collection:
        _check_spans(lm, method.collection, spans)
    row = {"tokens_per_step": num_tokens / steps, "copied": 100 * sum(map(len, spans)) / num_tokens}
    return {**row, "repetition": sum(repeated) / len(repeated)}


def _check_spans(lm: LanguageModel, collection: str, spans: Sequence[Sequence[int]]) -> None:
    with open(collection, encoding="utf-8") as lines:
        held = [lm.encode(json.loads(line)["text"], is_special=False) for line in lines]
    for span in spans:
        if not any(list(span) == text[at : at + len(span)] for text in held for at in range(len(text))):
            raise OutpaceError(
                f"The phrase {list(span)} does not stand in {collection}.", "This is a fault: report it."
            )


def _arms(lm: LanguageModel, asked: argparse.Namespace, folder: Path) -> tuple[dict[str, Method], list[Any]]:
    """Return what is compared, by name, and the prompts."""
    arms: dict[str, Method] = {"the model alone": Autoregressive()}
    if asked.chunks is not None:
        arms["nearest chunks"] = ChunkRetrieval(
            str(asked.chunks / "reader.safetensors"), str(asked.chunks / "collection.jsonl")
        )
        return arms, [lm.encode(text)[:_PROMPT] for text in drawn_dialogues(asked.data, 0, _PROMPTS)[1]]
    held = list(islice(dialogues(asked.data, "dev"), asked.texts))
    for name, texts in (("stories", held_out_stories(asked.data)[: asked.texts]), ("dialogues", held)):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        arms[f"phrases of {name}"] = CopyPhrases(str(asked.phrases / "maps.safetensors"), str(file))
    return arms, list(PROMPTS[False])


def main(arguments: list[str] | None = None) -> int:
    """Print a table, and write it."""
    parser = argparse.ArgumentParser(description="What copying and reading a collection does to texts.")
    parser.add_argument("--phrases", type=Path, help="a folder of python -m outpace.train.phrases")
    parser.add_argument("--chunks", type=Path, help="a folder of python -m outpace.train.chunks")
    parser.add_argument("--model", default="stories", help="the model that they were trained beside")
    parser.add_argument("--data", type=Path, required=True, help="the folder of data sets")
    parser.add_argument("--texts", type=int, default=80, help="texts of a collection of phrases")
    parser.add_argument("--max-tokens", type=int, default=60, help="tokens per text")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--json", help="write the figures here")
    asked = parser.parse_args(arguments)
    if (asked.phrases is None) == (asked.chunks is None):
        raise ConfigError("Name phrases or chunks.", "Give --phrases FOLDER or --chunks FOLDER.")
    lm = load(asked.model)
    with tempfile.TemporaryDirectory() as folder:
        arms, prompts = _arms(lm, asked, Path(folder))
        rows = [
            {"written by": name, **written_by(lm, method, prompts, asked.max_tokens, asked.temperature)}
            for name, method in arms.items()
        ]
    cells = [
        [row["written by"], f"{row['tokens_per_step']:.2f}", f"{row['copied']:.1f}", f"{row['repetition']:.1f}"]
        for row in rows
    ]
    table = Table("", ("written by", "tokens per step", "in copied phrases, %", f"repetition-{_ORDER}, %"), cells)
    told = {name: value for name, value in vars(asked).items() if name not in ("phrases", "chunks")}
    report = new_report("copying", told, describe(), rows, tables=[table])
    print(report.markdown())
    if asked.json:
        report.write(asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
