"""From named tensors to `Weights`: fused, transposed, reordered, and every shape checked on the way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.models.families import Family
from outpace.models.mixture import Mixture, Routing
from outpace.models.quantised import Quantised, join
from outpace.models.spec import Spec, rotary_order
from outpace.models.tensors import TensorFiles
from outpace.models.weights import LayerWeights, Matrix, Norm, Packer, Weights

__all__ = ["Reader", "assemble", "assemble_layer", "check_unused"]

Shuffle = Callable[[Tensor], Tensor]


class Split(Protocol):
    """Cuts a model's weights into shares, one per process; see `outpace.models.parallel`."""

    def layer(self, layer: LayerWeights, spec: Spec) -> LayerWeights:
        """Return a layer's share; `spec` is the whole model's."""
        ...

    def head(self, weights: Weights) -> Weights:
        """Return what lies outside the layers, with this share's part of the head."""
        ...


def assemble(
    files: TensorFiles,
    spec: Spec,
    family: Family,
    dtype: torch.dtype,
    device: torch.device,
    pack: bool,
    packer: Packer | None = None,
    split: Split | None = None,
) -> Weights:
    """Read all weights; every tensor of the files is used, every parameter is filled, or `ModelError`.

    Args:
        files: the tensors by name.
        spec: the decoder's shape.
        family: the names of its tensors.
        dtype: what plain matrices are converted to.
        device: where to put them.
        pack: reorder the layers' matrices for oneDNN.
        packer: keeps quantised matrices as they are stored; None = they are read as plain ones.
        split: keeps a process's share of each layer, as soon as it is read; None = all of it.
    """
    reader = Reader(files, spec, family, dtype, device, packer)
    weights = reader.outer() if split is None else split.head(reader.outer())
    for index in range(spec.num_layers):
        layer = reader.layer(index) if split is None else split.layer(reader.layer(index), spec)
        for matrix in layer.all_matrices():  # at once, so that one matrix exists twice, never the model
            if pack:
                matrix.pack()
            elif packer is not None and matrix.quantised is not None:
                packer.pack(matrix, is_gated=spec.is_gated and matrix is layer.up)
        weights.layers.append(layer)
    check_unused(files, family.ignored)
    return weights


def check_unused(files: TensorFiles, ignored: Iterable[str]) -> None:
    """Refuse tensors that nobody read, but for parts that others read and names that match a pattern.

    Raises:
        ModelError: there is one.
    """
    patterns = [re.compile(pattern) for pattern in ignored]
    unused = [name for name in files.unused() if not any(pattern.search(name) for pattern in patterns)]
    unused = [name for name in unused if not _is_module(name, files)]
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        raise ModelError(
            f"Tensor {unused[0]} {list(files.entries[unused[0]].shape)}{more} has no place in this model; none was "
            "expected.",
            hint="The files are not of this config.json.",
        )


def assemble_layer(
    files: TensorFiles, spec: Spec, family: Family, prefix: str, dtype: torch.dtype, device: torch.device
) -> LayerWeights:
    """Read one layer that lies elsewhere in the files: `prefix` stands where "model.layers.N." stands as a rule.

    Args:
        files: the tensors by name.
        spec: a decoder of one such layer.
        family, dtype, device: as for `assemble`.

    Raises:
        ModelError: a tensor is missing or has another shape.
    """
    names = {role: prefix + name.split("{}.", 1)[1] for role, name in family.layer.items()}
    reader = Reader(files, spec, replace(family, layer=names), dtype, device, None)
    reader.prefix = ""
    return reader.layer(0)


def _is_module(name: str, files: TensorFiles) -> bool:
    """Return whether a tensor is part of a multi-token module, which `outpace.heads.stored` reads."""
    if re.search(r"^(model\.)?mtp(_layers)?\.", name):
        return True
    layer = re.search(r"^(model\.)?layers\.\d+\.", name)
    return layer is not None and layer[0] + "eh_proj.weight" in files


class Reader:
    """Finds tensors by role and puts them into the forward's layout."""

    def __init__(
        self,
        files: TensorFiles,
        spec: Spec,
        family: Family,
        dtype: torch.dtype,
        device: torch.device,
        packer: Packer | None,
    ) -> None:
        self.packer = packer
        self.files, self.spec, self.family, self.dtype, self.device = files, spec, family, dtype, device
        embed = family.outer["embed"] + ".weight"
        known = [prefix for prefix in family.prefixes if prefix + embed in files]
        known = known or [prefix for prefix in family.prefixes if any(n.startswith(prefix) for n in files.entries)]
        self.prefix = known[0] if known else family.prefixes[0]
        self.order = torch.tensor(rotary_order(spec)) if spec.positions == "rotary" else torch.empty(0)
        self.is_ordered = self.order.tolist() == sorted(self.order.tolist())

    # Whole parts

    def outer(self) -> Weights:
        """Read what lies outside the layers."""
        spec, names = self.spec, self.family.outer
        width = spec.embed_size or spec.hidden_size
        table = self._quantised(self._embed_name(), spec.vocab_size, width)
        if table is None:
            embed = self._read(self._embed_name(), (spec.vocab_size, width))
            weights = Weights(embed=embed, layers=[], head=self._head(embed))
        else:
            weights = self._quantised_outer(Matrix(table))
        if spec.has_final_norm:
            weights.final_norm = self._norm("final_norm", -1)
        if spec.positions == "learned":
            shape = (spec.max_positions + spec.position_offset, spec.hidden_size)
            weights.positions = self._read(self._name("positions", -1) + ".weight", shape)
        if spec.embed_size and "project_in" in names:
            weights.project_in = Matrix(self._matrix(self._name("project_in", -1), spec.hidden_size, width))
            weights.project_out = Matrix(self._matrix(self._name("project_out", -1), width, spec.hidden_size))
        return weights

    def _quantised_outer(self, table: Matrix) -> Weights:
        """Return the embedding and the head, which may be the same, where the embedding is quantised."""
        assert self.packer is not None
        self.packer.pack(table)
        head = table if self._is_tied() else self._head(None)
        if head.quantised is not None:
            self.packer.pack(head)
        embed = self._empty(0, table.shape[1])
        return Weights(embed=embed, layers=[], head=head, table=table)

    def _is_tied(self) -> bool:
        """Whether the files hold no head of its own."""
        name = self._head_name() + ".weight"
        return self.spec.tie_embeddings and (name not in self.files or self._embed_name() == name)

    def _embed_name(self) -> str:
        """Return the embedding's name; of a tied pair, files may hold the head alone."""
        name, head = self._name("embed", -1) + ".weight", self._head_name() + ".weight"
        return head if self.spec.tie_embeddings and name not in self.files and head in self.files else name

    def _head_name(self) -> str:
        candidates = [prefix + self.family.outer["head"] for prefix in ("", *self._head_prefixes())]
        return next((c for c in candidates if c + ".weight" in self.files), candidates[0])

    def _head(self, embed: Tensor | None) -> Matrix:
        """Return the output matrix: the embedding itself when tied, unless the files hold another one."""
        spec, name = self.spec, self._head_name()
        if embed is not None and self._is_tied():
            return Matrix(embed)
        shape = (spec.vocab_size, spec.embed_size or spec.hidden_size)
        bias = self._read(name + ".bias", (spec.vocab_size,)) if spec.head_bias else None
        quantised = self._quantised(name + ".weight", *shape)
        if quantised is not None:
            return Matrix(quantised, bias)
        head = self._read(name + ".weight", shape)
        is_same = embed is not None and spec.tie_embeddings and torch.equal(head, embed)
        return Matrix(embed) if is_same and embed is not None else Matrix(head, bias)

    def _head_prefixes(self) -> list[str]:
        """What may stand before the head's name: nothing, or the wrapper of an image model."""
        return ["language_model."] if self.family.text_key else []

    def layer(self, index: int) -> LayerWeights:
        """Read one layer."""
        spec, roles = self.spec, self.family.layer
        norms = {role: self._norm(role, index) for role in NORMS if role in roles}
        qkv = Matrix(self._quantised_qkv(index) or self._qkv(index), self._qkv_bias(index))
        o = Matrix(self._either(self._name("o", index), spec.hidden_size, spec.q_size))
        up, down, mixture = self._feed(index)
        if spec.o_bias:
            o.bias = self._vector(self._name("o", index), spec.hidden_size)
        if spec.mlp_bias:
            down.bias = self._vector(self._name("down", index), spec.hidden_size)
        layer = LayerWeights(qkv=qkv, o=o, up=up, down=down, mixture=mixture)
        for role, norm in norms.items():
            setattr(layer, role, norm)
        if spec.qk_norm != "none":
            is_full = spec.qk_norm == "full"
            layer.q_norm = self._head_norm("q_norm", index, spec.num_heads if is_full else 1)
            layer.k_norm = self._head_norm("k_norm", index, spec.num_kv_heads if is_full else 1)
        return layer

    # Experts

    def _feed(self, index: int) -> tuple[Matrix, Matrix, Mixture | None]:
        """Return the MLP of a layer, or the expert that every token passes and the others."""
        spec, routing = self.spec, self.spec.routing
        if routing is None or index < routing.dense:
            down = self._either(self._name("down", index), spec.hidden_size, spec.ffn_size)
            return self._up(index), Matrix(down), None
        up, down = self._empty(0, spec.hidden_size), self._empty(spec.hidden_size, 0)
        if routing.shared_size:
            up, down = self._expert("shared_", (index,), routing.shared_size)
        return Matrix(up), Matrix(down), self._mixture(index, routing)

    def _mixture(self, index: int, routing: Routing) -> Mixture:
        router = self._read(self._name("router", index) + ".weight", (routing.experts, self.spec.hidden_size))
        bias = self._read(self._name("router_bias", index), (routing.experts,)) if routing.has_bias else None
        pairs = [self._expert("expert_", (index, expert), routing.ffn_size) for expert in range(routing.experts)]
        return Mixture(routing, router, bias, [Matrix(up) for up, _ in pairs], [Matrix(down) for _, down in pairs])

    def _expert(self, kind: str, which: tuple[int, ...], width: int) -> tuple[Tensor, Tensor]:
        """Return [2F, hidden], gate first, and [hidden, F] of one expert."""
        names = {role: self.prefix + self.family.layer[kind + role].format(*which) for role in ("gate", "up", "down")}
        up = torch.cat([self._matrix(names[role], width, self.spec.hidden_size) for role in ("gate", "up")])
        return up, self._matrix(names["down"], self.spec.hidden_size, width)

    # Fused matrices

    def _quantised_qkv(self, index: int) -> Quantised | None:
        """Return what `_qkv` returns, if all of it is quantised."""
        spec, roles = self.spec, self.family.layer
        sizes = {"qkv": spec.q_size + 2 * spec.kv_size} if "qkv" in roles else {}
        sizes = sizes or {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size}
        found = self._joined(index, sizes)
        if found is None:
            return None
        rows = self._order_heads(torch.arange(found.shape[0]))
        return found if torch.equal(rows, torch.arange(len(rows))) else found.rows(rows)

    def _joined(self, index: int, sizes: dict[str, int]) -> Quantised | None:
        """Return the matrices of some roles, of so many rows, one below the other, if all are quantised."""
        parts = []
        for role, rows in sizes.items():
            part = self._quantised(self._name(role, index) + ".weight", rows, self.spec.hidden_size)
            if part is None:
                return None
            parts.append(part)
        return join(parts)

    def _qkv(self, index: int) -> Tensor:
        """Return [(H + 2K) * D, hidden]; rows of a query or key head in `rotary_order`."""
        spec = self.spec
        rows = spec.q_size + 2 * spec.kv_size
        if "qkv" in self.family.layer:
            return self._order_heads(self._matrix(self._name("qkv", index), rows, spec.hidden_size))
        fused = self._empty(rows, spec.hidden_size)
        for role, part in zip("qkv", self._qkv_parts(fused), strict=True):
            part.copy_(self._matrix(self._name(role, index), part.shape[0], spec.hidden_size))
        return self._order_heads(fused)

    def _qkv_bias(self, index: int) -> Tensor | None:
        spec = self.spec
        if not spec.qkv_bias:
            return None
        rows = spec.q_size + 2 * spec.kv_size
        if "qkv" in self.family.layer:
            return self._order_heads(self._vector(self._name("qkv", index), rows))
        fused = self._empty(rows)
        for role, part in zip("qkv", self._qkv_parts(fused), strict=True):
            part.copy_(self._vector(self._name(role, index), part.shape[0]))
        return self._order_heads(fused)

    def _qkv_parts(self, fused: Tensor) -> tuple[Tensor, ...]:
        query, key, value = torch.split(fused, [self.spec.q_size, self.spec.kv_size, self.spec.kv_size])
        return query, key, value

    def _order_heads(self, fused: Tensor) -> Tensor:
        """Bring rows into the order [q | k | v], and within a head into `rotary_order`."""
        spec = self.spec
        if self.family.is_interleaved:
            rest = fused.shape[1:]
            heads = fused.view(spec.num_heads, 3, spec.head_dim, *rest)
            fused = heads.transpose(0, 1).reshape(-1, *rest)
        if not self.is_ordered:
            turned = fused[: spec.q_size + spec.kv_size].unflatten(0, (-1, spec.head_dim))
            turned.copy_(turned[:, self.order])
        return fused

    def _up(self, index: int) -> Matrix:
        """Return [2F, hidden], gate first, or [F, hidden]."""
        spec = self.spec
        if not spec.is_gated or "gate_up" in self.family.layer:
            rows = spec.ffn_size * (2 if spec.is_gated else 1)
            name = self._name("gate_up" if spec.is_gated else "up", index)
            bias = self._vector(name, rows) if spec.mlp_bias else None
            return Matrix(self._either(name, rows, spec.hidden_size), bias)
        if (found := self._joined(index, {"gate": spec.ffn_size, "up": spec.ffn_size})) is not None:
            return Matrix(found)
        fused = self._empty(2 * spec.ffn_size, spec.hidden_size)
        bias = self._empty(2 * spec.ffn_size) if spec.mlp_bias else None
        for half, role in enumerate(("gate", "up")):
            part = slice(half * spec.ffn_size, (half + 1) * spec.ffn_size)
            fused[part] = self._matrix(self._name(role, index), spec.ffn_size, spec.hidden_size)
            if bias is not None:
                bias[part] = self._vector(self._name(role, index), spec.ffn_size)
        return Matrix(fused, bias)

    # Norms

    def _norm(self, role: str, index: int) -> Norm:
        name, spec = self._name(role, index), self.spec
        weight = self._scale(name, spec.hidden_size)
        return Norm(weight, self._vector(name, spec.hidden_size) if spec.has_norm_bias else None)

    def _head_norm(self, role: str, index: int, heads: int) -> Tensor:
        """Return the scale of query or key norms, ordered as the heads are."""
        scale = self._scale(self._name(role, index), heads * self.spec.head_dim)
        return scale if self.is_ordered else scale.view(heads, -1)[:, self.order].reshape(-1)

    def _scale(self, name: str, size: int) -> Tensor:
        """Return a norm's weight with its offset; in half precision the sum is kept in float32, as it is computed."""
        offset = self.spec.norm_offset
        if not offset:
            return self._read(name + ".weight", (size,))
        wide = torch.promote_types(self.dtype, torch.float32)
        return self._read(name + ".weight", (size,)).to(wide) + offset

    # Single tensors

    def _name(self, role: str, index: int) -> str:
        names = self.family.outer if index < 0 else self.family.layer
        return self.prefix + names[role].format(index)

    def _either(self, name: str, rows: int, columns: int) -> Quantised | Tensor:
        """Return a matrix as it is stored, where that can be kept, else a plain one."""
        found = self._quantised(name + ".weight", rows, columns)
        return self._matrix(name, rows, columns) if found is None else found

    def _quantised(self, name: str, rows: int, columns: int) -> Quantised | None:
        return None if self.packer is None else self.files.read_quantised(name, (rows, columns))

    def _matrix(self, name: str, rows: int, columns: int) -> Tensor:
        if self.family.is_transposed:
            return self._read(name + ".weight", (columns, rows)).t().contiguous()
        return self._read(name + ".weight", (rows, columns))

    def _vector(self, name: str, size: int) -> Tensor:
        return self._read(name + ".bias", (size,))

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.files.read(name, shape).to(self.device, self.dtype)

    def _empty(self, *shape: int) -> Tensor:
        try:
            return torch.empty(shape, dtype=self.dtype, device=self.device)
        except RuntimeError:
            raise ModelError(
                f"There is no memory for a matrix of {list(shape)}, as config.json describes it.",
                hint="The files are not of this config.json, or the model is too large for this machine.",
            ) from None


NORMS = ("attn_norm", "mlp_norm", "attn_post_norm", "mlp_post_norm")
