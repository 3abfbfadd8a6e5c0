"""Matrices of drafters and of small models as bytes: whole numbers of -127 to 127 per row, times a scale of the row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from outpace.models.quantised import Quantised

__all__ = ["SCALE", "as_quantised", "expand", "joined", "rounded", "split"]

SCALE = "_scale"  # behind a matrix's name: float32 [out]
_LEAST = 1 << 12  # numbers of a matrix; what a smaller one would save is nothing
_ZERO = 128  # codes of `Quantised` are unsigned
_STEP = 32  # inputs that kernels take together


def split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with every matrix as int8 [out, in], and its scales [out] float32 beside it.

    A row's largest magnitude is 127, so that rounding what was rounded before changes nothing.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or tensor.numel() < _LEAST or not tensor.is_floating_point():
            found[name] = tensor
            continue
        weight = tensor.detach().float()
        scale = weight.abs().amax(-1) / 127
        found[name] = (weight / scale.clamp(min=1e-30).unsqueeze(-1)).round().to(torch.int8)
        found[name + SCALE] = scale
    return found


def joined(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Quantised]]:
    """Return what `split` made as float32 tensors, and the matrices that kernels can read as bytes."""
    bytes_of = {name for name, tensor in tensors.items() if tensor.dtype == torch.int8 and name + SCALE in tensors}
    scales = {name + SCALE for name in bytes_of}
    plain = {name: tensor for name, tensor in tensors.items() if name not in scales}
    coded = {}
    for name in bytes_of:
        scale = tensors[name + SCALE]
        plain[name] = expand(tensors[name], scale)
        if plain[name].shape[1] % _STEP == 0:
            coded[name] = as_quantised(tensors[name], scale)
    return plain, coded


def expand(codes: Tensor, scale: Tensor) -> Tensor:
    """Return int8 codes [out, in] with scales [out] as float32."""
    return codes.float() * scale.float().unsqueeze(-1)


def as_quantised(codes: Tensor, scale: Tensor) -> Quantised:
    """Return int8 codes [out, in], in a multiple of 32, and scales [out] as products read them."""
    scale = scale.float().unsqueeze(-1)
    return Quantised((codes.to(torch.int16) + _ZERO).to(torch.uint8), 8, scale, -_ZERO * scale)


def rounded(weight: Tensor) -> Quantised | None:
    """Return a matrix [out, in] rounded to bytes per row; None where kernels cannot read it so."""
    if weight.shape[1] % _STEP:
        return None
    found = split({"": weight})
    return as_quantised(found[""], found[SCALE]) if SCALE in found else None
