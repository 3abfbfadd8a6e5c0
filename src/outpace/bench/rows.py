"""From single generations to table rows: medians, ratios of pairs, shares of time, and an exactness line for each."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from outpace.bench.arms import PLAIN, Arm, OurArm, Request, Sample
from outpace.bench.engines import OTHER_TEXT
from outpace.bench.options import BenchOptions
from outpace.bench.prompts import Prompt
from outpace.bench.stats import copied_share, ratio_of_pairs, repeated_share
from outpace.types import Guarantee

__all__ = ["REPETITIVE", "Record", "make_rows"]

REPETITIVE = 0.2  # prompts whose plain output repeats itself more than this are left out of a second ratio
_PEER_MODES = ("plain", "prompt-lookup", "assisted")
_PHASES = ("draft", "score", "accept", "other")
_FLIPS_TOLD = 8


@dataclass(frozen=True, slots=True)
class Record:
    """One generation: who, on what, and what was measured."""

    arm: str
    set: str
    prompt: str
    temperature: float
    repeat: int
    sample: Sample

    @property
    def place(self) -> tuple[str, str, float]:
        """What was asked, whoever answered."""
        return self.set, self.prompt, self.temperature

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; the tokens of the first repetition alone, to keep files small."""
        values = asdict(self)
        if self.repeat:
            del values["sample"]["tokens"]
        return values


class _Table:
    """The records by arm and place, and what the arms are compared with."""

    def __init__(self, records: Sequence[Record], tasks: dict[Prompt, list[int]]) -> None:
        self.by_arm: dict[str, dict[tuple[str, str, float], list[Sample]]] = {}
        for record in records:
            self.by_arm.setdefault(record.arm, {}).setdefault(record.place, []).append(record.sample)
        self.ids = {(prompt.set, prompt.id): ids for prompt, ids in tasks.items()}

    def samples(self, arm: str, place: tuple[str, str, float]) -> list[Sample]:
        return self.by_arm.get(arm, {}).get(place, [])

    def ratio(self, arm: str, other: str, places: Sequence[tuple[str, str, float]], seed: int) -> dict[str, Any] | None:
        """Return the ratio of speeds, arm over other, over pairs of the same prompt and repetition."""
        pairs = {}
        for place in places:
            both = zip(self.samples(arm, place), self.samples(other, place), strict=False)
            pairs[place[1]] = [ours.rate / theirs.rate for ours, theirs in both if ours.rate and theirs.rate]
        found = ratio_of_pairs(pairs, seed)
        return None if found is None else asdict(found)


def make_rows(
    records: Sequence[Record],
    arms: Sequence[Arm],
    tasks: dict[Prompt, list[int]],
    options: BenchOptions,
    end_tokens: Sequence[int],
) -> list[dict[str, Any]]:
    """Return one row per temperature, set and arm."""
    table = _Table(records, tasks)
    plain = next(arm.name for arm in arms if arm.method == PLAIN)
    rows = []
    for temperature in options.temperatures:
        for name in dict.fromkeys(prompt.set for prompt in tasks):
            places = [place for place in table.by_arm.get(plain, {}) if place[0] == name and place[2] == temperature]
            if not places:
                continue
            calm = [place for place in places if not _is_repetitive(table.samples(plain, place))]
            found = [_row(table, arm, arms, places, calm, options, end_tokens) for arm in arms]
            _compare(found, table, arms, places, options.seed)
            rows += found
    return rows


def _compare(
    rows: Sequence[dict[str, Any]],
    table: _Table,
    arms: Sequence[Arm],
    places: Sequence[tuple[str, str, float]],
    seed: int,
) -> None:
    """Add ratios to the fastest plain mode and the fastest mode of any peer in the precision of our own arms."""
    own = {arm.name for arm in arms if isinstance(arm, OurArm)}
    peers = [row for row in rows if row["arm"] not in own and not row["precision"] and row["method"] in _PEER_MODES]
    plain = [row for row in peers if row["method"] == "plain"]
    for name, among in (("best_plain", plain), ("best_peer", peers)):
        best = max(among, key=lambda row: float(row["tokens_per_s"]), default=None)
        for row in rows:
            row[name] = best["arm"] if best else None
            row[f"ratio_{name}"] = table.ratio(row["arm"], best["arm"], places, seed) if best else None


def _is_repetitive(samples: Sequence[Sample]) -> bool:
    return repeated_share(samples[0].tokens) > REPETITIVE


def _row(
    table: _Table,
    arm: Arm,
    arms: Sequence[Arm],
    places: Sequence[tuple[str, str, float]],
    calm: Sequence[tuple[str, str, float]],
    options: BenchOptions,
    end_tokens: Sequence[int],
) -> dict[str, Any]:
    name, _, temperature = places[0]
    groups = [table.samples(arm.name, place) for place in places]
    samples = [sample for group in groups for sample in group]
    rates = [statistics.median(timed) for group in groups if (timed := [s.rate for s in group if s.rate])]
    rate = statistics.median(rates) if rates else 0.0
    seconds = sum(sample.decode_s for sample in samples)
    known = {other.name for other in arms}
    counterpart = arm.counterpart if arm.counterpart in known else ""
    return {
        "arm": arm.name,
        "method": arm.method,
        "path": arm.path,
        "precision": arm.precision,
        "set": name,
        "temperature": temperature,
        "prompts": len(places),
        "repetitive_prompts": len(places) - len(calm),
        "tokens_per_s": rate,
        "ms_per_token": 1e3 / rate if rate else None,
        "total_tokens_per_s": sum(sample.num_decoded for sample in samples) / seconds if seconds else None,
        "prefill_ms": 1e3 * statistics.median(sample.prefill_s for sample in samples),
        "ratio_plain": table.ratio(arm.name, arm.baseline, places, options.seed),
        "ratio_plain_calm": table.ratio(arm.name, arm.baseline, calm, options.seed),
        "ratio_peer_plain": table.ratio(arm.name, "hf:plain", places, options.seed) if "hf:plain" in known else None,
        "ratio_counterpart": table.ratio(arm.name, counterpart, places, options.seed) if counterpart else None,
        "counterpart": counterpart or None,
        **_work(samples),
        "repeated_8gram_share": statistics.mean(repeated_share(group[0].tokens) for group in groups),
        "copied_8gram_share": statistics.mean(
            copied_share(table.ids[place[:2]], group[0].tokens) for place, group in zip(places, groups, strict=True)
        ),
        "finish": dict(Counter(group[0].finish for group in groups)),
        "exactness": _exactness(table, arm, arms[0], places, options, end_tokens),
    }


def _work(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return tokens per forward, positions per token, acceptance and shares of time, over all samples."""
    tokens = sum(len(sample.tokens) for sample in samples)
    forwards = sum(sample.forwards for sample in samples)
    positions, proposed = sum(s.positions for s in samples), sum(s.proposed for s in samples)
    spent = {phase: sum(sample.phases.get(phase, 0.0) for sample in samples) for phase in _PHASES}
    whole = sum(spent.values())
    return {
        "tokens_per_forward": tokens / forwards if forwards else None,
        "positions_per_token": positions / tokens if positions and tokens else None,
        "positions_scored": positions or None,
        "accepted_per_step": sum(s.accepted for s in samples) / forwards if forwards else None,
        "accepted_share": sum(s.accepted for s in samples) / proposed if proposed else None,
        "time_shares": {phase: value / whole for phase, value in spent.items()} if whole else None,
    }


def _exactness(
    table: _Table,
    arm: Arm,
    ours: Arm,
    places: Sequence[tuple[str, str, float]],
    options: BenchOptions,
    end_tokens: Sequence[int],
) -> dict[str, Any]:
    """Compare an arm's tokens with its plain baseline's; for ours, each flip with its margin.

    A peer's plain mode says for how many tokens it agrees with `ours`, the first arm: the same weights were converted.
    """
    note = OTHER_TEXT if arm.precision else ""
    if not isinstance(arm, OurArm) and places[0][2] > 0:
        note = note or "other random numbers"
    if isinstance(arm, OurArm) and places[0][2] > 0 and arm.settings.guarantee is Guarantee.DISTRIBUTION:
        note = "same law, other tokens"
    if not table.samples(arm.baseline, places[0]):
        note = note or "its plain mode was left out"
    if note and arm.name != arm.baseline:
        return {"reference": None, "equal": None, "of": len(places), "flips": [], "note": note}
    if arm.name == arm.baseline:
        found: dict[str, Any] = {"reference": None, "equal": len(places), "of": len(places), "flips": []}
        return found if isinstance(arm, OurArm) or note else {**found, "agrees": _agrees(table, arm, ours, places)}
    flips: list[dict[str, Any]] = []
    for place in places:
        tokens = table.samples(arm.name, place)[0].tokens
        plain = table.samples(arm.baseline, place)[0].tokens
        if tokens != plain:
            at = _common(tokens, plain)
            flip: dict[str, Any] = {"prompt": place[1], "at": at, "margin": None}
            if isinstance(arm, OurArm) and len(flips) < _FLIPS_TOLD:
                flip["margin"] = _margin(arm, table.ids[place[:2]], place[2], at, options, end_tokens)
            flips.append(flip)
    equal = len(places) - len(flips)
    return {"reference": arm.baseline, "equal": equal, "of": len(places), "flips": flips}


def _agrees(table: _Table, arm: Arm, ours: Arm, places: Sequence[tuple[str, str, float]]) -> float | None:
    """Return the median number of leading tokens that an arm shares with ours."""
    if not isinstance(ours, OurArm):
        return None
    pairs = [(table.samples(arm.name, place)[0], table.samples(ours.name, place)[0]) for place in places]
    return statistics.median(_common(theirs.tokens, own.tokens) for theirs, own in pairs)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _margin(
    arm: OurArm, ids: Sequence[int], temperature: float, at: int, options: BenchOptions, end_tokens: Sequence[int]
) -> float | None:
    """Return how close the plain decision was at a flip, from an untimed plain run on the same path."""
    from outpace.methods.autoregressive import Autoregressive

    plain = OurArm(arm.lm, Autoregressive(), arm.path, PLAIN)
    margins = plain.margins(Request(tuple(ids), options.max_tokens, temperature, options.seed, tuple(end_tokens)))
    return margins[at] if at < len(margins) else None
