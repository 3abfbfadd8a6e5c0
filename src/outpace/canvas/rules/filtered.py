"""Writing the places of which a small trained filter believes that they will not change (Learn2PD).

The filter is a perceptron with one hidden layer over what a step knows of a place; it is stored as one JSON file.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, CanvasRow, Floats
from outpace.canvas.rules.rule import Rule, eligible, surest
from outpace.canvas.table import RowTable
from outpace.errors import ConfigError

__all__ = ["FEATURES", "Filtered", "PlaceFilter", "features", "read_filter"]

FEATURES = ("confidence", "doubt", "entropy", "lead", "left", "right", "open")
_HOW = "Make one with python -m outpace.train.filter MODEL --out FILE."


@dataclass(frozen=True, slots=True, eq=False)
class PlaceFilter:
    """The weights of a filter.

    Attributes:
        hidden: [H, F + 1], the bias last.
        out: [H + 1], the bias last.
        vocab_size: of the model that it was trained with.
    """

    hidden: Floats
    out: Floats
    vocab_size: int

    def score(self, known: Floats) -> Floats:
        """Return [..., A] the probability that each place is written rightly now, of [..., A, F] features."""
        # Not as matrix products, whose sums depend on how many places there are.
        inner = np.tanh((known[..., np.newaxis, :] * self.hidden[:, :-1]).sum(-1) + self.hidden[:, -1])
        found: Floats = 1 / (1 + np.exp(-((inner * self.out[:-1]).sum(-1) + self.out[-1])))
        return found


@dataclass(frozen=True, slots=True)
class Filtered(Rule):
    """Write the places whose score reaches the threshold, and in any case the surest one.

    Attributes:
        threshold: of the filter's probability; of the confidence without a filter.
        learned: None = confidence alone, which is threshold decoding.
    """

    threshold: float
    learned: PlaceFilter | None = None

    def writes(self, reading: Reading, row: CanvasRow | RowTable, memo: Any) -> Bools:
        """Return the surest place, and all that reach the threshold."""
        del memo
        is_open = eligible(reading, row)
        score = reading.confidence if self.learned is None else self.learned.score(features(reading, row))
        return surest(score, is_open, 1) | (is_open & (score >= self.threshold))


def features(reading: Reading, row: CanvasRow | RowTable) -> Floats:
    """Return [..., A, F] what a filter knows of each place, in the order of `FEATURES`.

    The drawn token's probability, -log2 of the rest; the law's entropy in nats; how far the two likeliest lie apart;
    one over the distance to the nearest decided place on the left and on the right; the open share of the block.
    """
    sure = np.clip(reading.confidence, 0.0, 1.0)
    size = row.tokens.shape[-1]
    is_open = np.zeros((*reading.places.shape[:-1], size + 2), dtype=np.bool_)
    np.put_along_axis(is_open, np.minimum(reading.places, size + 1), True, -1)  # what is no place goes last, and off
    is_open, place = is_open[..., :-1], np.arange(size + 1)
    left = np.maximum.accumulate(np.where(is_open, -1, place), axis=-1)
    right = np.minimum.accumulate(np.where(is_open, size + 1, place)[..., ::-1], axis=-1)[..., ::-1]
    at, top = np.minimum(reading.places, size), reading.top_two
    share = reading.within(row.end).sum(-1, keepdims=True) / np.maximum(row.end - row.base, 1)
    columns = (
        sure,
        -np.log2(1 - sure + 2**-16) / 16,
        reading.entropy / 4,
        top[..., 0] - top[..., 1],
        1 / np.maximum(at - np.take_along_axis(left, at, -1), 1),
        1 / np.maximum(np.take_along_axis(right, at, -1) - at, 1),
        np.broadcast_to(share, at.shape),
    )
    return np.stack(columns, axis=-1)


@functools.lru_cache(maxsize=4)
def read_filter(path: str) -> PlaceFilter:
    """Return the filter of a file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
        hidden, out = (np.asarray(held[name], dtype=np.float64) for name in ("hidden", "out"))
        names, size = tuple(held["features"]), int(held["vocab_size"])
    except OSError as error:
        raise ConfigError(f"The filter {path} cannot be read.", _HOW) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"The filter {path} is no file of a filter.", _HOW) from error
    if names != FEATURES or hidden.ndim != 2 or hidden.shape[1] != len(FEATURES) + 1 or out.shape != (len(hidden) + 1,):
        raise ConfigError(f"The filter {path} reads other features than this version tells.", _HOW)
    if not (np.isfinite(hidden).all() and np.isfinite(out).all()):
        raise ConfigError(f"The filter {path} holds numbers that are none.", _HOW)
    return PlaceFilter(hidden, out, size)
