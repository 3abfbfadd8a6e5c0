"""A small classifier that reads an unfinished canvas: how likely is it that the text will have an attribute?

It is logistic in the tokens that are decided, so what any token at an open place would make of it is known for all
tokens at once. It is stored as one JSON file.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from outpace.canvas.row import Floats, Ids
from outpace.errors import ConfigError

__all__ = ["TextClassifier", "read_classifier"]

_HOW = "Make one with python -m outpace.train.classifier MODEL --data DATA --about PATTERN --out FILE."


@dataclass(frozen=True, slots=True, eq=False)
class TextClassifier:
    """p(attribute | decided tokens) = sigmoid(bias + sum of their weights).

    Attributes:
        bias: log-odds of a text of which nothing is decided.
        weights: [V].
    """

    bias: float
    weights: Floats

    def log_odds(self, tokens: Ids) -> float:
        """Return the log-odds of the attribute, given the decided tokens [N]."""
        return float(self.bias + self.weights[tokens].sum())

    def log_chances(self, tokens: Ids) -> Floats:
        """Return [V] the log-probability of the attribute once each token stands at one open place too."""
        found: Floats = -np.logaddexp(0.0, -(self.log_odds(tokens) + self.weights))
        return found


@functools.lru_cache(maxsize=4)
def read_classifier(path: str) -> TextClassifier:
    """Return the classifier of a file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
        bias, weights = float(held["bias"]), np.asarray(held["weights"], dtype=np.float64)
    except OSError as error:
        raise ConfigError(f"The classifier {path} cannot be read.", _HOW) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"The file {path} is no classifier of texts.", _HOW) from error
    if weights.ndim != 1 or not np.isfinite(weights).all() or not np.isfinite(bias):
        raise ConfigError(f"The classifier {path} holds numbers that are none, or not one per token.", _HOW)
    return TextClassifier(bias, weights)
