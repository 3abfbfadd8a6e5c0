"""The Python side of `branches.cpp`: the best tree over laws of places ahead."""

from __future__ import annotations

import ctypes
import math
from ctypes import Structure, c_double, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.kernels.decoder import PADDING
from outpace.kernels.library import FAILURES, load

__all__ = ["Pairs", "best_branches", "can_branch"]


@dataclass(frozen=True, slots=True)
class Pairs:
    """What a token adds to the logits of the next place: `shorts[token] @ adds`.

    Attributes:
        shorts: [K, rank] float32, of the tokens that can be drafted; rank 0 = nothing is added.
        adds: [rank, padded K] float32, zeros behind the K columns.
    """

    shorts: Tensor
    adds: Tensor

    @staticmethod
    def of(shorts: Tensor, matrix: Tensor) -> Pairs:
        """Return those of short vectors [K, rank] and a matrix [K, rank]."""
        size = len(matrix)
        adds = torch.zeros(matrix.shape[1], -(-size // PADDING) * PADDING)
        adds[:, :size] = matrix.detach().float().T
        return Pairs(shorts.detach().float().contiguous(), adds)

    @staticmethod
    def none(size: int) -> Pairs:
        """Return those of a drafter that does not look at the token before a place."""
        return Pairs(torch.zeros(size, 0), torch.zeros(0, 0))


class _Call(Structure):
    """Mirror of the C++ `BranchCall`."""

    _fields_ = [
        *[(name, c_int64) for name in ("is_bfloat16", "by_slot", "rows", "places", "vocab", "stride")],
        *[(name, c_int64) for name in ("budget", "width", "rank")],
        *[(name, c_double) for name in ("floor", "min_gain", "spread", "temperature")],
        *[(name, c_void_p) for name in ("laws", "shorts", "adds", "anchors", "ids", "levels", "keys")],
        *[(name, c_void_p) for name in ("tokens", "parents", "lengths", "scores")],
    ]


def can_branch(laws: Tensor) -> bool:
    """Return whether trees over such laws can be made in one call."""
    return laws.device.type == "cpu" and laws.dtype in (torch.bfloat16, torch.float32) and load() is not None


def best_branches(
    laws: Tensor,
    pairs: Pairs,
    anchors: Tensor,
    levels: Tensor,
    budget: int,
    *,
    ids: Tensor | None = None,
    keys: Tensor | None = None,
    temperature: float = 1.0,
    width: int = 0,
    by_slot: bool = False,
    floor: float = 0.0,
    min_gain: float = -math.inf,
    spread: float = 1.0,
) -> tuple[Tensor, Tensor, list[int], Tensor]:
    """Return the best tree per row, as `outpace.draft.grow.draft_best` defines it.

    Args:
        laws: [B, D, K] logits, K side by side.
        pairs: what tokens add.
        anchors: [B, rank] float32 short vectors of the last tokens.
        levels: [B] int64 most levels.
        budget: most nodes of a row.
        ids: [K] int64 tokens of the columns; None = the columns are the tokens.
        keys: [B, D] int64 of the noise that is added, times `temperature`; None = none.
        temperature: see `keys`.
        width, by_slot, floor, min_gain, spread: as in `draft_best`.

    Returns:
        Tokens and parents [B, N] int64, nodes per row, and log-probabilities [B, N] float64, -inf = padding.

    Raises:
        ConfigError: there is no memory for it.
    """
    library = load()
    assert library is not None  # `can_branch` was asked
    rows, places, vocab = laws.shape
    tokens, parents = torch.empty(2, rows, budget, dtype=torch.int64).unbind()
    lengths, scores = torch.empty(rows, dtype=torch.int64), torch.empty(rows, budget, dtype=torch.float64)
    anchors, levels = anchors.float().contiguous(), levels.contiguous()
    keys = None if keys is None else keys.contiguous()
    call = _Call(
        int(laws.dtype == torch.bfloat16), int(by_slot), rows, places, vocab, laws.stride(1),
        budget, width, pairs.shorts.shape[1],
        floor, min_gain, spread, temperature,
        laws.data_ptr(), pairs.shorts.data_ptr(), pairs.adds.data_ptr(), anchors.data_ptr(),
        None if ids is None else ids.data_ptr(), levels.data_ptr(), None if keys is None else keys.data_ptr(),
        tokens.data_ptr(), parents.data_ptr(), lengths.data_ptr(), scores.data_ptr(),
    )  # fmt: skip
    if library.outpace_branches(ctypes.byref(call)):
        raise ConfigError(FAILURES[1])
    sizes = lengths.tolist()
    most = max(sizes, default=0)
    return tokens[:, :most], parents[:, :most], sizes, scores[:, :most]
