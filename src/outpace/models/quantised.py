"""Quantised matrices, whatever file they came from: integer codes, and per group of inputs a scale and a shift.

A weight is `scale * value + shift`, where `value` is the code itself or what a table says of it. Every block format of
GGUF, GPTQ, AWQ and compressed-tensors is of this form, exactly: the factors of a K-quant, an integer of 6 bits times a
float16, fit a float32. Kernels keep the codes and decide how to store the factors; `dense` is the slow reading of the
same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from outpace.errors import ModelError

__all__ = ["Quantised"]

BITS = (4, 5, 6, 8)
SMALLEST_GROUP = 16


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

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the matrix [out, in]; computed in float32, rounded once."""
        values = self.codes.float() if self.table is None else self.table[self.codes.long()].float()
        grouped = values.view(*self.scale.shape, -1)
        return (grouped * self.scale.unsqueeze(-1) + self.shift.unsqueeze(-1)).view(self.shape).to(dtype)
