"""How well given words are completed: whether they stay, how many passes a text takes, how much of a table it tells.

    python -m outpace.train.completion_quality runs/stories-insertion --set stories-words --data DATA
    python -m outpace.train.completion_quality runs/tables-skeleton --set restaurants-tables --bare --data DATA
    python -m outpace.train.completion_quality runs/paths-insertion runs/paths-decoder --set star-paths:test --data DATA

Given is what the source gives, or what the model's planner picks. A text is empty-handed where nothing was added to it.
Passes are forwards of the decoder for the text alone, so texts are written one by one.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from outpace.api.engine import LanguageModel, load
from outpace.errors import ConfigError, nearest
from outpace.failures import guarded
from outpace.models.nar.model import NarModel
from outpace.models.nar.sketch import phrases_of
from outpace.models.nar.sketched import Sketched
from outpace.models.nar.stages import matched

from .data import EOS_ID, find_data
from .keywords import SETS, table_values
from .pairs import Pair

__all__ = ["Completed", "complete", "given_phrases", "read_set", "report"]

_RULES = {"insertion": "insertion", "insertion-lm": "insertion-lm", "levenshtein": "levenshtein"}  # by kind of network
_BORDERS = (8, 16, 24, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """One text.

    Attributes:
        source, reference, text: as people read them.
        tokens: written, without the end.
        given: of them, how many were given.
        passes: forwards of the decoder.
        keeps: whether all given phrases stand in it, in order and each in one piece.
    """

    source: str
    reference: str
    text: str
    tokens: int
    given: int
    passes: int
    keeps: bool


def read_set(name: str, data: Path, count: int = 0) -> list[Pair]:
    """Return pairs of a set named SOURCE or SOURCE:SPLIT (default: valid), or `count` of them, evenly spread.

    Raises:
        ConfigError: no such set or split, or a file is missing.
    """
    source, _, split = name.partition(":")
    if source not in SETS:
        raise ConfigError(f"There is no set of given words {source!r}.", nearest(source, SETS, "set"))
    found = SETS[source].pairs(data, split or "valid")
    return [found[at * len(found) // count] for at in range(count)] if 0 < count < len(found) else found


def given_phrases(model: LanguageModel, source: list[int]) -> list[list[int]]:
    """Return the phrases that a text of this source has to hold; none for models that are given nothing."""
    target = model.target
    if not isinstance(target, NarModel) or not isinstance(net := target.net, Sketched):
        return []
    phrases, has_bar = phrases_of(source, net.starts.tolist())
    if net.planner is None or has_bar:
        return phrases
    with torch.no_grad():
        return net.planner.plan(net, target.begin([source]))[0]


def complete(
    model: LanguageModel,
    pairs: Sequence[Pair],
    method: str = "",
    most: int = 96,
    options: Mapping[str, str] | None = None,
) -> list[Completed]:
    """Write the text of each pair's source.

    Args:
        model: any that reads sources.
        pairs: sources and references.
        method: how; "" = the rule of the model's kind, else plainly.
        most: longest text, in tokens.
        options: of the method.
    """
    assert model.tokenizer is not None
    target, found = model.target, list[Completed]()
    kind = target.net.kind if isinstance(target, NarModel) else ""
    rule = method or _RULES.get(kind, "one-pass" if target.capabilities.is_one_pass else "autoregressive")
    limit = min(most, target.capabilities.max_positions - 2)
    for source, reference in pairs:
        ids = model.tokenizer.encode(source)
        phrases = given_phrases(model, ids)
        result = model.generate(ids, method=rule, options=options, max_tokens=limit)
        tokens = [token for token in result.tokens if token != EOS_ID]
        found.append(
            Completed(
                source=source,
                reference=reference,
                text=result.text,
                tokens=len(tokens),
                given=sum(map(len, phrases)),
                passes=result.usage.target_nfe,
                keeps=_keeps(model, phrases, tokens, result.text),
            )
        )
    return found


def _keeps(model: LanguageModel, phrases: Sequence[list[int]], tokens: Sequence[int], text: str) -> bool:
    """Return whether phrases stand among the tokens, and as whole words in the text unless a planner picked pieces."""
    assert model.tokenizer is not None
    target = model.target
    if isinstance(target, NarModel) and isinstance(target.net, Sketched) and target.net.planner is None:
        words = (re.escape(model.tokenizer.decode(phrase)) for phrase in phrases)
        if not re.search(".*".join(rf"(?<!\w){word}(?!\w)" for word in words), text, re.DOTALL):
            return False
    return matched(phrases, tokens) is not None


def report(texts: Sequence[Completed]) -> list[str]:
    """Return lines of Markdown: all texts in one row, then by their length."""
    count = len(texts)
    kept, empty = sum(one.keeps for one in texts), sum(one.tokens == one.given for one in texts)
    same = sum(one.text.split() == one.reference.split() for one in texts)
    tokens, passes = (sum(getattr(one, name) for one in texts) / count for name in ("tokens", "passes"))
    told = [value.lower() in one.text.lower() for one in texts for value in table_values(one.source)]
    covered = f"{sum(told) / len(told):.1%}" if told else "-"
    lines = [
        "| texts | all given kept | empty-handed | as reference | tokens | passes | values told |",
        "|--:|--:|--:|--:|--:|--:|--:|",
        f"| {count} | {kept / count:.1%} | {empty / count:.1%} | {same / count:.1%} "
        f"| {tokens:.1f} | {passes:.2f} | {covered} |",
        "",
        "| tokens | texts | mean passes | mean tokens | log2(tokens) + 1 |",
        "|---|--:|--:|--:|--:|",
    ]
    for low, high in zip((0, *_BORDERS), (*_BORDERS, 1 << 30), strict=True):
        part = [one for one in texts if low < one.tokens <= high]
        if part:
            size, turns = (sum(getattr(one, name) for one in part) / len(part) for name in ("tokens", "passes"))
            name = f"{low + 1} to {high}" if high < 1 << 30 else f"over {low}"
            lines.append(f"| {name} | {len(part)} | {turns:.2f} | {size:.1f} | {math.log2(size) + 1:.2f} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure models on a set, and print tables and a few texts."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.completion_quality")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--set", default="stories-words", help=f"one of {', '.join(SETS)}, and a split behind a colon")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=300, help="texts; 0 = all")
    parser.add_argument("--method", default="")
    parser.add_argument("--option", action="append", default=[], help="KEY=VALUE, of the method (repeatable)")
    parser.add_argument("--bare", action="store_true", help="give nothing, whatever the model's planner says")
    parser.add_argument("--show", type=int, default=5, help="texts printed")
    options = parser.parse_args(arguments)
    pairs = read_set(options.set, find_data(options.data), options.count)
    pairs = [(f"{source}||", text) for source, text in pairs] if options.bare else pairs
    for name in options.models:
        given = dict(option.split("=", 1) for option in options.option)
        texts = complete(load(name), pairs, options.method, options=given)
        print("\n".join([f"## {name}, {options.set}{', nothing given' * options.bare}", "", *report(texts), ""]))
        for one in texts[: options.show]:
            print(f"- {one.source!r}: {one.text!r} ({one.passes} passes)")
        print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
