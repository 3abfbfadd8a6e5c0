"""From named tensors to the weights of both sides: shared tables are held once, and every tensor has its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.models.assemble import Reader, check_unused
from outpace.models.families import Family
from outpace.models.seq2seq.families import PairFamily
from outpace.models.seq2seq.pair import PairSpec
from outpace.models.seq2seq.tables import expand_relative
from outpace.models.spec import Spec
from outpace.models.tensors import TensorFiles
from outpace.models.weights import CrossWeights, LayerWeights, Matrix, Norm, Weights

__all__ = ["assemble_pair"]

_BIAS = "final_logits_bias"


def assemble_pair(
    files: TensorFiles,
    pair: PairSpec,
    family: PairFamily,
    config: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device,
    pack: bool,
) -> tuple[Weights, Weights]:
    """Read the weights of the encoder and of the decoder.

    Args:
        files: the tensors by name.
        pair: the shapes of both sides.
        family: the names of their tensors.
        config: the parsed config.json, for position tables that are computed.
        dtype, device: of the weights.
        pack: reorder the layers' matrices for oneDNN.

    Raises:
        ModelError: a tensor is missing, has another shape, or has no place.
    """
    tables = dict[str, Tensor]()
    sides = []
    for spec, names in ((pair.encoder, family.encoder), (pair.decoder, family.decoder)):
        reader = _Side(files, spec, names, dtype, device, tables)
        if family.positions is not None:
            reader.computed = family.positions(config, spec.max_positions + spec.position_offset)
        weights = reader.outer()
        for index in range(spec.num_layers):
            layer = reader.layer(index)
            if pack:  # at once, so that one matrix exists twice, never the model
                for matrix in layer.all_matrices():
                    matrix.pack()
            weights.layers.append(layer)
        sides.append(weights)
    check_unused(files, (*family.encoder.ignored, *family.decoder.ignored))
    return sides[0], sides[1]


class _Side(Reader):
    """Reads one side; `tables` holds the embeddings that were read, for the other one."""

    def __init__(
        self,
        files: TensorFiles,
        spec: Spec,
        family: Family,
        dtype: torch.dtype,
        device: torch.device,
        tables: dict[str, Tensor],
    ) -> None:
        super().__init__(files, spec, family, dtype, device, None)
        self.prefix = self._find_prefix()
        self.tables = tables
        self.computed: Tensor | None = None
        self.relative: Tensor | None = None

    def _find_prefix(self) -> str:
        """Return what stands before the names of this side's layers; embeddings may bear a name of the other's."""
        first = self.family.layer["q"].format(0) + ".weight"
        return next((p for p in self.family.prefixes if p + first in self.files), self.family.prefixes[0])

    def outer(self) -> Weights:
        """Read what lies outside the layers; an encoder has no head."""
        spec = self.spec
        embed = self._embed()
        head = self._output(embed) if spec.has_cross else Matrix(embed.new_empty(0, spec.hidden_size))
        weights = Weights(embed=embed, layers=[], head=head)
        if spec.has_final_norm:
            weights.final_norm = self._norm("final_norm", -1)
        if spec.has_embed_norm:
            weights.embed_norm = self._norm("embed_norm", -1)
        if spec.positions == "learned":
            weights.positions = self._positions()
        return weights

    def layer(self, index: int) -> LayerWeights:
        """Read one layer, with what looks at the encoder and with its distances where it has them."""
        layer = super().layer(index)
        if self.spec.positions == "relative":
            layer.relative = self._distances(index)
        if self.spec.has_cross:
            layer.cross = self._cross(index)
        return layer

    # Embeddings and the head

    def _embed(self) -> Tensor:
        """Return the embeddings: this side's own, the shared ones, or those that the files hold under a tied name."""
        other = "decoder" if self._own_name().startswith(f"{self.prefix}encoder") else "encoder"
        names = [self._own_name(), f"{self.prefix}shared.weight", f"{self.prefix}{other}.embed_tokens.weight"]
        names += [self._head_name() + ".weight"]
        found = [name for name in names if name in self.files]
        if not found:
            raise ModelError(f"Tensor {names[1]} is missing.", hint="The files are not of this config.json.")
        shape = (self.spec.vocab_size, self.spec.hidden_size)
        embed = self._table(found[0], shape)
        for name in found[1:3]:  # copies under other names, which older files hold; another table has its own reader
            if name != self._head_name() + ".weight" and self.files.entries[name].shape == shape:
                self.files.used.add(name)
        return embed

    def _own_name(self) -> str:
        return self._name("embed", -1) + ".weight"

    def _table(self, name: str, shape: tuple[int, int]) -> Tensor:
        """Return a table by name; one that equals another is that one."""
        if name not in self.tables:
            read = self._read(name, shape)
            same = (table for table in self.tables.values() if table.shape == read.shape and torch.equal(table, read))
            self.tables[name] = next(same, read)
        if self.tables[name].shape != shape:
            raise ModelError(
                f"Tensor {name} has shape {list(self.tables[name].shape)}; {list(shape)} was expected.",
                hint="The files are not of this config.json.",
            )
        return self.tables[name]

    def _output(self, embed: Tensor) -> Matrix:
        """Return the head: a matrix of the files, or the embedding where they are tied and the files hold no other."""
        spec, name = self.spec, self._head_name() + ".weight"
        shape = (spec.vocab_size, spec.hidden_size)
        weight = embed if spec.tie_embeddings and name not in self.files else self._table(name, shape)
        return Matrix(weight, self._logits_bias() if spec.head_bias else None)

    def _logits_bias(self) -> Tensor:
        """Return [V]; files without one mean zero."""
        size = self.spec.vocab_size
        if _BIAS not in self.files:
            return torch.zeros(size, dtype=self.dtype, device=self.device)
        return self._read(_BIAS, (1, size)).flatten()

    # Positions

    def _positions(self) -> Tensor:
        """Return the table: that of the files, or the computed one where they hold none."""
        spec, name = self.spec, self._name("positions", -1) + ".weight"
        shape = (spec.max_positions + spec.position_offset, spec.hidden_size)
        if self.computed is None or name in self.files:
            return self._read(name, shape)
        return self.computed.to(self.device, self.dtype)

    def _distances(self, index: int) -> Tensor:
        """Return a layer's `LayerWeights.relative`; layers that name none share that of the first."""
        spec, name = self.spec, self._name("relative", index) + ".weight"
        if name in self.files or self.relative is None:
            table = self._read(name, (spec.relative_buckets, spec.num_heads))
            self.relative = expand_relative(table, spec.relative_distance, spec.attention == "causal")
        return self.relative

    # What looks at the encoder

    def _cross(self, index: int) -> CrossWeights:
        spec, hidden = self.spec, self.spec.hidden_size
        rows = {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size}
        parts = {role: self._matrix(self._name(f"cross_{role}", index), n, hidden) for role, n in rows.items()}
        q, kv = Matrix(parts["q"]), Matrix(torch.cat([parts["k"], parts["v"]]))
        o = Matrix(self._matrix(self._name("cross_o", index), hidden, spec.q_size))
        if spec.qkv_bias:
            biases = {role: self._vector(self._name(f"cross_{role}", index), n) for role, n in rows.items()}
            q.bias, kv.bias = biases["q"], torch.cat([biases["k"], biases["v"]])
        if spec.o_bias:
            o.bias = self._vector(self._name("cross_o", index), hidden)
        return CrossWeights(q, kv, o, self._cross_norm(index))

    def _cross_norm(self, index: int) -> Norm:
        return self._norm("cross_norm", index)

    def _name(self, role: str, index: int) -> str:
        """Return a tensor's name; an MLP without a gate has another one in T5."""
        if role == "up" and not self.spec.is_gated and "plain_up" in self.family.layer:
            role = "plain_up"
        return super()._name(role, index)
