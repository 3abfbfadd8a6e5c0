"""The C interface of `decoder.cpp`: structures, argument types, and what its return codes mean."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from functools import partial

import torch
from torch import Tensor

from outpace.kernels.build import build
from outpace.kernels.draws import offer as offer_draws
from outpace.kernels.laws import offer
from outpace.sampling.truncation import use_selector

__all__ = [
    "FAILURES",
    "CallView",
    "Coded",
    "Coding",
    "CrossView",
    "LayerView",
    "MatrixView",
    "ModelView",
    "NormView",
    "Reader",
    "load",
    "note",
    "read_bandwidth",
    "warnings",
]

# Return codes of `outpace_forward` after 0 = done.
FAILURES = {
    1: "There is not enough memory for the buffers of this forward.",
    2: "A token id lies outside the vocabulary.",
    3: "A position lies beyond the model's context.",
    4: "The cache has too few slots for the tokens of this forward.",
    5: "An asked index lies outside the tokens of this forward.",
    6: "A source is empty, or longer than what is held of it.",
}

MOST_SELECTED = 64  # the largest top-k whose candidates are found from maxima of groups; there are 64 at least


class Coding(Structure):
    """Mirror of the C++ `Coding`: how a quantised matrix is stored; all zero = plain words."""

    _fields_ = [
        *[(name, c_int64) for name in ("bits", "group", "factors", "has_shift", "zero")],
        ("table", c_void_p),
    ]


class Coded(Structure):
    """Mirror of the C++ `Coded`: a quantised matrix before it is packed."""

    _fields_ = [
        ("coding", Coding),
        *[(name, c_int64) for name in ("outputs", "inputs")],
        ("codes", c_void_p),
        ("factors", c_void_p * 2),
        ("whole", c_void_p * 2),
    ]


class MatrixView(Structure):
    """Mirror of the C++ `MatrixView`."""

    _fields_ = [("coding", Coding), ("data", c_void_p)]


class NormView(Structure):
    """Mirror of the C++ `NormView`."""

    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class CrossView(Structure):
    """Mirror of the C++ `CrossView`."""

    _fields_ = [
        ("norm", NormView),
        ("query", MatrixView),
        ("query_bias", c_void_p),
        ("output", MatrixView),
        ("output_bias", c_void_p),
    ]


class LayerView(Structure):
    """Mirror of the C++ `LayerView`."""

    _fields_ = [
        ("attention_norm", NormView),
        ("qkv", MatrixView),
        *[(name, c_void_p) for name in ("qkv_bias", "query_norm", "key_norm")],
        ("output", MatrixView),
        ("output_bias", c_void_p),
        ("cross", CrossView),
        ("ffn_norm", NormView),
        ("up", MatrixView),
        ("up_bias", c_void_p),
        ("down", MatrixView),
        ("down_bias", c_void_p),
        *[(name, c_int64) for name in ("window", "rope")],
        ("distance", c_void_p),
    ]


class ModelView(Structure):
    """Mirror of the C++ `ModelView`."""

    _fields_ = [
        *[(name, c_int64) for name in ("is_bfloat16", "is_full", "block", "is_shifted")],
        *[(name, c_int64) for name in ("has_mean", "is_after", "is_parallel", "activation", "is_gated")],
        *[(name, c_int64) for name in ("vocab", "hidden", "layers", "heads", "kv_heads", "head_dim", "ffn")],
        *[(name, c_int64) for name in ("positions", "first_row", "reach")],
        *[(name, c_double) for name in ("norm_eps", "attention_scale", "embed_scale", "head_scale")],
        ("layer", POINTER(LayerView)),
        ("embedding", MatrixView),
        ("position_table", c_void_p),
        *[(name, NormView) for name in ("embed_norm", "final_norm")],
        ("head", MatrixView),
        ("head_bias", c_void_p),
    ]


class CallView(Structure):
    """Mirror of the C++ `Call`."""

    _fields_ = [
        *[(name, c_int64) for name in ("rows", "width", "asked", "threads", "ropes")],
        *[(name, c_int64) for name in ("page_size", "page_stride", "head_stride", "is_coded")],
        *[
            (name, c_void_p)
            for name in ("tokens", "position", "inputs", "visible", "lengths", "tables", "held", "buffers")
        ],
        *[(name, c_void_p) for name in ("ask", "skip", "turns", "logits", "taps", "cross", "sources")],
        ("source_slots", c_int64),
    ]


def load(machine: str | None = None) -> ctypes.CDLL | None:
    """Return the library with its argument types set, or None (see `note`)."""
    built = build(machine) if machine else build()
    library = built.library
    if library is None or library.outpace_forward.argtypes:
        return library
    library.outpace_new.argtypes = [POINTER(ModelView)]
    library.outpace_new.restype = c_void_p
    library.outpace_delete.argtypes = [c_void_p]
    library.outpace_delete.restype = None
    library.outpace_pack.argtypes = [c_int64, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64]
    library.outpace_pack.restype = None
    library.outpace_panel_bytes.argtypes = [POINTER(Coding), c_int64]
    library.outpace_panel_bytes.restype = c_int64
    library.outpace_pack_codes.argtypes = [POINTER(Coded), c_int64, c_void_p, c_int64]
    library.outpace_pack_codes.restype = None
    library.outpace_pack_head.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, c_int64]
    library.outpace_pack_head.restype = None
    library.outpace_rows.argtypes = [c_void_p, c_int64, c_void_p, c_int64, c_void_p]
    library.outpace_rows.restype = None
    library.outpace_advise.argtypes = [c_void_p, c_int64]
    library.outpace_advise.restype = None
    library.outpace_read.argtypes = [c_void_p, c_int64, c_int64]
    library.outpace_read.restype = c_double
    library.outpace_head.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, c_int64]
    library.outpace_head.restype = c_int64
    library.outpace_linear.argtypes = [POINTER(MatrixView), c_int64, c_void_p, *[c_int64] * 3, *[c_void_p] * 2, c_int64]
    library.outpace_linear.restype = c_int64
    library.outpace_select.argtypes = [c_int64, c_void_p, *[c_int64] * 4, c_void_p, c_void_p]
    library.outpace_select.restype = c_int64
    library.outpace_forward.restype = c_int64
    library.outpace_forward.argtypes = [c_void_p, POINTER(CallView)]
    use_selector(partial(_select, library))
    offer(library)
    offer_draws(library)
    return library


def _select(library: ctypes.CDLL, logits: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
    """List candidates for top-k, as `sampling.truncation.Selector` wants it."""
    if logits.dtype not in (torch.float32, torch.bfloat16) or not logits.is_contiguous() or count > MOST_SELECTED:
        return None
    (rows, vocab), capacity = logits.shape, 4 * count + MOST_SELECTED
    values, ids = torch.empty(rows, capacity), torch.empty(rows, capacity, dtype=torch.int64)
    given = (int(logits.dtype == torch.bfloat16), logits.data_ptr(), rows, vocab, count, capacity)
    size = library.outpace_select(*given, values.data_ptr(), ids.data_ptr())
    return None if size < count else (values[:, :size], ids[:, :size])


def note() -> str:
    """Return which library is loaded, or why none is."""
    return build().note


def warnings() -> list[str]:
    """Return what a user of compiled kernels should put right, though they work; mostly nothing."""
    return [warning] if (warning := build().warning) else []


def empty_buffer(library: ctypes.CDLL, num_bytes: int) -> Tensor:
    """Return uninitialised memory on huge pages where the system grants them; uint8, one-dimensional."""
    buffer = torch.empty(num_bytes, dtype=torch.uint8)
    library.outpace_advise(buffer.data_ptr(), num_bytes)
    return buffer


class Reader:
    """Reads a buffer of `num_bytes` once per call, as fast as the machine can: the floor for streaming weights."""

    def __init__(self, library: ctypes.CDLL, num_bytes: int) -> None:
        self._library = library
        self._buffer = empty_buffer(library, num_bytes)
        self._buffer.fill_(1)  # untouched pages would all be one page of zeros

    def __call__(self, threads: int | None = None) -> float:
        """Read with `threads` threads (None = torch's number) and return the seconds it took."""
        words, count = self._buffer.numel() // 4, threads or torch.get_num_threads()
        return float(self._library.outpace_read(self._buffer.data_ptr(), words, count))


def read_bandwidth(megabytes: int = 512, threads: int | None = None, repeats: int = 8) -> float:
    """Return the best of `repeats` reads of a buffer, in GB/s (10^9); 0 without the library.

    Args:
        megabytes: size of the buffer, in units of 2^20 bytes; well beyond the last cache to measure memory.
        threads: threads that share the read; None = torch's number.
        repeats: passes; the best counts, since others may use the machine.
    """
    library = load()
    if library is None:
        return 0.0
    reader = Reader(library, megabytes << 20)
    return 1e-9 * (megabytes << 20) / min(reader(threads) for _ in range(repeats))
