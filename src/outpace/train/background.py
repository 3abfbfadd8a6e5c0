"""Count a text's tokens, for samplers that calibrate by how frequent a token is anyway (`pc-sampler`).

    python -m outpace.train.background --model stories-mask --out counts.json \\
        --name "TinyStories, a part of the training split" --licence CDLA-Sharing-1.0 train.txt.gz

The file holds one count per token of the model's vocabulary, and a digest of that vocabulary. Counts of a few million
tokens are enough: what matters is which words are likely anywhere.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from outpace.draft.corpus import pieces
from outpace.models.opening import locate
from outpace.text.fingerprint import fingerprint
from outpace.text.tokenizer import Tokenizer
from outpace.train.sources import open_text

__all__ = ["count_text", "main"]


def count_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return how often each token occurs in a text, one number per id."""
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for piece in pieces(text):
        np.add.at(counts, tokenizer.encode(piece, is_special=False), 1)
    return [int(count) for count in counts]


def main(arguments: Sequence[str] | None = None) -> None:
    """Count the texts named on the command line and write the file."""
    parser = argparse.ArgumentParser(description="Count a text's tokens.")
    parser.add_argument("--model", required=True, help="zoo name, directory or hub id whose tokenizer is used")
    parser.add_argument("--out", required=True, type=Path, help="file to write")
    parser.add_argument("--name", default="", help="what the text is")
    parser.add_argument("--licence", default="", help="the text's licence")
    parser.add_argument("texts", nargs="+", type=Path, help="plain or gzipped text files")
    given = parser.parse_args(arguments)
    tokenizer = Tokenizer.from_directory(locate(given.model)[0])
    counts = np.sum([count_text(tokenizer, open_text(path)) for path in given.texts], axis=0)
    held = {
        "text": given.name or ", ".join(path.name for path in given.texts),
        "licence": given.licence,
        "tokenizer": fingerprint(tokenizer),
        "counts": counts.tolist(),
    }
    given.out.write_text(json.dumps(held, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
