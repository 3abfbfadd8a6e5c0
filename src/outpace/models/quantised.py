"""Quantised matrices, whatever file they came from: integer codes, and per group of inputs a scale and a shift.

A weight is `scale * value + shift`, where `value` is the code itself or what a table says of it. Every block format of
GGUF, GPTQ, AWQ and compressed-tensors is of this form, exactly: the factors of a K-quant, an integer of 6 bits times a
float16, fit a float32. Kernels keep the codes and decide how to store the factors; `dense` is the slow reading of the
same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outpace.errors import ModelError

__all__ = ["Quantised", "join", "round_inputs"]

BITS = (4, 5, 6, 8)
SMALLEST_GROUP = 16
BLOCK = 32  # inputs that are rounded together in a product


@dataclass(slots=True)
class Quantised:
    """One matrix [out, in].

    Attributes:
        codes: [out, in] uint8, each below 2 ** bits.
        bits: 4, 5, 6 or 8.
        scale: [out, groups] float32; group g speaks of inputs g * size to (g + 1) * size, size = in / groups, 16 or a
            multiple of 32.
        shift: [out, groups] float32.
        table: [2 ** bits] int8 that codes stand for, or None where they stand for themselves.
        coarse: how the factors were stored, where they are products, so that kernels can store them so too: float32
            [out, in / 256] factors of `scale` and of `shift`, with which each is a whole number of 8 bits (-128 to 127
            or 0 to 255) times its factor; None = factors of their own.

    Raises:
        ModelError: shapes, types or group sizes do not agree.
    """

    codes: Tensor
    bits: int
    scale: Tensor
    shift: Tensor
    table: Tensor | None = None
    coarse: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        rows, columns = self.codes.shape
        groups = self.scale.shape[-1]
        if self.codes.dtype != torch.uint8 or self.bits not in BITS or self.scale.dtype != torch.float32:
            raise ModelError("Codes have to be uint8 of 4, 5, 6 or 8 bits, and scales float32.")
        if self.scale.shape != (rows, groups) or self.shift.shape != (rows, groups) or not groups or columns % groups:
            raise ModelError(f"Scales of {list(self.scale.shape)} do not fit codes of {[rows, columns]}.")
        if self.table is not None and (self.table.shape != (2**self.bits,) or self.table.dtype != torch.int8):
            raise ModelError(f"A table of codes of {self.bits} bits holds {2**self.bits} numbers of 8 bits.")
        if self.group != SMALLEST_GROUP and self.group % 32:
            raise ModelError(f"Groups of {self.group} inputs are not known here: 16, or a multiple of 32.")

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        rows, columns = self.codes.shape
        return rows, columns

    @property
    def group(self) -> int:
        """Inputs per scale."""
        return int(self.codes.shape[1] // self.scale.shape[1])

    def rows(self, index: Tensor) -> Quantised:
        """Return some rows, in that order (index [K] int64)."""
        coarse = None if self.coarse is None else (self.coarse[0][index], self.coarse[1][index])
        return Quantised(self.codes[index], self.bits, self.scale[index], self.shift[index], self.table, coarse)

    def product(self, x: Tensor) -> Tensor:
        """Return x W^T [..., out] as kernels compute it, slowly: x is rounded (`round_inputs`), sums are float64."""
        return (round_inputs(x) @ self.dense(torch.float64).T).to(x.dtype)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the matrix [out, in]; computed in float32, rounded once."""
        values = self.codes.float() if self.table is None else self.table[self.codes.long()].float()
        grouped = values.view(*self.scale.shape, -1)
        return (grouped * self.scale.unsqueeze(-1) + self.shift.unsqueeze(-1)).view(self.shape).to(dtype)


def round_inputs(x: Tensor) -> Tensor:
    """Return inputs [..., in] as products with quantised matrices read them, in float64.

    Per block of 32 they are whole numbers from -127 to 127, ties to even, times the largest magnitude over 127, in
    float32. What is not finite spoils its block.
    """
    width = x.shape[-1]
    blocks = torch.nn.functional.pad(x.float(), (0, -width % BLOCK)).unflatten(-1, (-1, BLOCK))
    top = blocks.abs().amax(-1, keepdim=True)
    codes = (blocks * torch.where((top > 1e-30) & top.isfinite(), 127 / top, 0.0)).round()
    rounded: Tensor = codes.double() * (top / 127).double()
    return rounded.flatten(-2)[..., :width]


def join(parts: Sequence[Quantised]) -> Quantised:
    """Return matrices of equal inputs as one, rows after rows; what differs is brought to the wider form, exactly."""
    first, *rest = parts
    if any(not _is_alike(first, part) for part in rest):
        group = math.gcd(*(part.group for part in parts))  # 64 and 96 meet in 32
        parts = [_without_table(part) for part in parts]
        bits = max(part.bits for part in parts)
        parts = [_in_form(part, bits, group) for part in parts]
    coarse = None
    pairs = [part.coarse for part in parts if part.coarse is not None]
    if len(pairs) == len(parts):
        coarse = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
    codes, scale, shift = (torch.cat([getattr(p, name) for p in parts]) for name in ("codes", "scale", "shift"))
    return Quantised(codes, parts[0].bits, scale, shift, parts[0].table, coarse)


def _is_alike(a: Quantised, b: Quantised) -> bool:
    if (a.table is None) != (b.table is None) or (a.bits, a.group) != (b.bits, b.group):
        return False
    return a.table is None or b.table is None or torch.equal(a.table, b.table)


def _in_form(matrix: Quantised, bits: int, group: int) -> Quantised:
    """Return a matrix with wider codes and smaller groups."""
    scale, shift = (f.repeat_interleave(matrix.group // group, 1) for f in (matrix.scale, matrix.shift))
    return Quantised(matrix.codes, bits, scale, shift)


def _without_table(matrix: Quantised) -> Quantised:
    """Return a matrix whose codes stand for themselves."""
    if matrix.table is None:
        return matrix
    codes = (matrix.table.to(torch.int16) + 128).to(torch.uint8)[matrix.codes.long()]
    return Quantised(codes, 8, matrix.scale, matrix.shift - 128 * matrix.scale)
