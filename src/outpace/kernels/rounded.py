"""Kernels that round plain weights to 8 bits as they pack them: a model is small and fast as soon as it is opened.

Codes are those of `outpace.models.rounding`, around zero, with a float16 scale for every 128 inputs, or as many as
divide a matrix. Products round their inputs too (`quantised.round_inputs`). A tied embedding is rounded with the head.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from outpace.kernels import decoder, library, shelf
from outpace.models.quantised import SMALLEST_GROUP, Quantised
from outpace.models.rounding import round_matrix
from outpace.models.spec import Spec
from outpace.models.weights import Matrix, Weights

__all__ = ["RoundedKernels", "round_weights"]

_GROUPS = (128, 64, 32, SMALLEST_GROUP)
_BITS = 8


class RoundedKernels:
    """The kernels of this package under `outpace.models.kernel_contract.Kernels`, with weights of 8 bits."""

    def supports(self, spec: Spec) -> bool:
        """Return whether decoders of this shape can be compiled."""
        return decoder.supports(spec)

    def new_packer(self, spec: Spec, dtype: torch.dtype) -> decoder.Packer | None:
        """Return what packs matrices that are quantised in the files: they stay as they are."""
        return decoder.new_packer(spec, dtype)

    def open_shelf(self, spec: Spec, dtype: torch.dtype, sources: Iterable[Path], variant: str) -> shelf.Shelf | None:
        """Return where the rounded weights are kept between starts."""
        return shelf.open_shelf(spec, dtype, sources, f"{variant} rounded to {_BITS} bits")

    def compile_decoder(
        self, spec: Spec, weights: Weights, dtype: torch.dtype, release: bool = False
    ) -> decoder.CompiledDecoder | None:
        """Round the weights, in place, and compile them."""
        if library.load() is None or not decoder.supports(spec):
            return None
        round_weights(weights)
        return decoder.compile_decoder(spec, weights, dtype, release)

    def note(self) -> str:
        """Return what was built, or why nothing was."""
        return library.note()

    def warnings(self) -> list[str]:
        """Return what a user should put right."""
        return library.warnings()


def round_weights(weights: Weights) -> None:
    """Round every plain matrix, the head and a tied embedding to 8 bits, in place.

    One whose inputs no group divides stays as it is, as do biases, norms, positions and an embedding of its own.

    Raises:
        ModelError: a weight is not finite.
    """
    is_tied = weights.is_tied
    for layer in weights.layers:
        for matrix in layer.all_matrices():
            _round(matrix)
    # A tied head shares its numbers with the embedding, which others may hold: it becomes a matrix of its own.
    if is_tied and weights.table is None:
        weights.table = weights.head
    _round(weights.head)


def _round(matrix: Matrix) -> None:
    outputs, inputs = matrix.shape
    group = next((size for size in _GROUPS if inputs % size == 0), 0)
    if matrix.weight is None or not group or not outputs:
        return
    rounded: Quantised = round_matrix(matrix.weight.detach(), _BITS, group)
    matrix.weight, matrix.quantised = None, rounded
