"""From texts to batches: the shared tokenizer, the token streams, and an order of rows that depends on the step alone.

Every source is one long stream of uint16 tokens, its documents separated by `<|endoftext|>`. A row is a piece of one
stream. Which piece is a pure function of (seed, row number), so a resumed run sees the rows that the killed one
would have seen, without any saved state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from outpace.errors import ConfigError

from .sources import END, Source

MASK = "<|mask|>"
EOS_ID, MASK_ID = 0, 1
# Letters take one leading mark (so " the", "_name" and ".join" are one piece), digits stand alone, marks take the line
# end that follows them, and a run of blanks stays together but for the last one: deep indentation is one token.
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
Tokens = NDArray[np.uint16]


def find_data(data: Path | None) -> Path:
    """The folder of training texts: `data`, or ./data.

    Raises:
        ConfigError: it is not there.
    """
    folder = data or Path("data")
    if not folder.is_dir():
        raise ConfigError(
            f"There is no folder of training texts at {folder}.",
            "Gather the files that the model's card names and pass their folder with --data.",
        )
    return folder


def train_tokenizer(texts: Iterable[str], vocab: int, extra: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE of `vocab` entries; ids 0 and 1 are `<|endoftext|>` and `<|mask|>`, `extra` ones follow."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END, MASK, *extra],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_stream(tokenizer: Tokenizer, documents: Sequence[str]) -> Tokens:
    """All documents as one stream, `<|endoftext|>` before each and after the last."""
    pieces = [np.array([EOS_ID], dtype=np.uint16)]
    for encoding in tokenizer.encode_batch(list(documents), add_special_tokens=False):
        pieces.append(np.array([*encoding.ids, EOS_ID], dtype=np.uint16))
    return np.concatenate(pieces)


@dataclass(frozen=True, slots=True)
class DataMixture:
    """Token streams and the shares in which rows are drawn from them.

    Attributes:
        streams: One token stream for each source.
        weights: Share of rows for each source; they sum to 1.
        seed: Seed of the order.
    """

    streams: tuple[Tokens, ...]
    weights: tuple[float, ...]
    seed: int

    def row(self, number: int, length: int) -> Tokens:
        """Row `number` of the run: `length` tokens of one source."""
        # Two additive recurrences (the R2 sequence) instead of a generator: they depend on the number alone, keep every
        # batch close to the wanted shares, and cover each stream evenly at ever new offsets.
        pick = (0.5 + self.seed * 0.3247 + number * 0.7548776662466927) % 1.0 * sum(self.weights)
        place = (0.5 + self.seed * 0.6823 + number * 0.5698402909980532) % 1.0
        source = min(int(np.searchsorted(np.cumsum(self.weights), pick, side="right")), len(self.streams) - 1)
        stream = self.streams[source]
        if len(stream) <= length:
            return np.resize(stream, length)
        start = int(place * (len(stream) - length + 1))
        return stream[start : start + length]

    def batch(self, step: int, rows: int, length: int) -> Tensor:
        """The int64 tokens [rows, length] of one step."""
        numbers = range(step * rows, (step + 1) * rows)
        return torch.from_numpy(np.stack([self.row(number, length) for number in numbers]).astype(np.int64))


def read_documents(sources: Sequence[Source], data: Path) -> list[list[str]]:
    """The training documents of each source.

    Raises:
        ConfigError: When a file that a source names is missing.
    """
    for source in sources:
        source.paths(source.files, data)
    return [list(source.read(data)) for source in sources]


def mix(sources: Sequence[Source], documents: Sequence[Sequence[str]], tokenizer: Tokenizer, seed: int) -> DataMixture:
    """Encode each source and give it its weight."""
    streams = tuple(encode_stream(tokenizer, texts) for texts in documents)
    return DataMixture(streams, tuple(source.weight for source in sources), seed)
