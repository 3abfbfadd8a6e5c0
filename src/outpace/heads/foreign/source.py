"""What a foreign drafter's directory or file holds: its configuration, and tensors that remember who asked for them.

Pickled files are read by torch's weights-only reader alone: anything but tensors in them is refused, never run.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.models.gguf_blocks import PLAIN, unpack
from outpace.models.tensors import DTYPES, Entry, TensorFiles, find_tensor_files, read_bytes
from outpace.text.files import AGAIN, read_object
from outpace.text.gguf_file import Stored, find_gguf, is_gguf, read_gguf

__all__ = ["Choice", "Foreign", "Sizes", "Source", "Written", "read_source"]

_PICKLES = (".pt", ".bin", ".pth")
_BARE = torch.uint8  # of tensors of which only names and shapes are wanted


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a drafter has to fit: the target's hidden size, vocabulary, layers and context."""

    hidden: int
    vocab: int
    layers: int
    context: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A convention that no tensor's shape tells.

    Attributes:
        name: as reports and files call it.
        value: what is taken unless somebody chooses.
        others: what else it may be.
        is_open: the file does not say, and files differ: `value` is a guess. Else the file says so, or all files do.
        is_stated: the file says so.
    """

    name: str
    value: Any
    others: tuple[Any, ...]
    is_open: bool = False
    is_stated: bool = False


@dataclass
class Source:
    """One drafter as it lies on the disk.

    Attributes:
        path: its directory or file.
        config: of config.json, or the metadata of a GGUF file without "ARCHITECTURE." before each key.
        tensors: by the names of the file; GGUF's matrices decoded.
        architecture: of a GGUF file, else "".
        files: all files that it is made of.
        used: tensors that somebody took, or left out knowingly.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    architecture: str = ""
    files: tuple[Path, ...] = ()
    used: set[str] = field(default_factory=set)

    def take(self, *names: str) -> Tensor:
        """Return the first of several tensors that is there.

        Raises:
            ModelError: none is.
        """
        found = self.find(*names)
        if found is None:
            raise ModelError(f"The drafter {self.path} lacks the tensor {names[0]}.", AGAIN)
        return found

    def find(self, *names: str) -> Tensor | None:
        """Return the first of several tensors that is there; None where none is."""
        for name in names:
            if name in self.tensors:
                self.used.add(name)
                return self.tensors[name]
        return None

    def has(self, *names: str) -> bool:
        """Return whether one of several tensors is there."""
        return any(name in self.tensors for name in names)

    def below(self, pattern: str) -> dict[str, Tensor]:
        """Return the tensors whose whole name matches a regular expression, named by its last group that matched."""
        found = {}
        for name, tensor in self.tensors.items():
            match = re.fullmatch(pattern, name)
            if match:
                self.used.add(name)
                found[match[match.lastindex or 0]] = tensor
        return found

    def all(self) -> dict[str, Tensor]:
        """Return all tensors, for layouts whose names our networks have: these tell which have no place."""
        self.used |= set(self.tensors)
        return dict(self.tensors)

    def leave(self, pattern: str) -> None:
        """Leave out tensors that serve training alone."""
        self.used |= {name for name in self.tensors if re.fullmatch(pattern, name)}

    def check_used(self) -> None:
        """Refuse a file of which a tensor was not understood.

        Raises:
            ModelError: names one.
        """
        left = sorted(set(self.tensors) - self.used)
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ModelError(
                f"The drafter {self.path} has a tensor that has no place in its layout: {left[0]}{more}.",
                "It is of a kind that is not read here, or its config.json is of another.",
            )

    def number(self, *keys: str) -> int | None:
        """Return the first of several whole numbers in the configuration, None where none is.

        Raises:
            ModelError: it is something else.
        """
        for key in keys:
            value = self.config.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ModelError(f"The drafter {self.path} says {key} {value!r}, which is no whole number.", AGAIN)
            return value
        return None

    def flag(self, key: str, *places: str) -> bool | None:
        """Return a flag at the top of the configuration, or in tables of it; None where nobody states it."""
        for table in (self.config, *(self.table(place) for place in places)):
            if isinstance(table.get(key), bool):
                return bool(table[key])
        return None

    def beside(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of another pickled file in the drafter's folder; what is no tensor is left out.

        Raises:
            ModelError: it is damaged, or holds code.
        """
        folder = self.path if self.path.is_dir() else self.path.parent
        return {key: value for key, value in _unpickled(folder / name).items() if isinstance(value, Tensor)}

    def layer_config(self) -> dict[str, Any]:
        """Return what is said of the drafter's layers: at the top, or in a table of their own."""
        return {**self.config, **self.table("transformer_layer_config")}

    def table(self, key: str) -> Mapping[str, Any]:
        """Return a table of the configuration; an empty one where there is none."""
        found = self.config.get(key)
        return found if isinstance(found, Mapping) else {}


@dataclass
class Foreign:
    """A foreign drafter in our terms.

    Attributes:
        layout: what reports call it.
        config: of our network.
        tensors: of our network, by its names.
        ids: [K] int64, ascending, the tokens that it drafts; None = all.
        choices: conventions that were taken, and what else they may be.
        notes: what a user should know.
    """

    layout: str
    config: Any
    tensors: dict[str, Tensor]
    ids: Tensor | None = None
    choices: tuple[Choice, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """A drafter in a foreign layout: config.json, and tensors by that layout's names."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def read_source(path: str | Path, *, is_peek: bool = False) -> Source:
    """Read a drafter's directory, its GGUF file, or its pickled or safetensors file with a config.json beside it.

    Args:
        path: the directory or file.
        is_peek: names and shapes alone (tensors without memory), where the file tells them without being read.

    Raises:
        ModelError: it is damaged, or holds no weights that may be read.
    """
    place = Path(path)
    gguf = find_gguf(place) if place.is_dir() or is_gguf(place) else None
    if gguf is not None:
        return _read_gguf(gguf, is_peek)
    folder = place if place.is_dir() else place.parent
    file = folder / "config.json"
    config = read_object(file) if file.is_file() else {}
    weights = [place] if place.is_file() else _weight_files(place)
    tensors: dict[str, Tensor] = {}
    for one in weights:
        tensors |= _read_pickle(one) if one.suffix in _PICKLES else _read_safetensors(one, is_peek)
    return Source(place, config, tensors, files=(*([file] if config else []), *weights))


def _weight_files(folder: Path) -> list[Path]:
    if next(folder.glob("*.safetensors"), None) or (folder / "model.safetensors.index.json").is_file():
        return find_tensor_files(folder)
    found = sorted(path for suffix in _PICKLES for path in folder.glob(f"*{suffix}"))
    known = [path for path in found if path.stem in ("pytorch_model", "medusa_lm_head", "hydra_lm_head")]
    if not (known or found):
        raise ModelError(f"{folder} holds no weights.", "A drafter's directory has a model.safetensors in it.")
    return known or found[:1]


def _read_safetensors(path: Path, is_peek: bool) -> dict[str, Tensor]:
    files = TensorFiles([path])
    known = {name: entry for name, entry in files.entries.items() if entry.dtype in DTYPES}
    if is_peek:
        return {name: torch.empty(entry.shape, dtype=_BARE, device="meta") for name, entry in known.items()}
    return {name: files.take(name, entry.shape, tuple(DTYPES)) for name, entry in known.items()}


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that torch saved."""
    found: Any = _unpickled(path)
    if isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not all(isinstance(one, Tensor) for one in found.values()):
        raise ModelError(f"{path} is no table of tensors.", AGAIN)
    return {str(name): tensor for name, tensor in found.items()}


def _unpickled(path: Path) -> Mapping[Any, Any]:
    """Return the table in a file that torch saved; code in it is refused, not run."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path} holds more than tensors, and opening it could run code.",
            "Ask for a safetensors file, or convert it where you trust it.",
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{path} is damaged or no file of tensors ({type(error).__name__}).", AGAIN) from None
    if not isinstance(found, Mapping):
        raise ModelError(f"{path} is no table of tensors.", AGAIN)
    return found


def _read_gguf(path: Path, is_peek: bool) -> Source:
    head = read_gguf(path)
    kind = head.get("general.architecture", str, "") or ""
    start = f"{kind}."
    config = {key.removeprefix(start): value for key, value in head.metadata.items() if key.startswith(start)}
    config |= {key: head.metadata[key] for key in ("tokenizer.ggml.mask_token_id",) if key in head.metadata}
    tensors = {
        name: torch.empty(stored.shape, dtype=_BARE, device="meta") if is_peek else _read_stored(stored)
        for name, stored in head.tensors.items()
    }
    return Source(path, config, tensors, architecture=kind, files=(path,))


def _read_stored(stored: Stored) -> Tensor:
    raw = read_bytes(Entry(stored.path, stored.offset, stored.num_bytes, stored.kind, stored.shape))
    if stored.kind == "I64":
        return raw.view(torch.int64).view(stored.shape)
    if stored.kind in PLAIN:
        return raw.view(PLAIN[stored.kind]).view(stored.shape)
    rows = prod(stored.shape[:-1])
    return unpack(raw, stored.kind, (rows, stored.shape[-1])).dense().view(stored.shape)
