"""From a checkpoint to a quantised file or folder: its size is known before, and nothing is left half-written."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from outpace.errors import ConfigError, ModelError, StorageError
from outpace.models.quantised import Quantised
from outpace.models.rounding import round_matrix
from outpace.models.tensors import one_thread
from outpace.quantize.compressed import entries, quantization_config, write_folder
from outpace.quantize.finequant import choose_group
from outpace.quantize.gguf_file import Stored, block_type, check_architecture, plan_tensors, write_gguf
from outpace.quantize.source import SMALLEST, Source
from outpace.text.files import read_object

__all__ = ["FORMATS", "GROUPS", "Plan", "Written", "check_output", "convert", "needed_bytes"]

FORMATS = ("gguf", "compressed-tensors")
GROUPS = ("32", "64", "128", "row", "adaptive")
_HEADER = 1 << 20  # bytes for what else stands beside the tensors
_ODD_GROUP = 16  # of rows that 32 does not divide, where the format allows it
_PLAIN = {"bfloat16": "BF16", "float16": "F16"}  # float32 otherwise
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to make of a model.

    Attributes:
        bits: 8 or 4.
        group: inputs per scale: a number, "row" or "adaptive".
        format: "gguf" or "compressed-tensors".
        is_shifted: 4 bits with a shift per group (GGUF's Q4_1).

    Raises:
        ConfigError: they do not go together.
    """

    bits: int
    group: str = "32"
    format: str = "gguf"
    is_shifted: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.group not in GROUPS or self.format not in FORMATS:
            raise ConfigError(
                f"{self.bits} bits in groups of {self.group!r} as {self.format!r} are not written.",
                f"Bits: 8 or 4. Groups: {', '.join(GROUPS)}. Formats: {', '.join(FORMATS)}.",
            )
        if self.is_shifted and (self.bits == 8 or self.format != "gguf"):
            raise ConfigError("A shift per group is written for int4 in GGUF files only.", "Leave out --asymmetric.")


@dataclass(slots=True)
class Written:
    """What was written.

    Attributes:
        path: file or folder.
        groups: how many matrices have so many inputs per scale, by that number.
        kept: matrices of layers that were left as they were, since no group of the format divides their inputs.
        num_bytes: of the file, or of all files of the folder.
        bits_per_weight: of the quantised matrices of the layers, scales included.
        notes: what a user should know.
    """

    path: Path
    groups: Counter[int] = field(default_factory=Counter)
    kept: list[str] = field(default_factory=list)
    num_bytes: int = 0
    bits_per_weight: float = 0.0
    notes: list[str] = field(default_factory=list)


def check_output(out: Path, plan: Plan, source: Source, is_forced: bool) -> None:
    """Refuse a place where nothing should be written.

    Raises:
        ConfigError: something is there that would be lost, or there is no such folder.
    """
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"There is no folder {out.absolute().parent}.", "Make it, or choose another --out.")
    if not (out.exists() or out.is_symlink()):
        return
    if not is_forced:
        raise ConfigError(f"{out} exists.", "Use --force to replace it, or choose another --out.")
    if out.resolve() == source.directory.resolve() or out.resolve() in source.directory.resolve().parents:
        raise ConfigError(f"{out} holds the model itself.", "Choose another --out.")
    is_folder = out.is_dir()
    if is_folder == (plan.format == "gguf") or (is_folder and not _is_ours(out)):
        raise ConfigError(f"{out} is not what this command writes, so it is not replaced.", "Choose another --out.")


def _is_ours(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and bool(read_object(config).get("quantization_config"))


def needed_bytes(source: Source, plan: Plan) -> int:
    """Return the most bytes that the file or folder can take."""
    if plan.format == "gguf":
        data = sum(stored.num_bytes for stored in _tensors(source, plan))
    else:
        data = 0
        for name, kind in source.kinds.items():
            entry = source.files.entries[name]
            num = torch.Size(entry.shape).numel()
            is_rounded = kind == "matrix" and entry.shape[-1] % _ODD_GROUP == 0
            data += num * plan.bits // 8 + num // _ODD_GROUP * 4 if is_rounded else entry.num_bytes
    texts = sum(path.stat().st_size for path in source.directory.glob("*.json"))
    return data + 2 * texts + _HEADER  # a GGUF file may hold the tokenizer in two forms


def convert(source: Source, plan: Plan, out: Path, tell: Tell = lambda what, done, total: None) -> Written:
    """Quantise a model.

    Args:
        source: the model.
        plan: what to make of it.
        out: file or folder; replaced if it is there, once the new one is whole.
        tell: called with the tensor at hand, the weights done and all weights.

    Raises:
        ModelError: a group does not divide a matrix, a weight is no number, or the file has no place for a part.
        StorageError: the disk cannot hold it; nothing is left behind.
    """
    _check_groups(source, plan)
    if plan.format == "gguf":
        check_architecture(source)
    needed, free = needed_bytes(source, plan), shutil.disk_usage(out.absolute().parent).free
    if needed > free:
        raise StorageError(
            f"{out} takes up to {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free.", "Free some, or use --out."
        )
    written = Written(out)
    rounder = _Rounder(source, plan, written, tell)
    with one_thread(), _replacing(out, is_folder=plan.format != "gguf") as part:
        if plan.format == "gguf":
            written.notes += write_gguf(source, part, _tensors(source, plan), rounder.stored, has_text=True)
        else:
            write_folder(source, part, *rounder.folder())
        files = [part] if part.is_file() else [path for path in part.rglob("*") if path.is_file()]
        written.num_bytes = sum(path.stat().st_size for path in files)
    written.bits_per_weight = 8 * rounder.num_bytes / max(rounder.num_weights, 1)
    if plan.format == "gguf" and plan.group != "32":
        written.notes.append("A GGUF file holds a scale for every 32 inputs: larger groups make it no smaller.")
    if written.kept:
        more = f" and {len(written.kept) - 1} more" if len(written.kept) > 1 else ""
        written.notes.append(f"No group of the format divides the inputs of {written.kept[0]}{more}: kept as stored.")
    return written


def _check_groups(source: Source, plan: Plan) -> None:
    if not plan.group.isdecimal():
        return
    for name in _rounded(source, plan):
        columns = source.files.entries[name].shape[-1]
        if columns % int(plan.group) and columns % SMALLEST == 0:
            fitting = [group for group in GROUPS if not group.isdecimal() or columns % int(group) == 0]
            raise ModelError(
                f"Groups of {plan.group} do not divide the {columns} inputs of {name}.",
                f"Use --group {', '.join(fitting[:-1])} or {fitting[-1]}.",
            )


def _rounded(source: Source, plan: Plan) -> list[str]:
    """Return the matrices of layers that are quantised."""
    shapes = {name: source.files.entries[name].shape for name, kind in source.kinds.items() if kind == "matrix"}
    least = SMALLEST if plan.format == "gguf" else _ODD_GROUP
    return [name for name, shape in shapes.items() if shape[-1] % least == 0]


def _tensors(source: Source, plan: Plan) -> list[Stored]:
    """Return the tensors of a GGUF file; the embedding and the head, which llama.cpp too spares, have 8 bits."""
    plain = _PLAIN.get(source.files.stored_dtype(), "F32")
    return plan_tensors(source, block_type(plan.bits, plan.is_shifted), block_type(8), plain)


class _Rounder:
    """Reads and rounds tensors, and counts."""

    def __init__(self, source: Source, plan: Plan, written: Written, tell: Tell) -> None:
        self.source, self.plan, self.written, self.tell = source, plan, written, tell
        self.total, self.done = source.num_weights, 0
        self.num_weights = self.num_bytes = 0

    def read(self, name: str) -> Tensor:
        """Return a tensor, as stored."""
        self.tell(name, self.done, self.total)
        tensor = self.source.files.read(name, self.source.files.entries[name].shape)
        self.done += tensor.numel()
        return tensor

    def matrix(self, name: str, scale_dtype: torch.dtype) -> Quantised:
        """Return a matrix of a layer with its group size."""
        weight, plan = self.read(name), self.plan
        columns = weight.shape[-1]
        if columns % SMALLEST:
            group = _ODD_GROUP
        elif plan.group == "adaptive":
            group = choose_group(weight)
        else:
            group = columns if plan.group == "row" else int(plan.group)
        self.written.groups[group] += 1
        return self._round(name, weight, plan.bits, group, scale_dtype, plan.is_shifted)

    def _round(
        self, name: str, weight: Tensor, bits: int, group: int, scale_dtype: torch.dtype, is_shifted: bool = False
    ) -> Quantised:
        try:
            return round_matrix(weight, bits, group, scale_dtype, is_shifted=is_shifted)
        except ModelError as error:
            raise ModelError(f"{name}: {error}", error.hint) from None

    def stored(self, stored: Stored) -> Tensor | Quantised:
        """Return a tensor of a GGUF file."""
        kind = self.source.kinds[stored.name]
        if stored.type in ("F32", "F16", "BF16"):
            if kind == "matrix":
                self.written.kept.append(stored.name)
            return self._finite(stored.name, self.read(stored.name))
        if kind == "matrix":
            found = self.matrix(stored.name, torch.float16)
            self._count(found, stored.num_bytes)
            return found
        return self._round(stored.name, self.read(stored.name), 8, SMALLEST, torch.float16)

    def folder(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Return all tensors of a compressed-tensors checkpoint, and the key of its config.json."""
        dtype = getattr(torch, self.source.files.stored_dtype())
        dtype = torch.float32 if dtype == torch.float64 else dtype
        tensors: dict[str, Tensor] = {}
        groups: dict[str, int] = {}
        rounded, plain = set(_rounded(self.source, self.plan)), list[str]()
        for name, kind in self.source.kinds.items():
            if name not in rounded:
                if kind in ("matrix", "head"):
                    plain.append(name.removesuffix(".weight"))
                if kind == "matrix":
                    self.written.kept.append(name)
                tensors[name] = self._finite(name, self.read(name))
                continue
            found = self.matrix(name, dtype)
            made = entries(name, found, dtype)
            self._count(found, sum(tensor.nbytes for tensor in made.values()))
            tensors |= made
            groups[name.removesuffix(".weight")] = 0 if found.group == found.shape[1] else found.group
        if self.source.spec.tie_embeddings and "lm_head" not in plain:
            plain.append("lm_head")
        return tensors, quantization_config(self.plan.bits, groups, plain)

    def _finite(self, name: str, tensor: Tensor) -> Tensor:
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{name}: A weight is infinite or not a number.", "Fetch the model again.")
        return tensor

    def _count(self, matrix: Quantised, num_bytes: int) -> None:
        self.num_weights += matrix.codes.numel()
        self.num_bytes += num_bytes


@contextmanager
def _replacing(out: Path, is_folder: bool) -> Iterator[Path]:
    """Give a path beside `out` to write to, and put it into its place at the end; where that fails, nothing is left."""
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        if is_folder:
            part.mkdir()
        yield part
        if out.is_dir():  # a folder is not replaced in one step
            old = out.with_name(f"{out.name}.{os.getpid()}.old")
            out.rename(old)
            try:
                part.rename(out)
            except OSError:
                old.rename(out)
                raise
            shutil.rmtree(old)
        else:
            part.replace(out)
    except (OSError, SafetensorError) as error:
        # numpy and safetensors hide the number of the error: what they say is all there is.
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT, None):
            reason = "the disk is full" if number else str(error)
            raise StorageError(
                f"{out} could not be written whole: {reason}.", "Is there space left? Free some, or use --out."
            ) from error
        raise
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
