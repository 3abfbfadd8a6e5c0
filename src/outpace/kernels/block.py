"""A block drafter's pass in one call, on packed weights. See `block.cpp` for the other side."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.errors import ConfigError
from outpace.kernels.decoder import DTYPES, PADDING, Packer
from outpace.kernels.library import FAILURES, MatrixView, load
from outpace.models.weights import Matrix

__all__ = ["BlockLayer", "BlockWeights", "CompiledBlock", "compile_block"]


@dataclass(slots=True)
class BlockLayer:
    """One layer: matrices [out, in], norms' scales; `qkv` and `gate_up` are stacked."""

    input_norm: Tensor
    qkv: Matrix
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Matrix
    ffn_norm: Tensor
    gate_up: Matrix
    down: Matrix


@dataclass(slots=True)
class BlockWeights:
    """A block drafter's body and the output matrix that its laws are read from.

    Attributes:
        heads, kv_heads, head_dim: of the attention.
        places, depth: places of a block, and the last of them that draft.
        window: nearest features that a place sees; 0 = all.
        is_causal: a place sees the places before it and itself.
        adds_state: the last feature is added to every place.
        eps: of the norms.
        fuse, feature_norm: from a token's states to its feature.
        masks: [places - 1, hidden] what enters the layers behind the anchor.
        layers, norm: the body.
        head: [K, hidden].
    """

    heads: int
    kv_heads: int
    head_dim: int
    places: int
    depth: int
    window: int
    is_causal: bool
    adds_state: bool
    eps: float
    fuse: Matrix
    feature_norm: Tensor
    masks: Tensor
    layers: Sequence[BlockLayer]
    norm: Tensor
    head: Matrix


class _LayerView(Structure):
    """Mirror of the C++ `BlockLayer`."""

    _fields_ = [
        ("input_norm", c_void_p),
        ("qkv", MatrixView),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("output", MatrixView),
        ("ffn_norm", c_void_p),
        ("gate_up", MatrixView),
        ("down", MatrixView),
    ]


class _View(Structure):
    """Mirror of the C++ `BlockView`."""

    _fields_ = [
        *[(name, c_int64) for name in ("is_bfloat16", "is_causal", "adds_state")],
        *[(name, c_int64) for name in ("hidden", "states", "layers", "heads", "kv_heads", "head_dim", "ffn")],
        *[(name, c_int64) for name in ("places", "depth", "vocab", "window")],
        ("norm_eps", c_double),
        ("fuse", MatrixView),
        ("feature_norm", c_void_p),
        ("masks", c_void_p),
        ("layer", POINTER(_LayerView)),
        ("final_norm", c_void_p),
        ("head", MatrixView),
    ]


class _Call(Structure):
    """Mirror of the C++ `BlockCall`."""

    _fields_ = [
        *[(name, c_int64) for name in ("rows", "threads", "slots", "num_states")],
        *[(name, c_void_p) for name in ("states", "counts", "held", "offset", "anchor", "embedded", "feature")],
        *[(name, c_void_p) for name in ("buffers", "turns", "made")],
    ]


def compile_block(weights: BlockWeights, dtype: torch.dtype) -> CompiledBlock | None:
    """Return a drafter's body on packed weights; None where nothing can be compiled.

    Args:
        weights: on the CPU; nothing of them is kept.
        dtype: of states, cache and laws: bfloat16 or float32.
    """
    library = load() if dtype in DTYPES else None
    return None if library is None else CompiledBlock(library, weights, dtype)


class CompiledBlock:
    """A drafter's body on packed weights; passes take turns, since they share scratch memory."""

    def __init__(self, library: ctypes.CDLL, weights: BlockWeights, dtype: torch.dtype) -> None:
        if not library.outpace_block_new.argtypes:
            library.outpace_block_new.argtypes, library.outpace_block_new.restype = [POINTER(_View)], c_void_p
            library.outpace_block_delete.argtypes, library.outpace_block_delete.restype = [c_void_p], None
            library.outpace_block.argtypes = [c_void_p, POINTER(_Call)]
            library.outpace_block.restype = c_int64
        self._library, self.dtype, self._lock = library, dtype, threading.Lock()
        self._kept: list[Tensor] = []
        self._packer = Packer(library, dtype, release=False)
        self._layers = (_LayerView * len(weights.layers))()
        for view, layer in zip(self._layers, weights.layers, strict=True):
            view.input_norm, view.ffn_norm = self._vector(layer.input_norm), self._vector(layer.ffn_norm)
            view.query_norm, view.key_norm = self._vector(layer.query_norm), self._vector(layer.key_norm)
            view.qkv, view.output = self._matrix(layer.qkv), self._matrix(layer.output)
            view.gate_up, view.down = self._matrix(layer.gate_up, is_gated=True), self._matrix(layer.down)
        own = self._view = _View(is_bfloat16=dtype == torch.bfloat16, norm_eps=weights.eps)
        for name in ("heads", "kv_heads", "head_dim", "places", "depth", "window", "is_causal", "adds_state"):
            setattr(own, name, int(getattr(weights, name)))
        (own.hidden, own.states), own.layers = weights.fuse.shape, len(weights.layers)
        own.ffn, own.vocab = weights.layers[0].down.shape[1], weights.head.shape[0]
        own.fuse, own.head = self._matrix(weights.fuse), self._matrix(weights.head)
        own.feature_norm, own.final_norm = self._vector(weights.feature_norm), self._vector(weights.norm)
        own.masks = self._keep(weights.masks.detach().float().contiguous())
        own.layer = ctypes.cast(self._layers, POINTER(_LayerView))
        self._handle = library.outpace_block_new(ctypes.byref(own))
        if not self._handle:
            raise MemoryError("There is not enough memory for a compiled drafter.")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.outpace_block_delete(self._handle)

    def _matrix(self, matrix: Matrix, is_gated: bool = False) -> MatrixView:
        panels = self._packer.panels(matrix, is_gated)
        self._kept += panels.kept
        return panels.view

    def _vector(self, values: Tensor | None) -> int | None:
        if values is None:
            return None
        padded = torch.zeros(-(-values.numel() // PADDING) * PADDING)
        padded[: values.numel()] = values.detach().float()
        return self._keep(padded)

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()

    def run(
        self,
        states: Tensor,
        places: Sequence[Sequence[int]],
        embedded: Tensor,
        feature: Tensor,
        cache: Cache,
        turns: Tensor,
    ) -> Tensor:
        """Take in new states, and return what the places ahead say, [B, depth, hidden + K]: hidden states and logits.

        Args:
            states: [N, F] of new tokens, row after row, in the drafter's dtype.
            places: four numbers of each row: how many of the states are a row's; features that its cache holds; the
                place in its text of the cache's first slot; and of its last token.
            embedded: [B, hidden] float32, the last tokens.
            feature: [B, hidden] float32, of the tokens before the last ones; brought up to date.
            cache: per layer keys and values, [B, slots, kv_heads, head_dim], room for the states and the block made.
            turns: [positions, 2, head_dim / 2] float32 cosines and sines.

        Raises:
            ConfigError: there is no memory for it.
        """
        own, rows = self._view, len(embedded)
        states, embedded = states.to(self.dtype).contiguous(), embedded.float().contiguous()
        made = torch.empty(rows, own.depth, own.hidden + own.vocab, dtype=self.dtype)
        buffers = (c_void_p * len(cache.buffers))(*[buffer.data_ptr() for buffer in cache.buffers])
        told = [(c_int64 * rows)(*values) for values in places]
        call = _Call(rows, torch.get_num_threads(), cache.slots, len(states))
        call.counts, call.held, call.offset, call.anchor = map(ctypes.addressof, told)
        call.states, call.embedded = states.data_ptr(), embedded.data_ptr()
        call.feature, call.turns, call.made = feature.data_ptr(), turns.data_ptr(), made.data_ptr()
        call.buffers = ctypes.addressof(buffers)
        with self._lock:
            status = self._library.outpace_block(self._handle, ctypes.byref(call))
        if status:
            raise ConfigError(FAILURES[status])
        return made
