"""How the kernels store a quantised matrix: the same numbers, in the smallest form that holds them exactly."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from outpace.kernels.library import Coded, Coding
from outpace.models.quantised import Quantised

__all__ = ["Plan", "code"]

HALF, FLOAT, WHOLE = 0, 1, 2  # `Factors` in codes.h
BLOCK = 32
WIDE = 256  # inputs that share a float16 where factors are whole numbers
TABLE_ZERO = 128  # what is added to the signed entries of a table
LARGEST_ZERO = 255


@dataclass(slots=True)
class Plan:
    """What `outpace_pack_codes` reads, and the tensors that it points into; `table` has to outlive the panels."""

    coded: Coded
    table: Tensor | None
    kept: list[Tensor] = field(default_factory=list)

    def keep(self, tensor: Tensor) -> int:
        """Hold on to a tensor and return its address."""
        self.kept.append(tensor)
        return tensor.data_ptr()


def code(matrix: Quantised) -> Plan:
    """Return how a matrix is stored.

    Shifts that are one and the same multiple of the scales are a zero point. Factors are float16 where that holds them
    all; else whole numbers of 8 bits with a float16 per 256 inputs, if the file had them so; else float32.
    """
    codes, bits, shift, table = matrix.codes.contiguous(), matrix.bits, matrix.shift, None
    if matrix.table is not None:
        zero, has_shift = TABLE_ZERO, bool((shift != 0).any())
        if has_shift:  # no format has both; kernels take one or the other
            zero, shift = 0, shift - TABLE_ZERO * matrix.scale
        table = (matrix.table.to(torch.int16) + TABLE_ZERO).to(torch.uint8)
        if bits != 4:
            codes, bits, table = table[codes.long()], 8, None
    else:
        found = _zero_point(matrix.scale, matrix.shift)
        zero, has_shift = found or 0, found is None
    rows, columns = codes.shape
    coding = Coding(bits=bits, group=matrix.group, has_shift=has_shift, zero=zero)
    plan = Plan(Coded(outputs=rows, inputs=columns), table)
    if table is not None:
        coding.table = plan.keep(table)
    plan.coded.codes = plan.keep(codes)
    factors = [matrix.scale, shift] if has_shift else [matrix.scale]
    is_coarse = matrix.coarse is not None and all(f.shape == (rows, columns / WIDE) for f in matrix.coarse)
    coding.factors, stored, whole = _store(factors, matrix.coarse if is_coarse else None)
    for index, factor in enumerate(stored):
        if matrix.group < BLOCK and factor.shape[1] % 2:
            factor = torch.nn.functional.pad(factor, (0, 1))
        plan.coded.factors[index] = plan.keep(factor.contiguous())
    for index, factor in enumerate(whole):
        plan.coded.whole[index] = plan.keep(factor.contiguous())
    plan.coded.coding = coding
    return plan


def _zero_point(scale: Tensor, shift: Tensor) -> int | None:
    """Return the whole k with shift = -k * scale everywhere, or None."""
    where = scale.flatten().nonzero()
    if not len(where):
        return None if shift.any() else 0
    first = where[0, 0]
    ratio = float(-shift.flatten()[first] / scale.flatten()[first])
    if not 0 <= ratio <= LARGEST_ZERO or ratio != int(ratio) or not torch.equal(shift, scale * -ratio):
        return None
    return int(ratio)


def _store(factors: list[Tensor], coarse: tuple[Tensor, Tensor] | None) -> tuple[int, list[Tensor], list[Tensor]]:
    """Return the kind of factors, the factors in its type, and what whole numbers are multiplied with."""
    halves = [factor.half() for factor in factors]
    if all(torch.equal(half.float(), factor) for half, factor in zip(halves, factors, strict=True)):
        return HALF, halves, []
    if coarse is not None:
        found = [_whole(factor, whole) for factor, whole in zip(factors, coarse, strict=False)]
        if all(pair is not None for pair in found):
            pairs = [pair for pair in found if pair is not None]
            return WHOLE, [number for number, _ in pairs], [whole for _, whole in pairs]
    return FLOAT, factors, []


def _whole(factor: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return numbers of 8 bits and float16 with number * float16 = factor exactly, or None."""
    half = coarse.half()
    repeats = factor.shape[1] // coarse.shape[1]
    if repeats * coarse.shape[1] != factor.shape[1] or not torch.equal(half.float(), coarse):
        return None
    spread = coarse.repeat_interleave(repeats, 1)
    number = torch.where(spread == 0, 0.0, factor / spread).round()
    if number.min() < -128 or number.max() > 127 or not torch.equal(number * spread, factor):
        return None
    return number.to(torch.int8), half
