"""The Python side of `draws.cpp`: the few tokens of each law that may win a draw."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_double, c_int64, c_void_p
from functools import partial

import numpy as np
import torch
from torch import Tensor

from outpace.sampling.draws import take

__all__ = ["offer"]

_KINDS = (torch.float64, torch.float32, torch.bfloat16)
_ROOM = 64  # a law seldom leaves more than a dozen


class _Call(Structure):
    """Mirror of the C++ `DrawCall`."""

    _fields_ = [
        *[(name, c_int64) for name in ("count", "vocab", "room", "bytes")],
        ("temperature", c_double),
        *[(name, c_void_p) for name in ("logits", "keys", "found", "sizes", "sound")],
    ]


def offer(library: ctypes.CDLL) -> None:
    """Let a loaded library look for tokens that may win from now on."""
    library.outpace_draws.argtypes = [c_void_p]
    library.outpace_draws.restype = None
    take(partial(_contenders, library))


def _contenders(library: ctypes.CDLL, logits: Tensor, temperature: float, key: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return what `outpace.sampling.draws.contenders` returns, and which laws [N] are any.

    None where a row has too many, or is of another kind.
    """
    if logits.dtype not in _KINDS or not logits.is_contiguous() or not key.is_contiguous() or not logits.numel():
        return None
    count, vocab = logits.shape
    found, sizes, sound = np.empty((count, _ROOM), np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    call = _Call(
        count, vocab, _ROOM, logits.element_size(), temperature,
        logits.data_ptr(), key.data_ptr(), found.ctypes.data, sizes.ctypes.data, sound.ctypes.data,
    )  # fmt: skip
    library.outpace_draws(ctypes.byref(call))
    most = int(sizes.max())
    if most > _ROOM:
        return None
    # A row with fewer than the others names its first one again, behind the rest: a tie goes to what comes first.
    ids = np.where(np.arange(most) < sizes[:, None], found[:, :most], found[:, :1])
    return torch.from_numpy(ids), torch.from_numpy(sound.astype(np.bool_))
