"""The weights of one stack of layers in the layout that the forward reads: fused matrices, plain or packed for oneDNN.

Shapes: V vocabulary, E hidden, H query heads, K key heads, D head size, F MLP width. Matrices are [out, in].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from outpace.models.quantised import Quantised

if TYPE_CHECKING:
    from outpace.models.mixture import Mixture

__all__ = ["CrossWeights", "LayerWeights", "Matrix", "Norm", "Packer", "Weights", "can_pack"]


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether oneDNN prepacked matrices exist for this dtype on this device."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Matrix:
    """y = x W^T + b. `weight` is [out, in], or `quantised` holds it.

    Both are None once it is packed: after `pack`, oneDNN's own layout takes its place in `packed`, and what compiled
    kernels make of it is `panels`.
    """

    __slots__ = ("bias", "packed", "panels", "quantised", "shape", "weight")

    def __init__(self, weight: Tensor | Quantised, bias: Tensor | None = None) -> None:
        self.weight: Tensor | None = None if isinstance(weight, Quantised) else weight
        self.quantised: Quantised | None = weight if isinstance(weight, Quantised) else None
        self.bias = bias
        self.packed: Tensor | None = None
        self.panels: object | None = None
        self.shape = tuple(weight.shape)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x [N, in], giving [N, out]."""
        if self.packed is not None:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
            return out
        if self.quantised is not None:
            out = self.quantised.product(x)
            return out if self.bias is None else out + self.bias
        return F.linear(x, self.weight, self.bias)  # type: ignore[arg-type]

    def pack(self, keep: bool = False) -> None:
        """Reorder for oneDNN and free the plain copy, unless `keep` (the matrix is also an embedding)."""
        if self.packed is None and self.weight is not None and self.weight.numel():
            with torch.no_grad():
                self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)
            if not keep:
                self.weight = None

    def dense(self) -> Tensor:
        """Return the plain [out, in] matrix (a copy when packed); of a quantised one in float32."""
        if self.weight is not None:
            return self.weight
        if self.quantised is not None:
            return self.quantised.dense()
        assert self.packed is not None
        return self.packed.to_dense().view(self.shape)

    def rows(self, index: Tensor) -> Matrix:
        """Return some rows (index [K] int64) as a matrix of the same form."""
        weight = self.dense()[index] if self.quantised is None else self.quantised.rows(index)
        return Matrix(weight, None if self.bias is None else self.bias[index])

    def release(self) -> None:
        """Free what the matrix holds: others do."""
        self.weight = self.packed = self.quantised = None


class Packer(Protocol):
    """Takes matrices one by one as they are read, so that memory never holds a model twice."""

    def pack(self, matrix: Matrix, is_gated: bool = False) -> None:
        """Turn a matrix into `Matrix.panels` and free its own form; gated: the first half of its rows is the gate."""
        ...


@dataclass(slots=True)
class Norm:
    """Scale (offset already added) and optional bias of a norm. Both None: normalise only."""

    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass(slots=True)
class CrossWeights:
    """The part of a layer that looks at an encoder's states.

    `kv` is [2 * K * D, E of the encoder], rows of key, then of value; it is applied once per source.
    """

    q: Matrix  # [H * D, E]
    kv: Matrix
    o: Matrix  # [E, H * D]
    norm: Norm | None = None

    def matrices(self) -> tuple[Matrix, Matrix, Matrix]:
        """Return the three matrices."""
        return self.q, self.kv, self.o


@dataclass(slots=True)
class LayerWeights:
    """One layer. `qkv` is [(H + 2K) * D, E], rows of query, key, value; head rows lie in `rotary_order`.

    `up` is [2F, E] with the gate first when the MLP is gated, else [F, E]. Norms that the placement does not use
    are None. `relative` is [2R + 1, H] with R = `Spec.relative_distance`: row R + clamp(d, -R, R) is what is added to
    the products of a query and a key that stands d positions before it. Layers may share one table.

    With a `mixture`, `up` and `down` are the expert that every token passes, and have no rows where there is none.
    """

    qkv: Matrix
    o: Matrix  # [E, H * D]
    up: Matrix
    down: Matrix  # [E, F]
    attn_norm: Norm | None = None
    mlp_norm: Norm | None = None
    attn_post_norm: Norm | None = None
    mlp_post_norm: Norm | None = None
    q_norm: Tensor | None = None  # [D] per head or [H * D] over all
    k_norm: Tensor | None = None
    relative: Tensor | None = None
    cross: CrossWeights | None = None
    mixture: Mixture | None = None

    def matrices(self) -> tuple[Matrix, Matrix, Matrix, Matrix]:
        """Return the four matrices in the order they are applied; those of `cross` are apart."""
        return self.qkv, self.o, self.up, self.down

    def all_matrices(self) -> tuple[Matrix, ...]:
        """Return the four matrices, and those of `cross`."""
        own = self.matrices() if self.cross is None else (*self.matrices(), *self.cross.matrices())
        return own if self.mixture is None else (*own, *self.mixture.matrices())


@dataclass(slots=True)
class Weights:
    """All weights. A tied head is a `Matrix` whose weight is the embedding itself.

    A quantised embedding is `table` (the head itself, when tied); `embed` is empty then, but for its dtype, as it is
    where compiled kernels hold the only copy.
    """

    embed: Tensor  # [V, E] (or [V, embed_size])
    layers: list[LayerWeights]
    head: Matrix  # [V, E]
    final_norm: Norm | None = None
    embed_norm: Norm | None = None
    positions: Tensor | None = None  # [max_positions + offset, E], learned positions
    project_in: Matrix | None = None  # OPT 350m
    project_out: Matrix | None = None
    table: Matrix | None = None  # [V, E]
    notes: list[str] = field(default_factory=list)

    def pack(self) -> None:
        """Pack every matrix, one after the other, so that memory never doubles.

        A tied head is packed beside the embedding only where that copy stays under a quarter of the layers' memory.
        """
        sizes = [rows * columns for layer in self.layers for rows, columns in (m.shape for m in layer.all_matrices())]
        for layer in self.layers:
            for matrix in layer.all_matrices():
                matrix.pack()
        if self.head.shape[0] and (not self.is_tied or 4 * self.embed.numel() <= sum(sizes)):
            self.head.pack(keep=False)

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.head.weight is self.embed or self.head is self.table

    def tensors(self) -> Iterator[Tensor]:
        """Yield every stored tensor once."""
        seen: set[int] = set()
        for tensor in self._all():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor

    def _all(self) -> Iterator[Tensor | None]:
        yield from (self.embed, self.positions)
        for matrix in (self.head, self.project_in, self.project_out, self.table):
            if matrix is not None:
                yield from _stored(matrix)
        for norm in (self.final_norm, self.embed_norm):
            yield from _norm(norm)
        for layer in self.layers:
            for matrix in layer.all_matrices():
                yield from _stored(matrix)
            for norm in (layer.attn_norm, layer.mlp_norm, layer.attn_post_norm, layer.mlp_post_norm):
                yield from _norm(norm)
            yield from _norm(None if layer.cross is None else layer.cross.norm)
            yield from (layer.q_norm, layer.k_norm, layer.relative)
            if layer.mixture is not None:
                yield from (layer.mixture.router, layer.mixture.bias)

    @property
    def num_bytes(self) -> int:
        """Memory of all stored tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())


def _norm(norm: Norm | None) -> Iterator[Tensor | None]:
    if norm is not None:
        yield from (norm.weight, norm.bias)


def _stored(matrix: Matrix) -> Iterator[Tensor | None]:
    yield from (matrix.weight, matrix.packed, matrix.bias)
    if matrix.quantised is not None:
        yield from (matrix.quantised.codes, matrix.quantised.scale, matrix.quantised.shift)
