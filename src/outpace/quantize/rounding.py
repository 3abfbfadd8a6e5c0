"""Rounding a matrix to integer codes with one scale per group of inputs.

Scales are rounded first, to the type that the file stores, and codes are chosen under the rounded scale. The largest
value of a group does not give the best scale of 4 bits: shorter and longer steps are tried, and the one with the least
squared error is kept, as llama.cpp does for the types that it searches (`make_qx_quants`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.models.quantised import Quantised

__all__ = ["round_matrix"]

_STEPS = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.55)  # codes per unit, over those of the whole range
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
        if bits == 8:
            found = _centred(values, _stored(values.abs().amax(-1, keepdim=True) / 127, scale_dtype), 8)
        elif is_shifted:
            found = _search_shifted(values, scale_dtype)
        else:
            found = _search_centred(values, scale_dtype)
        if not all(bool(torch.isfinite(factors).all()) for factors in found[1:]):
            raise ModelError(f"Weights hold values that no scale in {str(scale_dtype)[6:]} can reach.")
        codes[part] = found[0].view(-1, columns).to(torch.uint8)
        scale[part], shift[part] = (factors.squeeze(-1) for factors in found[1:])
    return Quantised(codes, bits, scale, shift)


def _centred(values: Tensor, scale: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scale and shift of codes around zero."""
    half = 1 << (bits - 1)
    return (values * _inverse(scale)).round_().clamp_(-half, half - 1).add_(half), scale, scale * -half


def _search_centred(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same of 4 bits under the best scale; the largest value lies on the side that has one code more."""
    place = values.abs().argmax(-1, keepdim=True)
    most = -values.gather(-1, place) / 8
    best = least = torch.full_like(most, torch.inf)
    for longer in _STEPS:
        levels = (values * _inverse(most / longer)).round_().clamp_(-8, 7)
        # The scale of least squares under these levels.
        scale = _stored(
            (values * levels).sum(-1, keepdim=True) * _inverse(levels.square().sum(-1, keepdim=True)), dtype
        )
        error = levels.mul_(scale).sub_(values).square_().sum(-1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return _centred(values, best, 4)


def _search_shifted(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scale and shift of 4 bits, each code standing for shift + code * scale."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    middle, span, size = (low + high) / 2, (high - low) / 15, values.shape[-1]
    scale = shift = least = torch.full_like(low, torch.inf)
    for longer in _STEPS:
        step = span / longer
        levels = ((values - middle) * _inverse(step) + 7.5).round_().clamp_(0, 15)
        # The line of least squares through (level, value).
        mean, centre = levels.mean(-1, keepdim=True), values.mean(-1, keepdim=True)
        spread = levels.square().sum(-1, keepdim=True) - size * mean.square()
        slope = _stored(((levels * values).sum(-1, keepdim=True) - size * mean * centre) * _inverse(spread), dtype)
        start = _stored(centre - slope * mean, dtype)
        error = levels.mul_(slope).add_(start).sub_(values).square_().sum(-1, keepdim=True)
        is_better = error < least
        scale, shift = torch.where(is_better, slope, scale), torch.where(is_better, start, shift)
        least = torch.minimum(error, least)
    return ((values - shift) * _inverse(scale)).round_().clamp_(0, 15), scale, shift


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1.0 / scale)


def _stored(factors: Tensor, dtype: torch.dtype) -> Tensor:
    return factors.to(dtype).float()
