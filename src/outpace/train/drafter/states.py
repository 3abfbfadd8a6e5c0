"""What the target's forwards tell of texts: computed in batches, and kept on disk, in bfloat16, to be read again.

The file grows piece by piece, and an index says which texts it holds. What the index does not name is cut off when
the file is opened again, so a run may be killed at any moment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from outpace.draft.features import joined_states
from outpace.errors import ConfigError, StorageError
from outpace.store import locked
from outpace.train.drafter.texts import Text, check_target, describe_target
from outpace.types import Adapter, Outputs

__all__ = ["States", "forward_states"]

_FORWARD = 4096  # tokens of a forward, padding included
_PIECE = 128  # texts that are written at once


def forward_states(
    target: Adapter, tokens: Sequence[Sequence[int]], outputs: Outputs, sources: Sequence[Sequence[int]] = ()
) -> Tensor:
    """Return the joined states [B, T, F] of texts, padded at the right; one forward.

    Args:
        target: the model; a head that is trimmed to few tokens saves most of a small model's time.
        tokens: the texts.
        outputs: which states.
        sources: of an encoder-decoder, what it reads for each.
    """
    size = max(map(len, tokens))
    ids = torch.zeros(len(tokens), size, dtype=torch.int64)
    position = torch.full_like(ids, -1)
    for row, text in enumerate(tokens):
        ids[row, : len(text)] = torch.tensor(text)
        position[row, : len(text)] = torch.arange(len(text))
    cache = target.new_cache(len(tokens), size)
    if target.capabilities.is_encoder_decoder:
        target.encode([list(source) for source in sources], cache)
    ids, position = ids.to(target.device), position.to(target.device)
    return joined_states(target.score(ids, position, None, cache, outputs=outputs), outputs)


class States:
    """The states of a list of texts, by their place in it.

    Args:
        target: the model.
        name: how it is called.
        texts: the texts; a file that is kept holds the first of them.
        outputs: the states that are wanted; the last hidden state always stands behind them.
        length: tokens of a text that are kept, its first.
        folder: where they are kept; None = computed anew whenever they are asked for.

    Raises:
        ConfigError: the folder holds states of another target, of other texts or of other layers.
        CapabilityError: the target does not give hidden states.
    """

    def __init__(
        self, target: Adapter, name: str, texts: Sequence[Text], outputs: Outputs, length: int, folder: Path | None
    ) -> None:
        self._outputs = Outputs(outputs.layers, True)
        target.check(self._outputs)
        self._texts = [(text.prompt + text.answer)[:length] for text in texts]
        self._sources = [text.source for text in texts]
        self._target, self._folder = target, folder
        self._width = 0
        self._trimmed = target.trim_head(torch.zeros(1, dtype=torch.int64, device=target.device)) or target
        self._sizes: list[int] = []
        self._file: np.memmap[tuple[int, int], np.dtype[np.int16]] | None = None
        if folder is not None:
            hidden = target.embed(torch.zeros(1, 1, dtype=torch.int64, device=target.device)).shape[-1]
            self._width = hidden * (len(outputs.layers) + 1)
            told = {**describe_target(target, name), "layers": list(outputs.layers), "length": length}
            check_target(folder / "states.json", told, "states")
            self._open(folder)

    def _open(self, folder: Path) -> None:
        """Read the index."""
        index = folder / "states.index.jsonl"
        self._sizes = []
        if index.is_file():
            for line in index.read_bytes().splitlines(keepends=True)[: len(self._texts)]:
                text = self._texts[len(self._sizes)]
                if line != self._line(len(self._sizes)):
                    if not line.endswith(b"\n"):  # the process was killed here
                        break
                    raise ConfigError(f"The states in {folder} are of other texts.", "Delete them.")
                self._sizes.append(len(text))

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def missing(self) -> int:
        """Texts whose states are not kept yet."""
        return len(self._texts) - len(self._sizes) if self._folder is not None else 0

    def fill(
        self, is_stopping: Callable[[], bool] = lambda: False, show: Callable[[int], None] = lambda done: None
    ) -> None:
        """Compute and keep what is missing.

        Raises:
            StorageError: the disk is full; what was kept before is valid.
        """
        if self._folder is None:
            return
        path, index = self._folder / "states.bin", self._folder / "states.index.jsonl"
        try:
            with locked(self._folder / "lock"), path.open("ab") as file, index.open("ab") as names:
                self._open(self._folder)  # another process may have gone on
                kept = sum(self._sizes) * self._width * 2
                if len(self._sizes) < len(self._texts):  # else it may hold more, of a longer list
                    file.truncate(kept)
                    names.truncate(sum(len(self._line(i)) for i in range(len(self._sizes))))
                while self.missing and not is_stopping():
                    piece = range(len(self._sizes), min(len(self._sizes) + _PIECE, len(self._texts)))
                    for states in self._compute(piece):
                        file.write(states.contiguous().view(torch.int16).numpy().tobytes())
                    file.flush()
                    os.fsync(file.fileno())
                    names.write(b"".join(map(self._line, piece)))
                    names.flush()
                    self._sizes += [len(self._texts[i]) for i in piece]
                    show(len(self._sizes))
        except OSError as error:
            raise StorageError(
                f"The states cannot be kept in {self._folder} ({error.strerror}).",
                "Free some space and run again, which goes on from there, or use --no-cache.",
            ) from error
        self._map(path)

    def _map(self, path: Path) -> None:
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)]).tolist()
        if self._sizes:
            self._file = np.memmap(path, np.int16, "r", shape=(self._starts[-1], self._width))

    def _line(self, i: int) -> bytes:
        """Return the line of a text in the index: its length, and a hash of all that its states follow from."""
        text = self._texts[i]
        return json.dumps([len(text), _hash([*self._sources[i], *text])]).encode() + b"\n"

    def _compute(self, index: Sequence[int]) -> list[Tensor]:
        """Return the states of some texts, [T, F] bfloat16 each."""
        texts, sources = [self._texts[i] for i in index], [self._sources[i] for i in index]
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        for batch in _batches([len(text) + len(source) for text, source in zip(texts, sources, strict=True)]):
            given = ([texts[i] for i in batch], self._outputs, [sources[i] for i in batch])
            states = forward_states(self._trimmed, *given)
            for row, i in enumerate(batch):
                found[i] = states[row, : len(texts[i])].to("cpu", torch.bfloat16)
        return found

    def read(self, index: Sequence[int]) -> list[Tensor]:
        """Return the states [T, F] of some texts, bfloat16, the last hidden state behind the others."""
        if self._folder is None:
            return self._compute(index)
        if self._file is None:
            self._map(self._folder / "states.bin")
        assert self._file is not None  # fill came first
        parts = [np.array(self._file[self._starts[i] : self._starts[i + 1]]) for i in index]
        return [torch.from_numpy(part).view(torch.bfloat16) for part in parts]


def _batches(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield places of texts of like length, as many as a forward takes."""
    batch: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        if batch and (len(batch) + 1) * sizes[i] > _FORWARD:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _hash(text: Sequence[int]) -> int:
    value = 0
    for token in text:
        value = (value * 1000003 + token + 1) % (1 << 61)
    return value
