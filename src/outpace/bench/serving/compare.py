"""Sides that answer the same requests in turns: methods of one server, or other servers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outpace.bench.serving.load import Load, run_load
from outpace.bench.serving.traffic import make_traffic, with_method
from outpace.bench.stats import ratio_of_pairs
from outpace.text.tokenizer import Tokenizer

__all__ = ["Side", "measure_sides", "summarise_sides"]


@dataclass(frozen=True, slots=True)
class Side:
    """Who answers.

    Attributes:
        name: shown.
        url: of the server.
        model: as the server calls it.
        method: asked of our server; "" = none is named.
        streams: answers are streamed; peers that tell no usage in a stream are measured without.
    """

    name: str
    url: str
    model: str
    method: str = ""
    streams: bool = True


def measure_sides(
    sides: Sequence[Side],
    *,
    clients: int,
    rounds: int,
    requests: int,
    mix: Sequence[str],
    tokenizer: Tokenizer | None,
    max_tokens: int,
) -> dict[str, list[Load]]:
    """Return each side's loads, one per round; all sides answer a round's requests, in an order that turns.

    A round of its own, that is not counted, warms up.

    Args:
        sides: at least one.
        clients: side by side.
        rounds: counted ones.
        requests: per round.
        mix, tokenizer, max_tokens: as `make_traffic` takes them.
    """
    found: dict[str, list[Load]] = {side.name: [] for side in sides}
    for number in range(rounds + 1):
        bodies = make_traffic(mix, tokenizer, requests if number else clients, max_tokens, seed=number)
        turn = number % len(sides)
        for side in [*sides[turn:], *sides[:turn]]:
            asked = [with_method(body, side.method) for body in bodies]
            load = run_load(side.url, side.model, asked, clients, streams=side.streams)
            if number:
                found[side.name].append(load)
    return found


def summarise_sides(loads: Mapping[str, Sequence[Load]], clients: int) -> list[dict[str, Any]]:
    """Return a row per side: medians over rounds, and ratios to the first side, pair by pair of rounds."""
    reference = next(iter(loads))
    rows = []
    for name, own in loads.items():
        first = loads[reference]
        row: dict[str, Any] = {"side": name, "clients": clients, "rounds": len(own)}
        row["tokens_per_s"] = statistics.median(load.tokens_per_s for load in own)
        row["requests_per_s"] = statistics.median(load.requests_per_s for load in own)
        figures = [load.figures() for load in own]
        row |= {key: _known(statistics.median(figure[key] for figure in figures)) for key in figures[0]}
        row["reference"] = None if name == reference else reference
        for key in ("tokens_per_s", "requests_per_s"):
            pairs = {
                str(at): [getattr(a, key) / getattr(b, key)] for at, (a, b) in enumerate(zip(own, first, strict=True))
            }
            found = None if name == reference else ratio_of_pairs(pairs)
            row[f"{key}_ratio"] = found and {"median": found.median, "low": found.low, "high": found.high}
        texts = [[answer.text for answer in load.answers] for load in own]
        others = [[answer.text for answer in load.answers] for load in first]
        row["equal"] = sum(
            a == b for mine, theirs in zip(texts, others, strict=True) for a, b in zip(mine, theirs, strict=True)
        )
        row["compared"] = sum(map(len, texts))
        rows.append(row)
    return rows


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
