"""Safetensors files whose matrices are quantised (GPTQ, AWQ, compressed-tensors, float8), read by their plain names."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.models.hfquant_layouts import Codes, from_words, in_awq_order, plus_one
from outpace.models.hfquant_settings import Quantisation, Scheme
from outpace.models.quantised import Quantised
from outpace.models.tensors import OTHER_CONFIG, TensorFiles

__all__ = ["QuantisedFiles"]

_FLOAT8 = ("F8_E4M3", "F8_E5M2")
_SCALES = ("F16", "BF16", "F32")
_WORDS = (".qweight", ".weight_packed")  # in place of ".weight"
# Tensors that belong to a matrix, or that quantised activations and caches would need; the latter are not followed.
_PARTS = (
    *(".qweight", ".qzeros", ".scales", ".g_idx"),
    *(".weight_packed", ".weight_scale", ".weight_scale_inv", ".weight_zero_point", ".weight_shape", ".weight_g_idx"),
)
_ACTIVATIONS = (
    *(".input_scale", ".input_zero_point", ".input_scale_ub", ".output_scale", ".output_zero_point"),
    *(".activation_scale", ".k_scale", ".v_scale", ".k_zero_point", ".v_zero_point"),
)


class QuantisedFiles(TensorFiles):
    """The tensors of a quantised checkpoint.

    Args:
        paths: the files.
        settings: how each matrix is stored.

    Raises:
        ModelError: a file is damaged, or nothing in them is quantised.
    """

    def __init__(self, paths: Iterable[Path], settings: Quantisation) -> None:
        super().__init__(paths)
        self.settings = settings
        self._reasons: dict[str, None] = {}  # why codes were asked for in vain, in order
        kinds = {entry.dtype for entry in self.entries.values()}
        if not kinds & {"I8", *_FLOAT8} and not any(name.endswith(_WORDS) for name in self.entries):
            raise ModelError(f"The settings say {settings.name}, but no tensor is quantised.", OTHER_CONFIG)

    def __contains__(self, name: str) -> bool:
        return name in self.entries or any(_module(name) + words in self.entries for words in _WORDS)

    @property
    def notes(self) -> list[str]:
        """What a result should say of these files."""
        found = [f"Quantised matrices are decoded and run dense {reason}." for reason in self._reasons]
        return [*self.settings.notes, *found]

    def num_values(self) -> int:
        """Return how many numbers the tensors stand for; scales and zero points are none of them."""
        total = 0
        for name, entry in self.entries.items():
            scheme = self.settings.scheme(name.rpartition(".")[0])
            if name.endswith(_WORDS):
                total += prod(entry.shape) * 32 // (scheme.bits if scheme else 32)
            elif not name.endswith((*_PARTS, *_ACTIVATIONS)):
                total += prod(entry.shape)
        return total

    def quantised_kinds(self) -> list[str]:
        """Return how matrices are stored, as "GPTQ, 4 bits"."""
        return [self.settings.name]

    def unused(self) -> list[str]:
        """Return the names that nobody read; what activations would need is not among them."""
        return [name for name in super().unused() if not name.endswith(_ACTIVATIONS)]

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor of this shape: a quantised one decoded, in float32."""
        stored = self._stored(name, shape)
        if stored is None:
            return super().read(name, shape)
        return stored.dense() if isinstance(stored, Codes) else stored

    def read_quantised(self, name: str, shape: tuple[int, ...]) -> Quantised | None:
        """Return the codes of a matrix of this shape; None = `read` gives it, since it is plain or fits no code."""
        if self._layout(name) in ("", "float8"):
            if self._layout(name):
                self._reasons["where they are float8, which is no code"] = None
            return None
        stored = self._stored(name, shape)
        assert isinstance(stored, Codes)
        if reason := stored.reason_dense():
            self._reasons[reason] = None
            return None
        return stored.quantised()

    def _layout(self, name: str) -> str:
        """Return how a matrix lies in the files, "" = as plain numbers."""
        module = _module(name)
        if module + ".qweight" in self.entries:
            scheme = self.settings.scheme(module)
            return scheme.layout if scheme else "gptq"
        if module + ".weight_packed" in self.entries:
            return "packed"
        kind = self.entries[name].dtype if module != name and name in self.entries else ""
        return "int" if kind == "I8" else "float8" if kind in _FLOAT8 else ""

    def _stored(self, name: str, shape: tuple[int, ...]) -> Codes | Tensor | None:
        """Return codes, a decoded float8 matrix, or None for a plain tensor."""
        layout, module = self._layout(name), _module(name)
        if not layout:
            return None
        scheme = self.settings.scheme(module)
        if scheme is None or scheme.layout != layout:
            raise ModelError(
                f"The files hold {module} quantised, but the settings of {self.settings.name} do not say so.",
                OTHER_CONFIG,
            )
        rows, columns = shape  # of a matrix
        stored = {"gptq": self._gptq, "awq": self._awq, "packed": self._packed, "int": self._int8}.get(layout)
        found = self._float8(module, scheme, rows, columns) if stored is None else stored(module, scheme, rows, columns)
        self.used |= {module + part for part in _PARTS} & set(self.entries)
        return found

    # One function per layout

    def _gptq(self, module: str, scheme: Scheme, rows: int, columns: int) -> Codes:
        bits, groups = scheme.bits, self._num_groups(module, scheme, columns, ".scales", 0)
        _check_words(module, bits, rows, columns)
        words = self.take(module + ".qweight", (columns * bits // 32, rows), ("I32",))
        zeros = self.take(module + ".qzeros", (groups, rows * bits // 32), ("I32",))
        scale = self.take(module + ".scales", (groups, rows), _SCALES)
        if scheme.is_less_one and bits != 3:
            zeros = plus_one(zeros, bits)
        zero = from_words(zeros, bits, rows)
        if scheme.is_less_one and bits == 3:
            zero = (zero + 1) & 7
        codes = from_words(words.t(), bits, columns)
        index = self._index(module + ".g_idx", groups, columns)
        return Codes(codes, bits, scale.t().contiguous(), zero.t().to(torch.int16).contiguous(), index)

    def _awq(self, module: str, scheme: Scheme, rows: int, columns: int) -> Codes:
        groups = self._num_groups(module, scheme, columns, ".scales", 0)
        _check_words(module, 4, rows, 32)
        words = self.take(module + ".qweight", (columns, rows // 8), ("I32",))
        zeros = self.take(module + ".qzeros", (groups, rows // 8), ("I32",))
        scale = self.take(module + ".scales", (groups, rows), _SCALES)
        codes, zero = (in_awq_order(from_words(part, 4, rows)).t() for part in (words, zeros))
        return Codes(codes.contiguous(), 4, scale.t().contiguous(), zero.to(torch.int16).contiguous())

    def _packed(self, module: str, scheme: Scheme, rows: int, columns: int) -> Codes:
        bits, offset = scheme.bits, 1 << (scheme.bits - 1)
        self._check_shape(module, rows, columns)
        words = self.take(module + ".weight_packed", (rows, -(-columns * bits // 32)), ("I32",))
        scale = self._scale(module, scheme, rows, columns)
        zero, name = torch.zeros(scale.shape, dtype=torch.int16), module + ".weight_zero_point"
        if name in self.entries and self.entries[name].dtype == "I32":
            packed = self.take(name, (-(-rows * bits // 32), scale.shape[1]), ("I32",))
            zero = from_words(packed.t(), bits, rows).t().to(torch.int16) - offset
        elif name in self.entries:
            zero = self._zero(module, scheme, rows, columns)
        codes = from_words(words, bits, columns)
        index = self._index(module + ".weight_g_idx", scale.shape[1], columns)
        return Codes(codes, bits, scale, (zero + offset).contiguous(), index)

    def _int8(self, module: str, scheme: Scheme, rows: int, columns: int) -> Codes:
        bits, offset = scheme.bits, 1 << (scheme.bits - 1)
        values = self.take(module + ".weight", (rows, columns), ("I8",)).to(torch.int16) + offset
        if int(values.min()) < 0 or int(values.max()) >= 1 << bits:
            raise ModelError(f"Tensor {module}.weight holds values that do not fit {bits} bits.", OTHER_CONFIG)
        scale = self._scale(module, scheme, rows, columns)
        zero = torch.zeros(scale.shape, dtype=torch.int16)
        if module + ".weight_zero_point" in self.entries:
            zero = self._zero(module, scheme, rows, columns)
        return Codes(values.to(torch.uint8), bits, scale, zero + offset)

    def _float8(self, module: str, scheme: Scheme, rows: int, columns: int) -> Tensor:
        values = self.take(module + ".weight", (rows, columns), _FLOAT8).float()
        name = module + (".weight_scale" if module + ".weight_scale" in self.entries else ".weight_scale_inv")
        scale = self._spread(name, scheme, rows, columns, (*_SCALES, "F8_E8M0")).float()
        size = columns // scale.shape[1] if scheme.block is None else scheme.block[1]
        return values.mul_(scale.repeat_interleave(size, 1)[:, :columns])

    # Parts

    def _num_groups(self, module: str, scheme: Scheme, columns: int, part: str, axis: int) -> int:
        """Return the groups of inputs: of the settings, or where these say nothing, of the stored scales."""
        if scheme.group is None:
            entry = self.entries.get(module + part)
            groups = entry.shape[axis] if entry is not None and len(entry.shape) == 2 else 1
            return groups if groups and not columns % groups else 1
        size = min(scheme.group or columns, columns)
        if columns % size:
            raise ModelError(f"Groups of {size} do not divide the {columns} inputs of {module}.", OTHER_CONFIG)
        return columns // size

    def _scale(self, module: str, scheme: Scheme, rows: int, columns: int) -> Tensor:
        """Return integer codes' scales [rows, groups]."""
        return self._spread(module + ".weight_scale", scheme, rows, columns, _SCALES, is_whole=True)

    def _zero(self, module: str, scheme: Scheme, rows: int, columns: int) -> Tensor:
        """Return zero points [rows, groups] int16 that are stored as the scales are."""
        name = module + ".weight_zero_point"
        return self._spread(name, scheme, rows, columns, ("I8",), is_whole=True).to(torch.int16)

    def _spread(
        self,
        name: str,
        scheme: Scheme,
        rows: int,
        columns: int,
        dtypes: tuple[str, ...],
        is_whole: bool = False,
    ) -> Tensor:
        """Return numbers [rows, groups] that are stored per tensor, per row, per group of inputs or per block.

        Args:
            name: the tensor.
            scheme: of the matrix.
            rows, columns: its shape.
            dtypes: in which they may be stored.
            is_whole: groups have to divide the inputs.
        """
        stored = self.entries[name].shape if name in self.entries else None
        if scheme.block is not None:
            high, wide = scheme.block
            if is_whole and columns % wide:
                raise ModelError(f"Blocks of {wide} do not divide the {columns} inputs of {name}.", OTHER_CONFIG)
            found = self.take(name, (-(-rows // high), -(-columns // wide)), dtypes)
            return found.repeat_interleave(high, 0)[:rows]
        groups = self._num_groups(name.rpartition(".")[0], scheme, columns, "", 1)
        if groups == 1 and stored in ((), (1,), (1, 1)):
            return self.take(name, stored, dtypes).reshape(1, 1).expand(rows, 1)
        if groups == 1 and stored == (rows,):
            return self.take(name, stored, dtypes).unsqueeze(1)
        return self.take(name, (rows, groups), dtypes)

    def _index(self, name: str, groups: int, columns: int) -> Tensor | None:
        """Return the group of each input where the files name them, and not in order."""
        if name not in self.entries:
            return None
        index = self.take(name, (columns,), ("I32", "I64")).long()
        if groups == 1 or not index.any() or bool((index == -1).all()):  # never filled: the order of the inputs
            return None
        if int(index.min()) < 0 or int(index.max()) >= groups:
            raise ModelError(f"Tensor {name} names a group outside 0 to {groups - 1}.", OTHER_CONFIG)
        ordered = torch.arange(columns) // (columns // groups)
        return None if torch.equal(index, ordered) else index

    def _check_shape(self, module: str, rows: int, columns: int) -> None:
        name = module + ".weight_shape"
        if name in self.entries:
            stated = self.take(name, (2,), ("I64", "I32")).tolist()
            if stated != [rows, columns]:
                raise ModelError(
                    f"Tensor {module}.weight has shape {stated}; {[rows, columns]} was expected.", OTHER_CONFIG
                )


def _module(name: str) -> str:
    """Return a module's name from its matrix's; names of other tensors as they are."""
    return name.removesuffix(".weight")


def _check_words(module: str, bits: int, rows: int, columns: int) -> None:
    if rows * bits % 32 or columns * bits % 32:
        raise ModelError(
            f"{module} is [{rows}, {columns}], which codes of {bits} bits do not fill whole words with.", OTHER_CONFIG
        )
