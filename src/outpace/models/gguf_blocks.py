"""The block formats of GGUF as codes, scales and shifts: exactly the numbers that they stand for.

A row is cut into blocks of 32 or 256 weights, which hold their factors and codes of 2 to 8 bits. Signed codes become
unsigned ones and a shift: a code's product with its scale fits a float32, so the sum is the same number.
Layouts: llama.cpp's ggml-common.h; `gguf.dequantize` is the tests' oracle.

In numpy: a file holds hundreds of matrices, whose small steps cost more to share among threads than to do, above all
where other processes keep the cores busy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outpace.models.quantised import Quantised
from outpace.text.gguf_file import BLOCKS

__all__ = ["PLAIN", "unpack"]

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]

# Types whose tensors are plain numbers.
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # halves of e2m1 numbers
_PER_BLOCK = {name: (weights, size) for name, weights, size in BLOCKS.values()}


def unpack(raw: Tensor, kind: str, shape: tuple[int, int]) -> Quantised:
    """Return the matrix that bytes stand for.

    Args:
        raw: [bytes] uint8, as many as the type takes for this shape.
        kind: a name of `BLOCKS` that is not in `PLAIN`.
        shape: outputs and inputs; the inputs fill whole blocks.
    """
    weights, size = _PER_BLOCK[kind]
    with np.errstate(invalid="ignore", over="ignore"):  # a damaged scale is what it is
        return _READERS[kind](raw.numpy().reshape(shape[0], shape[1] // weights, size))


# Parts of blocks: `b` is [out, blocks, bytes]


def _half(b: Bytes, at: int) -> Floats:
    """Return the float16 at a byte as float32 [out, blocks]."""
    return np.ascontiguousarray(b[..., at : at + 2]).view("<f2")[..., 0].astype(np.float32)


def _split(b: Bytes, run: int, bits: int) -> Bytes:
    """Cut bytes into codes: of each run of bytes first all lowest bits, then the next ones, and so on.

    Args:
        b: [out, blocks, n] uint8.
        run: bytes of a run; divides n.
        bits: per code, 1, 2 or 4.

    Returns:
        [out, blocks, n * 8 / bits] uint8.
    """
    out, blocks, count = b.shape
    source = np.ascontiguousarray(b).reshape(out, blocks, count // run, 1, run)
    found = source >> np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    found &= np.uint8((1 << bits) - 1)
    return found.reshape(out, blocks, -1)


def _made(codes: Bytes, bits: int, scale: Floats, shift: Floats, table: tuple[int, ...] = ()) -> Quantised:
    rows = len(codes)
    factors = [torch.from_numpy(part.reshape(rows, -1)) for part in (scale, shift)]
    looked_up = torch.tensor(table, dtype=torch.int8) if table else None
    return Quantised(torch.from_numpy(codes.reshape(rows, -1)), bits, factors[0], factors[1], looked_up)


# Blocks of 32


def _q4_0(b: Bytes) -> Quantised:
    scale = _half(b, 0)
    return _made(_split(b[..., 2:], 16, 4), 4, scale, -8 * scale)


def _q4_1(b: Bytes) -> Quantised:
    return _made(_split(b[..., 4:], 16, 4), 4, _half(b, 0), _half(b, 2))


def _q5_0(b: Bytes) -> Quantised:
    scale = _half(b, 0)
    return _made(_with_fifth(b, 2), 5, scale, -16 * scale)


def _q5_1(b: Bytes) -> Quantised:
    return _made(_with_fifth(b, 4), 5, _half(b, 0), _half(b, 2))


def _with_fifth(b: Bytes, at: int) -> Bytes:
    """Return codes of four bits with a fifth, of which 32 stand in the four bytes before them."""
    high = np.unpackbits(np.ascontiguousarray(b[..., at : at + 4]), axis=-1, bitorder="little")
    return _split(b[..., at + 4 :], 16, 4) | (high << np.uint8(4))


def _q8_0(b: Bytes) -> Quantised:
    scale = _half(b, 0)
    return _made(b[..., 2:] ^ np.uint8(0x80), 8, scale, -128 * scale)


def _iq4_nl(b: Bytes) -> Quantised:
    scale = _half(b, 0)
    return _made(_split(b[..., 2:], 16, 4), 4, scale, np.zeros_like(scale), _IQ4)


def _mxfp4(b: Bytes) -> Quantised:
    # The factor is half of two to the power e - 127; the least two of them are subnormal.
    exponent = b[..., 0].astype(np.uint32)
    tiny = np.uint32(0x00200000) << np.minimum(exponent, 1)
    scale = np.where(exponent < 2, tiny, (np.maximum(exponent, 1) - 1) << np.uint32(23)).view(np.float32)
    return _made(_split(b[..., 1:], 16, 4), 4, scale, np.zeros_like(scale), _FP4)


# Blocks of 256, whose factors are whole numbers times one or two of the block's


def _q2_k(b: Bytes) -> Quantised:
    scales, minima = b[..., :16] & np.uint8(15), b[..., :16] >> np.uint8(4)
    return _with_minima(_split(b[..., 16:80], 32, 2), 4, scales, minima, b, 80)


def _q4_k(b: Bytes) -> Quantised:
    return _with_minima(_split(b[..., 16:], 32, 4), 4, *_six_bits(b[..., 4:16]), b, 0)


def _q5_k(b: Bytes) -> Quantised:
    codes = _split(b[..., 48:], 32, 4) | (_split(b[..., 16:48], 32, 1) << np.uint8(4))
    return _with_minima(codes, 5, *_six_bits(b[..., 4:16]), b, 0)


def _with_minima(codes: Bytes, bits: int, scales: Bytes, minima: Bytes, b: Bytes, at: int) -> Quantised:
    """Two factors at a byte: one of the scales, one of what is taken off."""
    plus, minus = _half(b, at), -_half(b, at + 2)
    made = _made(codes, bits, plus[..., None] * scales, minus[..., None] * minima)
    made.coarse = (torch.from_numpy(plus), torch.from_numpy(minus))
    return made


def _six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Return eight scales and eight minima of six bits out of twelve bytes; the last four share their top bits."""
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=-1)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=-1)
    return scales, minima


def _q3_k(b: Bytes) -> Quantised:
    scales = _split(b[..., 96:104], 8, 4) | (_split(b[..., 104:108], 4, 2) << np.uint8(4))
    codes = _split(b[..., 32:96], 32, 2) | (_split(b[..., :32], 32, 1) << np.uint8(2))
    return _centred(codes, 4, scales.view(np.int8) - np.int8(32), _half(b, 108), 4)


def _q6_k(b: Bytes) -> Quantised:
    codes = _split(b[..., :128], 64, 4) | (_split(b[..., 128:192], 32, 2) << np.uint8(4))
    return _centred(codes, 6, np.ascontiguousarray(b[..., 192:208]).view(np.int8), _half(b, 208), 32)


def _centred(codes: Bytes, bits: int, scales: NDArray[np.int8], factor: Floats, middle: int) -> Quantised:
    """Return codes that stand for their distance from a middle."""
    scale = factor[..., None] * scales
    made = _made(codes, bits, scale, -middle * scale)
    made.coarse = (torch.from_numpy(factor), torch.from_numpy(-middle * factor))
    return made


def _iq4_xs(b: Bytes) -> Quantised:
    scales = _split(b[..., 4:8], 1, 4) | (_split(b[..., 2:4], 1, 2) << np.uint8(4))
    factor = _half(b, 0)
    scale = factor[..., None] * (scales.view(np.int8) - np.int8(32))
    made = _made(_split(b[..., 8:], 16, 4), 4, scale, np.zeros_like(scale), _IQ4)
    made.coarse = (torch.from_numpy(factor), torch.from_numpy(np.zeros_like(factor)))
    return made


_READERS: dict[str, Callable[[Bytes], Quantised]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}
