"""Decoders whose feed-forward layers say a few codes of a codebook each, which can be looked at and forced.

Paper: Tamkin, Taufeeque, Goodman (2023), Codebook Features: Sparse and Discrete Interpretability for Neural Networks,
    arXiv 2310.17230. What a layer's feed-forward says of a token is replaced by the sum of the codes that point most
    nearly in its direction (cosine).
Files: `codebooks` in config.json says how many codes are summed, `model.layers.N.mlp.codes` [C, hidden] are the codes.
Differences: the paper has codebooks behind attention too, and grouped ones.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from outpace.errors import ConfigError, ModelError
from outpace.models.layers import Layers
from outpace.models.spec import Spec
from outpace.models.tensors import TensorFiles
from outpace.models.transformer import Transformer
from outpace.models.weights import LayerWeights, Weights

__all__ = ["CODES", "CodedLayers", "CodedTransformer", "chosen_codes", "read_codes", "summed_codes"]

CODES = "model.layers.{}.mlp.codes"


def chosen_codes(states: Tensor, codes: Tensor, count: int) -> Tensor:
    """Return [..., count] the codes of [C, hidden] nearest in direction to states [..., hidden], the nearest first."""
    return (states @ F.normalize(codes, dim=-1).T).topk(count, -1).indices


def summed_codes(states: Tensor, codes: Tensor, count: int, forced: Tensor | None = None) -> Tensor:
    """Return the sum of the `count` codes nearest to states [..., hidden].

    Args:
        states: what a layer says.
        codes: [C, hidden].
        count: how many are summed.
        forced: [F] codes that take the places of the farthest ones, and are among the summed for certain; F <= count.
    """
    if forced is None or not len(forced):
        return F.embedding(chosen_codes(states, codes, count), codes).sum(-2)
    taken = torch.zeros(len(codes), dtype=torch.bool, device=codes.device).index_fill(0, forced, True)
    near = (states @ F.normalize(codes, dim=-1).T).masked_fill(taken, -torch.inf)
    rest = near.topk(count - len(forced), -1).indices
    return F.embedding(rest, codes).sum(-2) + codes[forced].sum(0)


def read_codes(config: Mapping[str, Any], files: TensorFiles, spec: Spec, like: Tensor) -> tuple[list[Tensor], int]:
    """Return the codes [C, hidden] of each layer, and how many are summed; no codes where the files name none.

    Raises:
        ModelError: the files hold other codes than their config.json says.
    """
    told = config.get("codebooks")
    if told is None:
        return [], 0
    size, count = (told.get(key) if isinstance(told, Mapping) else None for key in ("size", "chosen"))
    if not isinstance(size, int) or not isinstance(count, int) or not 1 <= count <= size or not spec.is_gated:
        raise ModelError(f"config.json asks for codebooks {told!r}.", "Its keys are size and chosen.")
    found = []
    for index in range(spec.num_layers):
        found.append(files.read(CODES.format(index), (size, spec.hidden_size)).to(like))
    return found, count


class CodedLayers(Layers):
    """Layers with a codebook behind each feed-forward.

    Args:
        spec: the decoder's shape.
        layers: their weights.
        codes: per layer [C, hidden].
        count: codes that are summed.
    """

    def __init__(self, spec: Spec, layers: Sequence[LayerWeights], codes: list[Tensor], count: int) -> None:
        super().__init__(spec)
        self.codes, self.count = codes, count
        self.forced: dict[int, Tensor] = {}  # by layer
        self.seen: list[Tensor] | None = None  # where codes are recorded, [N, count] per layer and forward
        self._index = {id(layer): index for index, layer in enumerate(layers)}

    def mlp(self, w: LayerWeights, x: Tensor) -> Tensor:
        """Return the sum of the codes nearest to what a layer's feed-forward says."""
        said, index = super().mlp(w, x), self._index[id(w)]
        if self.seen is not None:
            self.seen.append(chosen_codes(said, self.codes[index], self.count))
        return summed_codes(said, self.codes[index], self.count, self.forced.get(index))


class CodedTransformer(Transformer):
    """A decoder with a codebook behind each feed-forward layer.

    Args:
        spec, weights, pack: as of a `Transformer`.
        codes: per layer [C, hidden].
        count: codes that are summed.
    """

    layers: CodedLayers

    def __init__(self, spec: Spec, weights: Weights, codes: list[Tensor], count: int, pack: bool | None = None) -> None:
        super().__init__(spec, weights, pack)
        self.layers = CodedLayers(spec, weights.layers, codes, count)

    def forcing(self, codes: Mapping[int, list[int]]) -> CodedTransformer:
        """Return this decoder with codes of some layers forced at every place; weights are shared.

        Raises:
            ConfigError: a layer or code that does not exist, or more of a layer than are summed.
        """
        books, count = self.layers.codes, self.layers.count
        for layer, chosen in codes.items():
            if not 0 <= layer < len(books) or not all(0 <= code < len(books[layer]) for code in chosen):
                hint = f"Layers go to {len(books) - 1}, codes to {len(books[0]) - 1}."
                raise ConfigError(f"Layer {layer} has no codes {chosen}.", hint)
            if len({*chosen}) < len(chosen) or len(chosen) > count:
                raise ConfigError(f"{len(chosen)} codes of layer {layer} are forced.", f"{count} are summed.")
        other, layers = copy.copy(self), copy.copy(self.layers)
        layers.forced = {layer: torch.tensor(chosen, device=self.device) for layer, chosen in codes.items() if chosen}
        other.layers = layers
        return other
