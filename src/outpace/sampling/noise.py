"""Counter-based noise: a pure function of who draws, where and for what, never of when or in which batch slot.

`uniform(key, ids)` gives one number in (0, 1) per token id, and `node_key` derives `key` from (row key, stream,
position, visit), so that plain decoding and any drafted decoding draw the same token at the same place. The mixing
function is the finaliser of splitmix64 (Steele, Lea, Flood 2014), which is integer arithmetic only: bit-identical on
every device.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from enum import IntEnum
from itertools import repeat

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Stream", "fork_key", "gumbel", "node_key", "place_in_step", "row_key", "uniform"]


class Stream(IntEnum):
    """Independent families of random numbers."""

    TARGET = 0
    DRAFT = 1
    ACCEPT = 2
    ORDER = 3


def _signed(value: int) -> int:
    """Return the int64 with the same 64 bits as a non-negative integer."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)
_U12, _U27, _U30, _U31 = np.uint64(12), np.uint64(27), np.uint64(30), np.uint64(31)
_UFIRST, _USECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def row_key(seed: int, sample: int = 0) -> int:
    """Return the key of sample number `sample` under `seed`: a signed 64-bit integer."""
    return _digest(f"row {seed} {sample}")


def fork_key(parent: int, number: int) -> int:
    """Return the key of fork `number` (n > 1, a beam) of the row with key `parent`."""
    return _digest(f"fork {parent} {number}")


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


@functools.lru_cache(maxsize=4096)
def _base(key: int, stream: int, visit: int) -> int:
    return _digest(f"node {key} {int(stream)} {visit}")


def node_key(keys: list[int], stream: Stream, position: Tensor, visit: int | Sequence[int] = 0) -> Tensor:
    """Return one key per drawn position.

    Args:
        keys: the B rows' keys.
        stream: which family of draws this is.
        position: [B, ...] int64, index of the drawn token in the row's sequence.
        visit: 0 where a position is drawn once; on a canvas, the reference steps taken before this draw; of all rows,
            or one of each.
    """
    visits = repeat(visit) if isinstance(visit, int) else visit
    bases = [_base(key, stream, number) for key, number in zip(keys, visits, strict=False)]
    base = torch.tensor(bases, dtype=torch.int64, device=position.device)
    return _mix(position * _GOLDEN + base.view(-1, *[1] * (position.dim() - 1)))


def place_in_step(lengths: Tensor, number: Tensor) -> Tensor:
    """Return stand-ins for positions, for draws that a step makes at places it may not reach.

    A rule that looks ahead is decided by draws at positions that stay open. The next step must not see them again, and
    no step begins at the same length, so these draws are keyed by (length at the step's beginning, number).

    Args:
        lengths: [B, ...] int64 final tokens when the step began.
        number: [B, ...] int64 from 0 to 2 ** 32 - 1, another one for each draw of the step and stream.
    """
    return (lengths << 32) + number


def uniform(key: Tensor, ids: Tensor) -> Tensor:
    """Return float64 uniforms in (0, 1), never 0 or 1: one per key and token id.

    Args:
        key: [...] int64 from `node_key`.
        ids: [..., K] or [K] int64 token ids.
    """
    bits = _mix(key.unsqueeze(-1) + ids * _GOLDEN)
    # 52 bits, so that adding one half is exact in float64 and 1.0 cannot occur.
    if is_on_host(bits):  # unsigned bits need no mask, and the arrays are small: numpy starts each pass sooner
        drawn = (bits.numpy().view(np.uint64) >> _U12).astype(np.float64)
        drawn += 0.5
        drawn *= 2.0**-52
        return torch.from_numpy(drawn)
    return ((bits >> 12) & ((1 << 52) - 1)).double().add_(0.5).mul_(2.0**-52)


def gumbel(key: Tensor, ids: Tensor) -> Tensor:
    """Return standard Gumbel noise, float64, shaped like `uniform`."""
    return uniform(key, ids).log_().neg_().log_().neg_()


def is_on_host(values: Tensor) -> bool:
    """Whether numpy may work on a tensor's own memory."""
    return type(values) is Tensor and values.device.type == "cpu"


def _mix(bits: Tensor) -> Tensor:
    """Apply the splitmix64 finaliser to fresh int64 bits, in place."""
    if is_on_host(bits):
        _mix_on_host(bits.numpy().view(np.uint64))
        return bits
    # int64 shifts are arithmetic, hence the masks.
    bits.bitwise_xor_((bits >> 30).bitwise_and_((1 << 34) - 1)).mul_(_FIRST)
    bits.bitwise_xor_((bits >> 27).bitwise_and_((1 << 37) - 1)).mul_(_SECOND)
    return bits.bitwise_xor_((bits >> 31).bitwise_and_((1 << 33) - 1))


def _mix_on_host(bits: npt.NDArray[np.uint64]) -> None:
    """Do the same to unsigned bits, whose shifts need no masks: a third of the operations."""
    bits ^= bits >> _U30
    bits *= _UFIRST
    bits ^= bits >> _U27
    bits *= _USECOND
    bits ^= bits >> _U31
