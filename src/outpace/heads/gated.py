"""A native target with low-rank factors that act at masks alone: every other token has the bits that it had before.

A mask is told by what enters the model for it, so nothing else has to say which tokens are masks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from outpace.cache import Cache, Pages
from outpace.errors import CapabilityError
from outpace.models.transformer import Transformer
from outpace.models.weights import Matrix
from outpace.types import NO_OUTPUTS, Adapter, Counter, Outputs, Scores

__all__ = ["GatedTarget"]

Change = Callable[[Tensor], Tensor]
_PARTS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}


class _Gated:
    """A matrix, and what is added to its products at some rows."""

    def __init__(self, matrix: Matrix, changes: Sequence[Change], rows: list[Tensor]) -> None:
        self.matrix, self.changes, self.rows = matrix, changes, rows

    def __call__(self, x: Tensor) -> Tensor:
        out = self.matrix(x)
        for index in self.rows:  # one, or none where no mask is forwarded
            own = x[index]
            out = out.index_add(0, index, torch.cat([change(own) for change in self.changes], -1).to(out.dtype))
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.matrix, name)


class GatedTarget(Adapter):
    """A target whose masks pass factors.

    Args:
        target: the model, its matrices at hand; it stays as it is.
        mask: [1, hidden] what enters for a mask.
        factors: per layer, by the names of Hugging Face, what is added to the product of a matrix.
    """

    def __init__(self, target: Transformer, mask: Tensor, factors: Iterable[Mapping[str, Change]]) -> None:
        self._rows: list[Tensor] = []
        layers = []
        for layer, own in zip(target.weights.layers, factors, strict=True):
            parts = {
                part: _Gated(getattr(layer, part), [own[name] for name in names], self._rows)
                for part, names in _PARTS.items()
            }
            layers.append(replace(layer, **parts))  # type: ignore[arg-type]
        self._target = copy.copy(target)
        self._target.graphs, self._target.weights = None, replace(target.weights, layers=layers)
        self._mask = mask.to(target.device, target.dtype)
        for name in ("capabilities", "device", "dtype", "notes", "path", "is_quantised", "tokenizer", "shape"):
            setattr(self, name, getattr(target, name))
        self.layer_weights, self.head_weights = target.layer_weights, target.head_weights

    @staticmethod
    def around(target: Adapter, mask: Tensor, factors: Iterable[Mapping[str, Change]]) -> GatedTarget:
        """Return the target with factors at masks.

        Raises:
            CapabilityError: its matrices are not at hand: another library, or compiled kernels, run it.
        """
        if not isinstance(target, Transformer) or target.path == "compiled":
            raise CapabilityError(
                "Factors at masks need a native target whose matrices are at hand.",
                "Load a native model with --no-compile (is_compiled=False).",
            )
        return GatedTarget(target, mask, factors)

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return the target's cache."""
        return self._target.new_cache(rows, capacity, counter)

    def new_pool(self, num_pages: int, page_size: int = 32) -> Pages | None:
        """Return the target's pool."""
        return self._target.new_pool(num_pages, page_size)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the target's embeddings."""
        return self._target.embed(tokens)

    def head(self, hidden: Tensor) -> Tensor:
        """Return the target's logits."""
        return self._target.head(hidden)

    def trim_head(self, ids: Tensor) -> Adapter | None:
        """Return the target with some rows of its head, without factors."""
        return self._target.trim_head(ids)

    def score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS,
        inputs: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Scores:
        """Run one forward; see `outpace.types.Adapter`. Factors act where a mask's embedding enters."""
        index = None if inputs is None else (inputs == self._mask).all(-1).flatten().nonzero().flatten()
        self._rows[:] = [] if index is None or not len(index) else [index]
        return self._target.score(tokens, position, visible, cache, ask, outputs, inputs, skip)
