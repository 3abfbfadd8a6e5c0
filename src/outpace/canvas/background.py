"""How frequent each token of a vocabulary is in a background text: a small file of counts, tied to its tokenizer."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from outpace.canvas.row import Floats
from outpace.errors import ConfigError
from outpace.text.fingerprint import fingerprint

__all__ = ["SHIPPED", "frequencies", "read_counts"]

SHIPPED = Path(__file__).parents[1] / "zoo" / "frequencies.json"
_HOW = "Make one with python -m outpace.train.background --model MODEL --out FILE TEXT."


def frequencies(background: str, tokenizer: Any, vocab_size: int) -> Floats | None:
    """Return each token's share of the background text, [V]; None = no background.

    Args:
        background: "none"; "auto" = what ships for the zoo's story models, and none for a model without tokenizer; or a
            file of counts.
        tokenizer: the model's (`outpace.text.tokenizer.Tokenizer`), or None.
        vocab_size: V of the model, at least the tokenizer's.

    Raises:
        ConfigError: the file is no such file or counts another vocabulary, or nothing ships for this tokenizer.
    """
    if background == "none" or (background == "auto" and tokenizer is None):
        return None
    known, counts = read_counts(str(SHIPPED) if background == "auto" else background)
    if tokenizer is not None and known != fingerprint(tokenizer):
        if background == "auto":
            raise ConfigError(
                "No background frequencies ship for this model's tokenizer.", f"Use background=none. {_HOW}"
            )
        raise ConfigError(f"The background {background} counts the tokens of another vocabulary.", _HOW)
    if len(counts) > vocab_size:
        raise ConfigError(f"The background counts {len(counts)} tokens, the model has {vocab_size}.", _HOW)
    shares: Floats = np.pad(counts, (0, vocab_size - len(counts))) / counts.sum()
    return shares


@functools.lru_cache(maxsize=4)
def read_counts(path: str) -> tuple[str, Floats]:
    """Return a file's tokenizer digest and its counts, [V].

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
        counts = np.asarray(held["counts"], dtype=np.float64)
        known = str(held["tokenizer"])
    except OSError as error:
        raise ConfigError(f"The background {path} cannot be read.", _HOW) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"The background {path} is no file of token counts.", _HOW) from error
    if counts.ndim != 1 or not len(counts) or not np.isfinite(counts).all() or counts.min() < 0 or not counts.sum():
        raise ConfigError(f"The background {path} has no counts, or negative ones.", _HOW)
    return known, counts
