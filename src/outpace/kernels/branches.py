"""The Python side of `branches.cpp`: the best tree over laws of places ahead."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
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
        adds: [padded K / 32, rank, 32] in the type of the laws, zeros behind the K columns.
        first: what makes short vectors: [rank, hidden] float32 on embeddings, or [V, rank], a table; None = rank 0.
        is_table: which of them.
    """

    shorts: Tensor
    adds: Tensor
    first: Tensor | None = None
    is_table: bool = False

    @staticmethod
    def of(shorts: Tensor, matrix: Tensor, first: Tensor | None = None, is_table: bool = False) -> Pairs:
        """Return those of short vectors [K, rank] and a matrix [K, rank]."""
        size, rank = matrix.shape
        blocks = -(-size // PADDING)
        adds = matrix.new_zeros(blocks * PADDING, rank)
        adds[:size] = matrix.detach()
        adds = adds.view(blocks, PADDING, rank).transpose(1, 2).contiguous()
        first = None if first is None else first.detach().float()
        return Pairs(shorts.detach().float().contiguous(), adds, first, is_table)

    @staticmethod
    def none(size: int) -> Pairs:
        """Return those of a drafter that does not look at the token before a place."""
        return Pairs(torch.zeros(size, 0), torch.zeros(0, 0, PADDING))

    def short(self, token: Tensor, embedded: Tensor) -> Tensor:
        """Return the short vectors [B, rank] of any tokens [B], whose embeddings are [B, hidden]."""
        if self.first is None:
            return torch.zeros(len(token), 0)
        return self.first[token] if self.is_table else torch.nn.functional.linear(embedded, self.first)


class _Call(Structure):
    """Mirror of the C++ `BranchCall`."""

    _fields_ = [
        *[(name, c_int64) for name in ("is_bfloat16", "by_slot", "rows", "places", "vocab", "stride")],
        *[(name, c_int64) for name in ("budget", "width", "rank")],
        *[(name, c_double) for name in ("min_gain", "spread", "temperature")],
        *[(name, c_void_p) for name in ("floors", "laws", "shorts", "adds", "anchors", "ids", "levels", "keys")],
        *[(name, c_void_p) for name in ("tokens", "parents", "lengths", "scores")],
    ]


def can_branch(laws: Tensor) -> bool:
    """Return whether trees over such laws can be made in one call."""
    return laws.device.type == "cpu" and laws.dtype in (torch.bfloat16, torch.float32) and load() is not None


def best_branches(
    laws: Tensor,
    pairs: Pairs,
    anchors: Tensor,
    levels: Sequence[int],
    floors: Sequence[float],
    *,
    ids: Tensor | None = None,
    keys: Tensor | None = None,
    temperature: float = 1.0,
    width: int = 0,
    by_slot: bool = False,
    min_gain: float = -math.inf,
    spread: float = 1.0,
) -> tuple[Tensor, Tensor, list[int], Tensor]:
    """Return the best tree per row, as `outpace.draft.grow.draft_best` defines it.

    Args:
        laws: [B, D, K] logits, K side by side; bfloat16 or float32, as `pairs.adds`.
        pairs: what tokens add.
        anchors: [B, rank] float32 short vectors of the last tokens.
        levels: per row, most levels.
        floors: per rank, the least probability of a node; as many as there may be nodes in a row.
        ids: [K] int64 tokens of the columns; None = the columns are the tokens.
        keys: [B, D] int64 of the noise that is added, times `temperature`; None = none.
        temperature: see `keys`.
        width, by_slot, min_gain, spread: as in `draft_best`.

    Returns:
        Tokens and parents [B, N] int64, nodes per row, and log-probabilities [B, N] float64, -inf = padding.

    Raises:
        ConfigError: there is no memory for it.
    """
    library = load()
    assert library is not None  # `can_branch` was asked
    (rows, places, vocab), budget = laws.shape, len(floors)
    tokens, parents = torch.empty(2, rows, budget, dtype=torch.int64).unbind()
    lengths, scores = (c_int64 * rows)(), torch.empty(rows, budget, dtype=torch.float64)
    least, most_levels = (c_double * budget)(*floors), (c_int64 * rows)(*levels)
    anchors = anchors.float().contiguous()
    keys = None if keys is None else keys.contiguous()
    some_ids, some_keys = (None if one is None else one.data_ptr() for one in (ids, keys))
    call = _Call(
        int(laws.dtype == torch.bfloat16), int(by_slot), rows, places, vocab, laws.stride(1),
        budget, width, pairs.shorts.shape[1],
        min_gain, spread, temperature, ctypes.addressof(least),
        laws.data_ptr(), pairs.shorts.data_ptr(), pairs.adds.data_ptr(), anchors.data_ptr(),
        some_ids, ctypes.addressof(most_levels), some_keys,
        tokens.data_ptr(), parents.data_ptr(), ctypes.addressof(lengths), scores.data_ptr(),
    )  # fmt: skip
    if library.outpace_branches(ctypes.byref(call)):
        raise ConfigError(FAILURES[1])
    sizes = list(lengths)
    most = max(sizes, default=0)
    return tokens[:, :most], parents[:, :most], sizes, scores[:, :most]
