"""An n-gram model beside a lattice: what a token adds after the tokens before it, fast enough for a beam.

The model is the interpolated Kneser-Ney model of `outpace.text.ngram`, counted on sentences; here single tokens are
looked up in dictionaries, where that one scores whole streams.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from outpace.errors import ConfigError
from outpace.text.ngram import NGram
from outpace.text.tokenizer import Tokenizer

__all__ = ["Language", "read_language"]


class Language:
    """Log-probabilities in nats of next tokens; a `Scorer` of `outpace.models.nar.paths`.

    Args:
        texts: sentences as tokens, without ends.
        vocab: V.
        end: the token that ends a text, and stands before each.
        order: the longest n-gram.

    Raises:
        ConfigError: there is no text.
    """

    def __init__(self, texts: Sequence[Sequence[int]], vocab: int, end: int, order: int = 4) -> None:
        stream = [end]
        for text in texts:
            stream += [*text, end]
        if len(stream) < order + 1:
            raise ConfigError(f"{len(stream)} tokens are too few for a language model.", "Give a text with sentences.")
        self.vocab, self.end, self.order = vocab, end, order
        model = NGram(np.array(stream, dtype=np.int64), order, vocab)
        self._places = [{key: at for at, key in enumerate(part.keys.tolist())} for part in model.orders]
        self._tables = [(p.discounted.tolist(), p.totals.tolist(), p.freed.tolist()) for p in model.orders]
        self._contexts: dict[tuple[int, ...], list[int]] = {}

    def __call__(self, before: tuple[int, ...], token: int) -> float:
        """Return the log-probability of a token, -1 = the end, after a text's first tokens."""
        context = (self.end, *before)[1 - self.order :] if self.order > 1 else ()
        token, probability = self.end if token < 0 else token, 1.0 / self.vocab
        if context not in self._contexts:
            self._contexts[context] = self._numbers(context)
        for number, places, (discounted, totals, freed) in zip(
            self._contexts[context], self._places, self._tables, strict=False
        ):
            if 0 <= number < len(totals) and totals[number] > 0:
                place = places.get(number * self.vocab + token)
                known = 0.0 if place is None else discounted[place]
                probability = (known + freed[number] * probability) / totals[number]
        return math.log(probability)

    def _numbers(self, context: tuple[int, ...]) -> list[int]:
        """Return the number of the last 0, 1, 2, ... tokens of a context as an n-gram of their own, -1 = unseen."""
        found = [0]
        for size in range(1, len(context) + 1):
            number = 0
            for places, token in zip(self._places, context[-size:], strict=False):
                number = places.get(number * self.vocab + token, -1)
                if number < 0:
                    break
            found.append(number)
        return found


def read_language(path: str, tokenizer: Tokenizer, vocab: int, end: int, order: int = 4) -> Language:
    """Return the model of a text file, one sentence a line; it is counted once.

    Raises:
        ConfigError: the file cannot be read, or is empty.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"There is no text to count a language model on at {path}.", "Give a file of sentences.")
    return _counted(file, file.stat().st_mtime_ns, tokenizer, vocab, end, order)


@lru_cache(maxsize=2)
def _counted(file: Path, changed: int, tokenizer: Tokenizer, vocab: int, end: int, order: int) -> Language:
    del changed  # a file that was written anew is another one
    raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    lines = [line.strip() for line in raw.decode("utf-8", errors="replace").splitlines() if line.strip()]
    texts = [[token for token in tokenizer.encode(line) if token != end] for line in lines]
    return Language(texts, vocab, end, order)
