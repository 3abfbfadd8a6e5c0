"""Samplers and caches on canvases: quality against parallelism, as curves with the area under them.

    outpace bench --canvas docs/results/diffusion

Every point is one model, one sampler at one setting, one cache, on one set: quality (task accuracy; or likelihood under
the causal model and entropy of what was written) beside tokens per forward, positions scored and seconds per token.
Tokens after the end of text are never written, so never counted. The causal model stands on the same axes, plain and
drafted for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from outpace.api.engine import LanguageModel
from outpace.api.result import Result
from outpace.bench.prompts import read_prompts
from outpace.errors import ConfigError
from outpace.tasks import TASKS, Example, score, test_examples

__all__ = [
    "Set",
    "Sweep",
    "SweepPoint",
    "area",
    "likelihood",
    "measure",
    "spell",
    "stories",
    "task_set",
    "values_of",
]

_LONG = ("countdown-3", "countdown-4", "sudoku")  # tasks whose answers take more than 32 tokens


@dataclass(frozen=True, slots=True)
class Sweep:
    """One sampler under one cache, over a range of its settings.

    Attributes:
        name: as tables show it.
        model: which model it runs on.
        method: name of the method.
        settings: one mapping per point of the curve.
    """

    name: str
    model: str
    method: str
    settings: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Set:
    """What is written.

    Attributes:
        name: of the task, or "stories".
        prompts: texts to continue.
        examples: the tasks behind the prompts, in the same order; empty = open-ended text.
        max_tokens: most tokens per text.
        temperature: of sampling.
    """

    name: str
    prompts: tuple[str, ...]
    examples: tuple[Example, ...] = ()
    max_tokens: int = 64
    temperature: float = 0.0


@dataclass(slots=True)
class SweepPoint:
    """One measured setting.

    Attributes:
        arm, model, method, set: which.
        settings: the method's.
        quality: share of tasks solved, or for open-ended text the likelihood per token, exp(-nll), under the judge.
        nll: nats per token under the judge, for open-ended text; else 0.
        entropy: of the written tokens' frequencies within a text, in nats, mean over texts.
        tokens: tokens written, the end token included.
        forwards, positions: of the target, prefill included.
        draft_forwards: of other models.
        seconds: of decoding, prefill included.
    """

    arm: str
    model: str
    method: str
    set: str
    settings: dict[str, Any]
    quality: float
    nll: float
    entropy: float
    tokens: int
    forwards: int
    positions: int
    draft_forwards: int
    seconds: float
    texts: list[str] = field(default_factory=list)

    @property
    def tokens_per_forward(self) -> float:
        """Tokens written per forward of the target."""
        return self.tokens / self.forwards if self.forwards else 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SweepPoint:
        """Return the point that `to_dict` told, but for its texts."""
        names = {item.name for item in dataclasses.fields(cls)} - {"texts"}
        return cls(**{name: values[name] for name in names}, texts=[values["sample"]])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            **{key: value for key, value in dataclasses.asdict(self).items() if key != "texts"},
            "tokens_per_forward": self.tokens_per_forward,
            "positions_per_token": self.positions / max(self.tokens, 1),
            "ms_per_token": 1e3 * self.seconds / max(self.tokens, 1),
            "sample": self.texts[0] if self.texts else "",
        }


def values_of(name: str, values: Sequence[Any], **fixed: Any) -> tuple[Mapping[str, Any], ...]:
    """Return one mapping of settings per value of one of them."""
    return tuple({**fixed, name: value} for value in values)


def measure(
    sweeps: Sequence[Sweep],
    sets: Sequence[Set],
    models: Mapping[str, LanguageModel],
    judge: LanguageModel | None,
    tell: Callable[[str], None] = lambda text: None,
    repeats: int = 1,
) -> Iterator[SweepPoint]:
    """Yield one point per sweep, setting and set; texts of a set are written one by one, as at batch 1.

    Args:
        sweeps, sets: what is measured.
        models: by the names that sweeps use.
        judge: whose likelihood open-ended text is judged by.
        tell: called with sentences on the progress.
        repeats: times are the least of this many runs.
    """
    for item, sweep in itertools.product(sets, sweeps):
        for settings in sweep.settings:
            lm = models[sweep.model]
            results, seconds = _written(lm, item, sweep, settings)
            for _ in range(repeats - 1):
                seconds = min(seconds, _written(lm, item, sweep, settings)[1])
            point = _point(sweep, item, settings, results, seconds, judge)
            tell(f"{item.name}: {sweep.name} {dict(settings)}: {point.quality:.3f} at {point.tokens_per_forward:.2f}")
            yield point


def _written(lm: LanguageModel, item: Set, sweep: Sweep, settings: Mapping[str, Any]) -> tuple[list[Result], float]:
    began = time.perf_counter()
    results = [
        lm.generate(
            [*lm.end_tokens[:1], *lm.encode(prompt)],  # as the texts stood in training: behind the end of another one
            method=sweep.method,
            options=dict(settings),
            max_tokens=item.max_tokens,
            temperature=item.temperature,
            seed=index,
            stop=["\n"] if item.examples and _is_one_line(item) else (),
        )
        for index, prompt in enumerate(item.prompts)
    ]
    return results, time.perf_counter() - began


def _is_one_line(item: Set) -> bool:
    return all(example.answer.strip().count("\n") == 0 for example in item.examples)


def _point(
    sweep: Sweep,
    item: Set,
    settings: Mapping[str, Any],
    results: list[Result],
    seconds: float,
    judge: LanguageModel | None,
) -> SweepPoint:
    texts, nll = [result.text for result in results], 0.0
    if item.examples:
        quality = statistics.mean(score(example, text) for example, text in zip(item.examples, texts, strict=True))
    else:
        nll = likelihood(judge, results) if judge is not None else math.nan
        quality = math.exp(-nll)
    return SweepPoint(
        arm=sweep.name,
        model=sweep.model,
        method=sweep.method,
        set=item.name,
        settings=dict(settings),
        quality=quality,
        nll=nll,
        entropy=statistics.mean(_entropy(result.tokens) for result in results),
        tokens=sum(len(result.tokens) for result in results),
        forwards=sum(result.usage.target_nfe for result in results),
        positions=sum(result.usage.positions_scored for result in results),
        draft_forwards=sum(result.usage.draft_nfe for result in results),
        seconds=seconds,
        texts=texts,
    )


def likelihood(judge: LanguageModel, results: Sequence[Result]) -> float:
    """Return the nats per written token that a causal model gives the texts, prompts known, over all texts."""
    total, count = 0.0, 0
    for result in results:
        ids = result.prompt_tokens + result.tokens
        if not result.tokens:
            continue
        tokens = torch.tensor([ids])
        cache = judge.target.new_cache(1, len(ids) + 1)
        scores = judge.target.score(tokens, torch.arange(len(ids)).unsqueeze(0), None, cache)
        laws = scores.logits[0, len(result.prompt_tokens) - 1 : -1].double().log_softmax(-1)
        written = torch.tensor(result.tokens)
        total -= float(laws.gather(-1, written.unsqueeze(-1)).sum())
        count += len(result.tokens)
    return total / max(count, 1)


def _entropy(tokens: Sequence[int]) -> float:
    """Return the entropy of a text's token frequencies, in nats: low where it repeats itself."""
    total = len(tokens)
    return -sum(n / total * math.log(n / total) for n in Counter(tokens).values()) if total else 0.0


def area(points: Sequence[SweepPoint], most: float = 8.0) -> float:
    """Return the area under quality over tokens per forward, from 1 to `most`, divided by the width.

    Quality between points is linear; beyond the last point it is 0, since nothing was written as fast. Follows the idea
    of AUP (accuracy under parallelism, Hao AI Lab 2025), without its weights.
    """
    best: dict[float, float] = {}
    for point in points:
        at = max(1.0, point.tokens_per_forward)
        best[at] = max(best.get(at, 0.0), point.quality)
    places = sorted(best)
    if not places:
        return 0.0
    total = 0.0 if places[0] > most else best[places[0]] * (min(places[0], most) - 1)
    for left, right in itertools.pairwise(places):
        if left >= most:
            break
        stop = min(right, most)
        high = best[left] + (best[right] - best[left]) * (stop - left) / (right - left)
        total += (best[left] + high) / 2 * (stop - left)
    return total / (most - 1)


def stories(num: int, max_tokens: int, temperature: float = 0.0) -> Set:
    """Return the first `num` of the shipped story prompts."""
    prompts = [prompt.text for prompt in read_prompts("stories", num)]
    return Set("stories", tuple(prompts), (), max_tokens, temperature)


def task_set(name: str, num: int) -> Set:
    """Return the first held-out examples of a task, as prompts to continue.

    Raises:
        ConfigError: there is no such task.
    """
    if name not in TASKS:
        raise ConfigError(f"There is no task {name!r}.", f"Tasks: {', '.join(TASKS)}.")
    examples = tuple(test_examples(name, num))
    return Set(name, tuple(example.prompt for example in examples), examples, 48 if name in _LONG else 32)


def spell(settings: Mapping[str, Any]) -> str:
    """Return settings in words."""
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "defaults"
