"""Rounding a matrix to integer codes with one scale per group of inputs.

A group's largest value sets its scale. In GGUF's types, whose scales are float16, codes are chosen before the scale is
rounded: bit for bit as llama.cpp does it. Scales of bfloat16 are so coarse that they are rounded first. With 4 bits and
more than 32 inputs the largest value leaves most codes to few values: there finer steps are tried too, and the scale is
kept that has the least squared error, weighted by the values' sizes. Unweighted, the error is lower and the model
worse: large weights shrink.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.models.quantised import Quantised

__all__ = ["round_matrix"]

_STEPS = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.55)  # codes per unit, over those of the whole range
_SIMPLE = 32  # inputs whose scale is not searched
_AT_ONCE = 1 << 18  # weights worked on together: they fit a cache


def round_matrix(
    weight: Tensor, bits: int, group: int, scale_dtype: torch.dtype = torch.float16, *, is_shifted: bool = False
) -> Quantised:
    """Return the nearest codes of a matrix.

    Args:
        weight: [out, in], any floating type.
        bits: 8 or 4.
        group: inputs per scale; divides `in`.
        scale_dtype: what the file stores scales and shifts in.
        is_shifted: 4 bits with a shift of their own per group, w = scale * code + shift; else codes are around zero.

    Raises:
        ModelError: a weight is not finite, or too large for a scale of this type.
    """
    rows, columns = weight.shape
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    scale, shift = (torch.empty(rows, columns // group) for _ in range(2))
    step = max(1, _AT_ONCE // columns)
    for at in range(0, rows, step):
        part = slice(at, min(at + step, rows))
        values = weight[part].float().view(-1, columns // group, group)
        if not torch.isfinite(values).all():
            raise ModelError("A weight is infinite or not a number.", "Fetch the model again.")
        if is_shifted:
            found = _shifted(values, scale_dtype)
        elif bits == 8:
            found = _centred(values, values.abs().amax(-1, keepdim=True) / 127, 8, scale_dtype)
        else:
            found = _centred(
                values, _most(values) if group <= _SIMPLE else _search(values, scale_dtype), 4, scale_dtype
            )
        if not all(bool(torch.isfinite(factors).all()) for factors in found[1:]):
            raise ModelError(f"Weights hold values that no scale in {str(scale_dtype)[6:]} can reach.")
        codes[part] = found[0].view(-1, columns).to(torch.uint8)
        scale[part], shift[part] = (factors.squeeze(-1) for factors in found[1:])
    return Quantised(codes, bits, scale, shift)


def _centred(values: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scale and shift of codes around zero; what lies between two codes goes as in GGUF."""
    half, stored = 1 << (bits - 1), _stored(scale, dtype)
    levels = values * _inverse(scale if dtype == torch.float16 else stored)
    if bits == 8:  # away from zero
        codes = levels.abs().add_(0.5).floor_().mul_(levels.sign()).add_(half)
    else:  # up
        codes = levels.add_(half + 0.5).floor_()
    return codes.clamp_(0, 2 * half - 1), stored, stored * -half


def _search(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the best scale of 4 bits around zero."""
    size = values.abs()
    most = _most(values)
    best = least = torch.full_like(most, torch.inf)
    for finer in _STEPS:
        levels = (values * _inverse(most / finer)).round_().clamp_(-8, 7)
        # The scale of weighted least squares under these levels.
        products, squares = size * values * levels, size * levels.square()
        scale = _stored(products.sum(-1, keepdim=True) * _inverse(squares.sum(-1, keepdim=True)), dtype)
        error = levels.mul_(scale).sub_(values).square_().mul_(size).sum(-1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def _most(values: Tensor) -> Tensor:
    """Return the scale under which the largest value has code -8, the side that has one code more."""
    return -values.gather(-1, values.abs().argmax(-1, keepdim=True)) / 8


def _shifted(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scale and shift of 4 bits, from the least value to the largest."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    scale = (high - low) / 15
    codes = ((values - low) * _inverse(scale) + 0.5).floor().clamp_(0, 15)
    return codes, _stored(scale, dtype), _stored(low, dtype)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1.0 / scale)


def _stored(factors: Tensor, dtype: torch.dtype) -> Tensor:
    return factors.to(dtype).float()
