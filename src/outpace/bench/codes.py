"""Codes of a codebook model that stand for a topic, and how much oftener it comes when they are forced.

    python -m outpace.bench.codes runs/stories-codes --topic "dog|puppy" --data data

Codes are found in stories that the model trains on: those that are chosen where a word of the topic is about to come,
and seldom elsewhere (by the logarithm of both rates' ratio, times the former). Texts are then drawn from beginnings
that do not name the topic, without codes and with each number of the best ones forced.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, numbers, run_command
from outpace.bench.distinct import PROMPTS
from outpace.bench.held_out import text_states
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.errors import CapabilityError, ConfigError
from outpace.models.codebooks import CodedTransformer
from outpace.train.data import find_data
from outpace.train.sources import tiny_stories

__all__ = ["activity", "main", "run_codes", "topic_codes"]


def activity(target: CodedTransformer, ids: Sequence[int]) -> Tensor:
    """Return [layers, T, C] bool: which codes a model chooses at each token of a text."""
    target.seen, found = [], list[Tensor]()
    try:
        text_states(target, [*ids, ids[-1]])  # all tokens but the last are read
        for layer, codes in enumerate(target.codes):
            chosen = torch.cat(target.seen[layer :: len(target.codes)])
            found.append(torch.zeros(len(ids), len(codes), dtype=torch.bool).scatter_(1, chosen, True))
    finally:
        target.seen = None
    return torch.stack(found)


def topic_codes(lm: LanguageModel, topic: str, texts: Sequence[str]) -> list[tuple[int, int, float]]:
    """Return (layer, code, score) of all codes, those that stand for a topic first.

    Args:
        lm: a codebook model.
        topic: a regular expression; places behind which a match of it begins are of the topic.
        texts: to look in.

    Raises:
        CapabilityError: the model has no codebooks.
        ConfigError: the topic comes in no text.
    """
    if not isinstance(lm.target, CodedTransformer) or lm.tokenizer is None:
        raise CapabilityError(f"{lm.name} has no codebooks.", "Train one: outpace train stories-codes.")
    pattern = re.compile(topic)
    inside = outside = torch.zeros(len(lm.target.codes), len(lm.target.codes[0]), dtype=torch.float64)
    places = [0, 0]
    for text in texts:
        ids = lm.tokenizer.encode(text, is_special=False)[: lm.target.capabilities.max_positions - 2]
        ends = [len(lm.tokenizer.decode(ids[: at + 1])) for at in range(len(ids))]
        begins = [match.start() for match in pattern.finditer(lm.tokenizer.decode(ids))]
        is_topic = torch.tensor([any(0 <= begin - end <= 1 for begin in begins) for end in ends])
        active = activity(lm.target, ids)
        inside = inside + active[:, is_topic].sum(1)
        outside = outside + active[:, ~is_topic].sum(1)
        places = [places[0] + int(is_topic.sum()), places[1] + int((~is_topic).sum())]
    if not places[0]:
        raise ConfigError(f"No text holds {topic!r}.", "Give another topic.")
    rates = (inside + 0.5) / (places[0] + 1), (outside + 0.5) / (places[1] + 1)
    score = rates[0] * (rates[0] / rates[1]).log()
    order = score.flatten().argsort(descending=True).tolist()
    size = score.shape[1]
    return [(at // size, at % size, float(score.flatten()[at])) for at in order]


def run_codes(
    model: str, topic: str, data: Path | None, counts: Sequence[int] = (0, 1, 2, 4), texts: int = 60, seeds: int = 4
) -> Report:
    """Find the codes of a topic, force them, and count texts that hold it.

    Args:
        model: a codebook model.
        topic: a regular expression.
        data: folder of public texts, which holds the stories.
        counts: numbers of codes that are forced, the best ones.
        texts: stories to look in.
        seeds: texts per beginning.

    Raises:
        ConfigError: no text is asked for, the topic comes nowhere, or more codes than are summed.
        CapabilityError: the model has no codebooks.
    """
    if min(texts, seeds) < 1:
        raise ConfigError("No texts were asked for.", "Ask for 1 or more.")
    lm, pattern = load(model), re.compile(topic)
    stories = [story for story, _ in zip(_naming(pattern, data), range(texts), strict=False)]
    ranked = topic_codes(lm, topic, stories)
    prompts = [prompt for prompt in PROMPTS[False] if not pattern.search(prompt)]
    rows = []
    for count in counts:
        forced = "+".join(f"{layer}.{code}" for layer, code, _ in ranked[:count])
        given: dict[str, Any] = {"law": f"codes:force={forced}", "max_tokens": 60, "temperature": 0.8}
        found = [result for seed in range(seeds) for result in lm.generate(prompts, seed=seed, **given)]
        held = sum(bool(pattern.search(result.text)) for result in found)
        words = sum(len(pattern.findall(result.text)) for result in found)
        num = sum(len(result.tokens) for result in found)
        rows.append({"forced": forced, "texts": 100 * held / len(found), "matches": 100 * words / num})
    cells = [[str(row["forced"] or "none"), f"{row['texts']:.1f}", f"{row['matches']:.2f}"] for row in rows]
    heads = ("codes forced", "texts with the topic, %", "matches per 100 tokens")
    asked = {"model": model, "topic": topic, "counts": list(counts), "texts": texts, "seeds": seeds}
    return new_report("codes", asked, describe(), rows, tables=[Table("", heads, cells)])


def _naming(pattern: re.Pattern[str], data: Path | None) -> Any:
    return (story for story in tiny_stories().read(find_data(data)) if pattern.search(story))


def _work(given: argparse.Namespace) -> None:
    report = run_codes(given.model, given.topic, given.data, given.counts, given.texts, given.seeds)
    report.write(given.json)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("codes", __doc__, threads=1)
    parser.add_argument("model", help="directory of a codebook model")
    parser.add_argument("--topic", default="dog|puppy", help="a regular expression (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="folder of public texts (default: ./data)")
    parser.add_argument("--counts", type=numbers, default=[0, 1, 2, 4], help="codes forced, such as 0,1,2,4")
    parser.add_argument("--texts", type=int, default=60, help="stories to look in (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=4, help="texts per beginning (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
