"""How many bytes an auto-encoder gives back, on short strings that it has not seen.

    python -m outpace.train.byte_accuracy runs/bytes-recursive runs/bytes-gru

A byte counts where the text that is written has it at the same place; the models' own tokenizers and their cards'
methods are used. Source: Zhang and LeCun (2018), arXiv 1802.01817, whose byte-level error is one minus this.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from outpace.api.engine import load
from outpace.failures import guarded

from .data import find_data
from .pairs import STRINGS

__all__ = ["byte_accuracy", "main"]


def byte_accuracy(texts: Sequence[str], wanted: Sequence[str]) -> float:
    """Return the share of the wanted bytes that stand at their places in the texts."""
    pairs = [(text.encode(), string.encode()) for text, string in zip(texts, wanted, strict=True)]
    same = sum(a == b for text, string in pairs for a, b in zip(text, string, strict=False))
    return same / max(1, sum(len(string) for _, string in pairs))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per model; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m outpace.train.byte_accuracy", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("models", nargs="+", help="directories of auto-encoders")
    parser.add_argument("--split", default="test", help="of the strings: valid or test")
    parser.add_argument("--strings", type=int, default=1000, help="most of them")
    parser.add_argument("--data", type=Path, help="folder of texts (default: ./data)")
    given = parser.parse_args(arguments)

    def run(_: list[str]) -> int:
        strings = [text for text, _ in STRINGS.pairs(find_data(given.data), given.split)][: given.strings]
        print(f"{len(strings)} strings of {STRINGS.name}:{given.split}")
        for name in given.models:
            lm = load(name)
            method = "one-pass" if lm.target.capabilities.is_one_pass else "autoregressive"
            found = lm.generate(strings, method=method, max_tokens=64)
            whole = sum(result.text == string for result, string in zip(found, strings, strict=True)) / len(strings)
            share = byte_accuracy([result.text for result in found], strings)
            print(f"{Path(name).name}: {share:.2%} of the bytes, {whole:.2%} of the strings whole")
        return 0

    return guarded(run, [])


if __name__ == "__main__":
    sys.exit(main())
