"""How many inputs share a scale, chosen for each matrix from its weights alone.

FineQuant (Kim et al., 2023, arXiv 2308.09723): a matrix begins with one scale per row, and its groups are cut as long
as that shrinks the range that a scale has to cover, so that matrices with outliers get small groups and calm ones large
groups. No data and no training are needed. The full text was not at hand, so the measure of "enough" is ours: a cut has
to shrink the range by more than the same bits would if codes had them. A code of one bit more halves the step, so with
groups of g inputs and scales of 16 bits a cut to h pays while

    log2(range(g) / range(h)) > 16 / h - 16 / g,

where the range is the root mean square of the groups' largest absolute values: the error of rounding is proportional to
it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outpace.papers import Paper

__all__ = ["PAPERS", "choose_group", "group_sizes"]

PAPERS = (
    Paper(
        "FineQuant: Unlocking Efficiency with Fine-Grained Weight-Only Quantization for LLMs",
        "Kim et al.",
        2023,
        "2308.09723",
        308,
        "The matrix products of GPUs; the text of the paper was not at hand, so when a cut pays is our own rule.",
        "outpace quantize stories --to int4 --group adaptive --format compressed-tensors",
    ),
)
_SMALLEST = 32
_SCALE_BITS = 16


def group_sizes(columns: int) -> list[int]:
    """Return the group sizes that a row of `columns` inputs can be cut into, largest first: halves, or nearly so."""
    return [size for size in range(columns, _SMALLEST - 1, -1) if columns % size == 0 and size % _SMALLEST == 0]


def choose_group(weight: Tensor) -> int:
    """Return the group size of a matrix [out, in]; `in` is a multiple of 32.

    Every size between a row and 32 inputs that divides both is a step; widths that are powers of two are halved.
    """
    rows, columns = weight.shape
    pieces = weight.abs().float().view(rows, -1, _SMALLEST).amax(-1)  # ranges of the smallest groups make all others
    best, known = columns, _range(pieces, columns)
    for size in group_sizes(columns)[1:]:
        found = _range(pieces, size)
        if not torch.log2(known / found) > _SCALE_BITS / size - _SCALE_BITS / best:  # all zero: not a number
            break
        best, known = size, found
    return best


def _range(pieces: Tensor, size: int) -> Tensor:
    """Return the root mean square of the groups' ranges."""
    return pieces.view(len(pieces), -1, size // _SMALLEST).amax(-1).double().square().mean().sqrt()
