"""The Python side of `lattice.cpp`: sums and maxima over the paths of lattices, in float32."""

from __future__ import annotations

import ctypes
import sys
from ctypes import Structure, c_int64, c_void_p

import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.errors import ConfigError
from outpace.kernels.library import FAILURES, load
from outpace.models.nar import lattice

__all__ = ["backward", "best_paths", "fits", "forward"]

_LANES, _NEVER = 32, -1e30


class _Call(Structure):
    """Mirror of the C++ `LatticeCall`."""

    _fields_ = [
        *[(name, c_int64) for name in ("rows", "tokens", "places", "reach")],
        *[(name, c_void_p) for name in ("emissions", "into", "sizes", "lengths", "reached", "found")],
        *[(name, c_void_p) for name in ("given", "emission_grad", "into_grad", "path")],
    ]


def fits(emissions: Tensor) -> bool:
    """Return whether these programs run compiled."""
    return emissions.device.type == "cpu" and emissions.dtype == torch.float32 and load() is not None


def forward(emissions: Tensor, into: Tensor, sizes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over all paths [B], and what was reached [B, T + 1, padded L]; see `models.nar.lattice`."""
    found, reached, _ = _run(emissions, into, sizes, lengths)
    return found, reached


def best_paths(emissions: Tensor, into: Tensor, sizes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the likeliest path's place of each token [B, T], and its log-probability [B]."""
    path = torch.zeros(emissions.shape[:2], dtype=torch.int64)
    found, _, _ = _run(emissions.detach().clamp(min=_NEVER), into, sizes, lengths, path=path)
    return path, found


def backward(
    emissions: Tensor, into: Tensor, sizes: Tensor, lengths: Tensor, reached: Tensor, found: Tensor, given: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `emissions` [B, T, L] and `into` [B, M, L], `given` [B] being that of `found`."""
    _, _, (first, second) = _run(emissions, into, sizes, lengths, (reached, found, given.contiguous().float()))
    size = emissions.shape[2]
    return first[:, :, :size], second[:, :, :size]


def _run(
    emissions: Tensor,
    into: Tensor,
    sizes: Tensor,
    lengths: Tensor,
    back: tuple[Tensor, Tensor, Tensor] | None = None,
    path: Tensor | None = None,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    rows, tokens, size = emissions.shape
    fill = -size % _LANES
    given_to, linked = (F.pad(part, (0, fill), value=_NEVER).contiguous() for part in (emissions, into))
    sizes, lengths = sizes.contiguous(), lengths.contiguous()
    grads = given_to[:0], given_to[:0]
    if back is None:
        reached, found = emissions.new_empty(rows, tokens + 1, size + fill), emissions.new_empty(rows)
        given = None
    else:
        (reached, found, given), grads = back, (torch.zeros_like(given_to), torch.zeros_like(linked))
    call = _Call(
        rows, tokens, size + fill, into.shape[1],
        given_to.data_ptr(), linked.data_ptr(), sizes.data_ptr(), lengths.data_ptr(),
        reached.data_ptr(), found.data_ptr(), None if given is None else given.data_ptr(),
        grads[0].data_ptr(), grads[1].data_ptr(), None if path is None else path.data_ptr(),
    )  # fmt: skip
    library = load()
    assert library is not None  # `fits` was asked
    if library.outpace_lattice(ctypes.byref(call)):
        raise ConfigError(FAILURES[1])
    return found, reached, grads


lattice.take(sys.modules[__name__])
