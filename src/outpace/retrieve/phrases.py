"""Phrases of a collection as choices beside tokens: three small maps of a model's states, and an index of all spans.

A phrase is a span of 2 to `longest` tokens of one text. It is known by the state before its first token, which says
what phrases can stand there, and by the state at its last token, which has read it. Both are mapped, as is the state
behind a prefix; products of maps are logits beside the model's own logits of tokens, in one law.

Source: Lan et al. (2023), arXiv 2307.06962, where a BERT reads the collection and phrases are known by their first and
last token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from outpace.errors import ConfigError

__all__ = ["PhraseIndex", "PhraseMaps", "segments"]

SHORTEST = 2


@dataclass(frozen=True, slots=True, eq=False)
class PhraseMaps:
    """The trained part.

    Attributes:
        prefix: [2, F, R] maps of the state behind a prefix, for beginnings and for ends.
        begin, end: [F, R] maps of the state before a phrase, and of the one at its end.
        length: [longest - 1] added to the logits of phrases of 2, 3, ... tokens.
    """

    prefix: Tensor
    begin: Tensor
    end: Tensor
    length: Tensor

    @property
    def longest(self) -> int:
        """Tokens of the longest phrase."""
        return len(self.length) + SHORTEST - 1

    @staticmethod
    def new(size: int, rank: int = 48, longest: int = 8, seed: int = 0) -> PhraseMaps:
        """Return maps to begin with, of states of `size` numbers."""
        draw = torch.Generator().manual_seed(seed)
        shapes = ((2, size, rank), (size, rank), (size, rank))
        prefix, begin, end = (torch.randn(shape, generator=draw) * (size * rank) ** -0.5 for shape in shapes)
        return PhraseMaps(prefix, begin, end, torch.full((longest - 1,), -2.0))

    def save(self, file: Path, model: str) -> None:
        """Write the maps, with the name of the model whose states they read."""
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: getattr(self, name).detach().contiguous() for name in ("prefix", "begin", "end", "length")}
        save_file(tensors, str(file), {"kind": "phrases", "settings": json.dumps({"model": model})})

    @staticmethod
    def read(file: str | Path) -> PhraseMaps:
        """Read the maps of a file.

        Raises:
            ConfigError: there is none, or it holds something else.
        """
        try:
            with safe_open(str(file), "pt") as found:
                return PhraseMaps(*(found.get_tensor(name) for name in ("prefix", "begin", "end", "length")))
        except (OSError, KeyError, Exception) as error:  # the library raises an exception of its own
            raise ConfigError(
                f"{file} holds no phrase maps.", "Train some with python -m outpace.train.phrases."
            ) from error

    def queries(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return what states [M, F] behind prefixes look for, [M, R] each: beginnings and ends."""
        unit = _unit(states)
        return unit @ self.prefix[0], unit @ self.prefix[1]


class PhraseIndex:
    """All spans of a collection.

    Args:
        maps: the trained part.
        texts: token ids, text by text.
        states: of every token of each text, [N, F].
    """

    def __init__(self, maps: PhraseMaps, texts: Sequence[Sequence[int]], states: Sequence[Tensor]) -> None:
        sizes = [len(part) for part in states]
        self.maps, self.texts = maps, [list(text[:size]) for text, size in zip(texts, sizes, strict=True)]
        self.tokens = torch.tensor([token for text in self.texts for token in text], dtype=torch.int64)
        whole = _unit(torch.cat(list(states))) if sizes else torch.zeros(0, maps.begin.shape[0])
        # The state before a phrase is that of the token before it; a text's first token has none and begins no phrase.
        self._begin, self._end = whole @ maps.begin, whole @ maps.end
        number = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.int64))
        # [L, N]: place i stands for the phrase behind token i, of the length of the line.
        lengths = range(SHORTEST, maps.longest + 1)
        self.is_phrase = torch.stack([_reaches(number, size) for size in lengths])

    def __len__(self) -> int:
        return int(self.is_phrase.sum())

    def logits(self, states: Tensor) -> Tensor:
        """Return [M, L, N] logits of all phrases behind prefixes with states [M, F]; -inf where there is none."""
        first, last = self.maps.queries(states.float())
        begins, ends = first @ self._begin.T, last @ self._end.T
        lines = []
        for line, bias in enumerate(self.maps.length):
            size = line + SHORTEST
            shifted = torch.nn.functional.pad(ends[:, size:], (0, min(size, ends.shape[1])))
            lines.append(begins + shifted + bias)
        return torch.stack(lines, 1).masked_fill(~self.is_phrase, float("-inf"))

    def phrase(self, at: int) -> list[int]:
        """Return the tokens of entry `at` of a flat [L * N] row of logits."""
        line, place = divmod(at, len(self.tokens))
        found: list[int] = self.tokens[place + 1 : place + 1 + line + SHORTEST].tolist()
        return found


def _unit(states: Tensor) -> Tensor:
    """Return states [..., F] of a mean square of 1."""
    return states * (states.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def _reaches(number: Tensor, size: int) -> Tensor:
    """Return whether the text of each token goes on for `size` tokens behind it."""
    found = torch.zeros(len(number), dtype=torch.bool)
    if len(number) > size:
        found[:-size] = number[size:] == number[:-size]
    return found


def segments(
    text: Sequence[int], collection: Sequence[int], is_phrase: Tensor, first: int = 1
) -> list[tuple[int, int, list[int]]]:
    """Cut a text into phrases of a collection, the longest first, and tokens.

    Args:
        text: token ids.
        collection: the tokens of all its texts, one behind the other.
        is_phrase: [L, N] as `PhraseIndex` has it.
        first: where the cut begins; what stands before it is a prefix.

    Returns:
        Per segment its place and length in the text, and the places before the collection's copies (none for a token).
    """
    pairs = dict[tuple[int, int], list[int]]()
    for place in is_phrase[0].nonzero().flatten().tolist():
        pairs.setdefault((collection[place + 1], collection[place + 2]), []).append(place)
    longest, found, at = len(is_phrase) + SHORTEST - 1, list[tuple[int, int, list[int]]](), first
    fits = is_phrase.tolist()
    while at < len(text):
        copies = pairs.get((text[at], text[at + 1]), []) if at + 1 < len(text) else []
        size = SHORTEST if copies else 1
        while size < longest and copies and at + size < len(text):
            more = [c for c in copies if fits[size - SHORTEST + 1][c] and collection[c + 1 + size] == text[at + size]]
            if not more:
                break
            copies, size = more, size + 1
        found.append((at, size, copies))
        at += size
    return found
