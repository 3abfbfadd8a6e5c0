"""Translate while the source is still coming: each prefix anew in one pass, each anew token by token, and wait-k.

    python -m outpace.bench.simultaneous runs/nar-ctc --teacher runs/captions-teacher --set multi30k:test:en-de

Words come one at a time. Re-translation writes the whole text again after each (by the one-pass model, which is FReTNA,
or by the teacher); wait-k reads k words, then writes one for each word read, and takes nothing back, though its last
word may still get an ending. Words of a text are words and marks as BLEU counts them.

Sides take turns, sentence by sentence. Their time is all that they spend on it, encoder included, with the models
themselves: no side goes through the loop, unless --method names a rule for the one-pass model. Beside it stands the
time of the processor, all threads together, which a busy machine does not stretch.

Papers: re-translation in one pass: Han et al. (2020), arXiv 2012.14681; wait-k and average lagging: Ma et al. (2019),
arXiv 1810.08398, section 3 and equation 9; normalised erasure, and when a word that may change counts as said:
Arivazhagan et al. (2020), arXiv 2004.03643, section 2.2.
Differences: models are trained on whole sentences, so wait-k is their test-time wait-k, and no prefix was trained on.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, numbers, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Table, new_report
from outpace.errors import ConfigError
from outpace.models.one_pass import OnePassModel
from outpace.papers import Paper
from outpace.train.bleu import SIGNATURE, bleu, tokenise
from outpace.train.data import find_data
from outpace.train.translation_quality import read_set

__all__ = ["PAPERS", "Trace", "average_lagging", "delays", "erasure", "main", "measure", "retranslate", "wait_k"]

PAPERS = (
    Paper(
        "Faster Re-translation Using Non-Autoregressive Model For Simultaneous Neural Machine Translation",
        "Han et al.",
        2020,
        "2012.14681",
        36,
        "Training on prefixes.",
        "python -m outpace.bench.simultaneous runs/nar-ctc --teacher runs/captions-teacher",
    ),
)
WARM = 2  # sentences that are not counted


@dataclass(frozen=True, slots=True)
class Trace:
    """What a side said of one sentence while its words came.

    Attributes:
        said: after each source word, the words of the text as it then stood.
        text: the last one.
        seconds, cpu_seconds: that it took in all, on the wall and of the processor.
    """

    said: list[list[str]]
    text: str
    seconds: float
    cpu_seconds: float


Side = Callable[[Sequence[str]], Trace]


def retranslate(lm: LanguageModel, method: str = "", max_tokens: int = 96) -> Side:
    """Return a side that translates every prefix anew, with a method of the loop where one is named."""

    def text(source: str) -> str:
        if method:
            found: str = lm.generate(source, method=method, max_tokens=max_tokens).text
            return found
        if isinstance(lm.target, OnePassModel):
            return _text(lm, _whole(lm.target, lm.encode(source), lm.end_tokens, max_tokens))
        return _text(lm, _continued(lm, source, [], max_tokens, max_tokens))

    def run(words: Sequence[str]) -> Trace:
        prefixes = [" ".join(words[: read + 1]) for read in range(len(words))]
        clock = _Clock()
        texts = [text(prefix) for prefix in prefixes]
        return Trace([tokenise(text) for text in texts], texts[-1], *clock.passed())

    return run


class _Clock:
    """Seconds that pass on the wall and on the processor."""

    def __init__(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def passed(self) -> tuple[float, float]:
        return time.perf_counter() - self.began[0], time.process_time() - self.began[1]


@torch.no_grad()
def _whole(model: OnePassModel, source: list[int], ends: Sequence[int], most: int) -> list[int]:
    tokens = model.write([source])[0].argmax(-1).tolist()[:most]
    return tokens[: next((at for at, token in enumerate(tokens) if token in ends), len(tokens))]


def wait_k(lm: LanguageModel, lag: int, max_tokens: int = 96) -> Side:
    """Return a side that stays `lag` words behind its source, and writes the rest when the source has ended."""

    def run(words: Sequence[str]) -> Trace:
        clock, tokens, said = _Clock(), list[int](), list[list[int]]()
        for read in range(1, len(words) + 1):
            is_over = read == len(words)
            if is_over or read >= lag:
                wanted = max_tokens if is_over else read - lag + 1
                tokens = _continued(lm, " ".join(words[:read]), tokens, wanted, max_tokens)
            said.append(list(tokens))
        passed = clock.passed()
        return Trace([tokenise(_text(lm, one)) for one in said], _text(lm, tokens), *passed)

    return run


@torch.no_grad()
def _continued(lm: LanguageModel, source: str, tokens: list[int], wanted: int, max_tokens: int) -> list[int]:
    """Return tokens followed by the likeliest ones, until there are so many whole words, or the model ends."""
    target, end = lm.target, lm.end_tokens
    assert target.start_token is not None
    cache = target.new_cache(1, max_tokens + 2)
    target.encode([lm.encode(source)], cache)
    written, new = list(tokens), [target.start_token, *tokens]
    while len(written) < max_tokens:
        first = len(written) + 1 - len(new)
        position = torch.arange(first, first + len(new), device=target.device)[None]
        ids = torch.tensor([new], device=target.device)
        ask = torch.tensor([[len(new) - 1]], device=target.device)
        token = int(target.score(ids, position, None, cache, ask).logits[0, 0].argmax())
        # A word is whole once another one begins behind it.
        if token in end or len(tokenise(_text(lm, [*written, token]))) > wanted:
            break
        cache.keep([range(len(new))])
        written.append(token)
        new = [token]
    return written


def _text(lm: LanguageModel, tokens: Sequence[int]) -> str:
    assert lm.tokenizer is not None
    return lm.tokenizer.decode(list(tokens))


def delays(said: Sequence[Sequence[str]]) -> list[int]:
    """Return per word of the last text how many source words had been read when it and all before it stood for good."""
    last = list(said[-1])
    stands = [_common(text, last) for text in said]
    # What stands now counts only as far as it stands from now on.
    for at in range(len(stands) - 2, -1, -1):
        stands[at] = min(stands[at], stands[at + 1])
    return [next(at + 1 for at, count in enumerate(stands) if count > word) for word in range(len(last))]


def average_lagging(delay: Sequence[int], source_words: int) -> float:
    """Return how many source words a text lags behind a translator that writes evenly with its source.

    Args:
        delay: per word of the text, source words that had been read.
        source_words: of the sentence.
    """
    if not delay:
        return float(source_words)
    rate = len(delay) / source_words
    cut = next((at for at, read in enumerate(delay) if read >= source_words), len(delay) - 1) + 1
    return sum(read - at / rate for at, read in enumerate(delay[:cut])) / cut


def erasure(said: Sequence[Sequence[str]]) -> float:
    """Return how many words were taken back for each word of the last text."""
    gone = sum(len(a) - _common(a, b) for a, b in itertools.pairwise(said))
    return gone / max(1, len(said[-1]))


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    return same


def measure(sides: Mapping[str, Side], pairs: Sequence[tuple[str, str]], warm: int = WARM) -> list[dict[str, Any]]:
    """Let all sides translate all sentences in turns; return one object per side.

    Args:
        sides: by name.
        pairs: sources and references; a source without a word is left out.
        warm: first sentences that are not counted.
    """
    heard = [(source.split(), reference) for source, reference in pairs if source.split()]
    traces: dict[str, list[Trace]] = {name: [] for name in sides}
    for words, _ in heard:
        for name, side in sides.items():
            traces[name].append(side(words))
    counted, found = heard[warm:], list[dict[str, Any]]()
    for name, all_traces in traces.items():
        kept = all_traces[warm:]
        lags = [average_lagging(delays(one.said), len(words)) for (words, _), one in zip(counted, kept, strict=True)]
        found.append(
            {
                "side": name,
                "sentences": len(kept),
                "seconds": sum(one.seconds for one in kept),
                "cpu_seconds": sum(one.cpu_seconds for one in kept),
                "bleu": bleu([one.text for one in kept], [reference for _, reference in counted]),
                "average_lagging": sum(lags) / len(lags),
                "erasure": sum(erasure(one.said) for one in kept) / len(kept),
            }
        )
    return found


_COLUMNS = ("side", "ms a sentence", "of the processor", "x the first's", "final BLEU", "average lagging", "erasure")


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    first = rows[0]["cpu_seconds"]
    cells = [
        [
            row["side"],
            f"{1000 * row['seconds'] / row['sentences']:.1f}",
            f"{1000 * row['cpu_seconds'] / row['sentences']:.1f}",
            f"{row['cpu_seconds'] / first:.2f}",
            f"{row['bleu']:.2f}",
            f"{row['average_lagging']:.2f}",
            f"{row['erasure']:.2f}",
        ]
        for row in rows
    ]
    return Table("", _COLUMNS, cells, left=1)


def _sides(given: argparse.Namespace) -> dict[str, Side]:
    fast, slow = load(given.model), load(given.teacher)
    for lm, name, is_one_pass in ((fast, given.model, True), (slow, given.teacher, False)):
        offered = lm.target.capabilities
        if offered.is_one_pass != is_one_pass or not offered.is_encoder_decoder:
            kind = "writes in one pass" if is_one_pass else "is an encoder-decoder that writes token by token"
            raise ConfigError(f"{name} is no model that {kind}.", "Name the one-pass model first, then --teacher.")
    sides = {"one pass, anew": retranslate(fast, given.method), "teacher, anew": retranslate(slow)}
    return sides | {f"teacher, wait-{lag}": wait_k(slow, lag) for lag in given.wait}


def _work(given: argparse.Namespace) -> None:
    if min(given.sentences, *given.wait) < 1:
        raise ConfigError("Sentences and words to wait for are counted from 1.", "Give 1 or more.")
    sides = _sides(given)
    rows = measure(sides, read_set(given.set, find_data(given.data), given.sentences + WARM))
    table = _table(rows)
    notes = [f"BLEU: {SIGNATURE}. Lagging in source words; erasure: words taken back for each word of the last text."]
    print(table.markdown(), "", *notes, sep="\n")
    told = vars(given) | {"model": Path(given.model).name, "teacher": Path(given.teacher).name, "data": ""}
    new_report("simultaneous", told, describe(), rows, tables=[table], notes=notes).write(given.json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("simultaneous", __doc__)
    parser.add_argument("model", help="a one-pass translator: zoo name or directory")
    parser.add_argument("--teacher", default="translate", help="a translator that writes token by token")
    parser.add_argument("--method", default="", help="a rule for the one-pass model (default: its likeliest text)")
    parser.add_argument("--set", default="multi30k:test:en-de", help="source:split:direction")
    parser.add_argument("--sentences", type=int, default=100, help="counted ones")
    parser.add_argument("--wait", type=numbers, default=[1, 3, 5], help="k of wait-k, comma-separated")
    parser.add_argument("--data", type=Path, help="folder of texts (default: ./data)")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
