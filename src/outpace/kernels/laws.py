"""The Python side of `laws.cpp`: what canvas rules ask of the laws of a whole batch, in one call."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_int64, c_void_p
from functools import partial

import numpy as np
import torch
from torch import Tensor

from outpace.sampling.measures import Measures, take

__all__ = ["offer"]


class _Call(Structure):
    """Mirror of the C++ `LawCall`."""

    _fields_ = [
        *[(name, c_int64) for name in ("is_bfloat16", "count", "vocab", "barred")],
        *[(name, c_void_p) for name in ("logits", "tokens", "found")],
    ]


def offer(library: ctypes.CDLL) -> None:
    """Let a loaded library look at laws from now on."""
    library.outpace_laws.argtypes = [c_void_p]
    library.outpace_laws.restype = None
    take(partial(_measure, library))


def _measure(library: ctypes.CDLL, logits: Tensor, barred: int) -> Measures | None:
    """Return what `outpace.sampling.measures.measure` returns; None where the call does not serve such logits."""
    if logits.device.type != "cpu" or logits.dtype not in (torch.float32, torch.bfloat16) or not logits.is_contiguous():
        return None
    rows, places, vocab = logits.shape
    tokens, found = np.empty((rows, places), np.int64), np.empty((4, rows, places), np.float32)
    call = _Call(
        int(logits.dtype == torch.bfloat16), rows * places, vocab, barred,
        logits.data_ptr(), tokens.ctypes.data, found.ctypes.data,
    )  # fmt: skip
    library.outpace_laws(ctypes.byref(call))
    return Measures(tokens, *found.astype(np.float64))
