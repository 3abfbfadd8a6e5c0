"""A decoder whose whole forward is one C call, on packed weights. See `decoder.cpp` for the other side.

Serves layers with one norm before attention and MLP or one behind each: Llama, Mistral, Qwen2, Qwen3, Phi-3, SmolLM3,
GPT-2, GPT-NeoX and OPT, and both sides of encoder-decoders. The result for a token has the same bits whatever its
window, batch, thread count or chunk.
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.errors import ConfigError
from outpace.kernels.coding import code
from outpace.kernels.library import (
    FAILURES,
    CallView,
    CrossView,
    LayerView,
    MatrixView,
    ModelView,
    NormView,
    empty_buffer,
    load,
)
from outpace.models.quantised import Quantised
from outpace.models.rotation import Rotation
from outpace.models.spec import Spec
from outpace.models.weights import CrossWeights, Matrix, Norm, Weights
from outpace.types import NO_OUTPUTS, Outputs, Scores

__all__ = ["CompiledDecoder", "Packer", "TrimmedDecoder", "compile_decoder", "multiply", "new_packer", "supports"]

COLUMNS = 32  # output columns per panel; `kColumns` in gemm.h
PADDING = 32  # floats that vectors are padded to; `kPadding` in simd.h
ALIGNMENT = 128  # bytes
MARGIN = 16  # `kMargin` in attention.h
FACTOR_BYTES = 4  # behind the bytes of a cached key or value
ARENA = 64 << 20  # bytes of memory that matrices are placed in
TRIM_BYTES = 32 << 20  # freed weights after which memory goes back to the system
DTYPES = (torch.bfloat16, torch.float32)
_product_lock = threading.Lock()  # single products share scratch memory
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")  # `Activation` in activation.h


def supports(spec: Spec) -> bool:
    """Whether the compiled path computes this decoder; the eager path serves the others."""
    return (
        (spec.norm_placement == "pre" or (spec.norm_placement == "after" and not spec.has_final_norm))
        and not (spec.is_parallel and spec.norm_placement != "pre")
        and spec.activation in ACTIVATIONS
        and spec.positions in ("rotary", "learned", "relative", "none")
        and spec.qk_norm in ("none", "head")
        and spec.embed_size in (0, spec.hidden_size)
        and spec.head_dim % 2 == 0
        and not (spec.attn_softcap or spec.final_softcap or spec.query_growth)
        and spec.routing is None
    )


def compile_decoder(
    spec: Spec, weights: Weights, dtype: torch.dtype, release: bool = False, machine: str | None = None
) -> CompiledDecoder | None:
    """Pack the weights for the compiled path, or return None where it cannot serve (`outpace.kernels.note()`).

    Nothing of `weights` but an untied embedding is kept: a tied one is read from the packed head. Quantised matrices
    keep their codes, and their inputs are rounded (`quantised.round_inputs`); `dtype` is that of cache and logits.

    Args:
        spec: the decoder's shape.
        weights: on the CPU; matrices are converted to `dtype` one at a time.
        dtype: bfloat16 or float32.
        release: free every plain matrix as soon as it is packed (`Matrix.weight` becomes None), so that memory peaks at
            the weights plus one matrix. The eager forward is gone then.
        machine: architecture flag for the compiler, for tests; None = this machine.
    """
    if dtype not in DTYPES or not supports(spec) or weights.embed.device.type != "cpu":
        return None
    library = load(machine)
    return None if library is None else CompiledDecoder(library, spec, weights, dtype, release)


def new_packer(spec: Spec, dtype: torch.dtype) -> Packer | None:
    """Return what packs the quantised matrices of a decoder as they are read, or None where it cannot be compiled."""
    library = load() if dtype in DTYPES and supports(spec) else None
    return None if library is None else Packer(library, dtype, release=True)


@dataclass(slots=True)
class Panels:
    """A packed matrix: where it lies, how it is stored, its bytes, and the memory that both need."""

    view: MatrixView
    num_bytes: int
    kept: list[Tensor]


class Packer:
    """Packs matrices back to back, in the order they are streamed, on huge pages."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype, release: bool) -> None:
        self.library, self.dtype, self.release = library, dtype, release
        self.per_word = 2 if dtype == torch.bfloat16 else 1
        self.arena, self.next, self.end = torch.empty(0), 0, 0
        self.freed = 0

    def pack(self, matrix: Matrix, is_gated: bool = False) -> None:
        """Turn a matrix into `Matrix.panels` and free its own form; gated: the first half of its rows is the gate."""
        matrix.panels = self.panels(matrix, is_gated)
        matrix.release()

    def panels(self, matrix: Matrix, is_gated: bool = False) -> Panels:
        """Return a matrix [outputs, inputs] packed, as it may be already."""
        if isinstance(matrix.panels, Panels):
            return matrix.panels
        packed = self._plain(matrix, is_gated) if matrix.quantised is None else self._coded(matrix.quantised, is_gated)
        if self.release:
            matrix.panels = packed
            matrix.release()
            self._give_back(math.prod(matrix.shape) * (2 if packed.view.coding.bits == 0 else 1))
        return packed

    def _plain(self, matrix: Matrix, is_gated: bool) -> Panels:
        # A copy of one matrix at a time is all that packing adds to the weights.
        source = matrix.dense().detach().to(self.dtype).contiguous()
        outputs, inputs = source.shape
        num_bytes = 4 * COLUMNS * _num_panels(outputs, is_gated) * math.ceil(inputs / self.per_word)
        address, threads = self._place(num_bytes), torch.get_num_threads()
        is_bfloat16 = int(self.dtype == torch.bfloat16)
        self.library.outpace_pack(is_bfloat16, source.data_ptr(), outputs, inputs, int(is_gated), address, threads)
        return Panels(MatrixView(data=address), num_bytes, [self.arena])

    def _coded(self, quantised: Quantised, is_gated: bool) -> Panels:
        plan = code(quantised)
        coding, (outputs, inputs) = plan.coded.coding, quantised.shape
        num_bytes = _num_panels(outputs, is_gated) * self.library.outpace_panel_bytes(ctypes.byref(coding), inputs)
        address = self._place(num_bytes)
        self.library.outpace_pack_codes(ctypes.byref(plan.coded), int(is_gated), address, torch.get_num_threads())
        kept = [self.arena] if plan.table is None else [self.arena, plan.table]
        return Panels(MatrixView(coding, address), num_bytes, kept)

    def _place(self, num_bytes: int) -> int:
        """Return the address of fresh memory; what is not yet written of an arena takes none."""
        if self.next + num_bytes > self.end:
            size = max(ARENA, num_bytes) + ALIGNMENT
            self.arena = empty_buffer(self.library, size)
            self.next = _round_up(self.arena.data_ptr(), ALIGNMENT)
            self.end = self.arena.data_ptr() + size
        address = self.next
        self.next = _round_up(address + num_bytes, ALIGNMENT)
        return address

    def _give_back(self, num_bytes: int) -> None:
        """Return freed memory to the system now and then: the allocator keeps blocks of a few megabytes otherwise."""
        self.freed += num_bytes
        if self.freed >= TRIM_BYTES:
            self.freed = 0
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
            if trim is not None:
                trim(0)


class _Views:
    """Fills in what C reads of a decoder, and keeps alive what it points to."""

    def __init__(self, packer: Packer) -> None:
        self.packer = packer
        self.kept: list[Tensor] = []
        self.num_bytes = 0
        self.tables: dict[int, int] = {}  # of distances, which layers may share
        self.embedding: Tensor | None = None  # a plain one of its own; others are read out of panels

    def matrix(self, matrix: Matrix, is_gated: bool = False) -> MatrixView:
        """Return the view of a packed matrix."""
        panels = self.packer.panels(matrix, is_gated)
        self.num_bytes += panels.num_bytes
        self.kept += panels.kept
        return panels.view

    def vector(self, values: Tensor | None) -> int | None:
        """Keep a padded float32 copy and return its address; None stays None."""
        if values is None:
            return None
        padded = torch.zeros(_round_up(values.numel(), PADDING))
        padded[: values.numel()] = values.detach().float()
        return self.keep(padded)

    def panel_vector(self, values: Tensor | None, is_gated: bool) -> int | None:
        """As `vector`, in the order in which a gated matrix's panels hold its rows."""
        if values is None or not is_gated:
            return self.vector(values)
        half, wide = values.numel() // 2, COLUMNS // 2
        parts = torch.zeros(2, _round_up(half, wide))
        parts[:, :half] = values.detach().float().view(2, half)
        return self.vector(parts.view(2, -1, wide).transpose(0, 1).flatten())

    def distances(self, relative: Tensor | None) -> int | None:
        """Keep what is added to scores by distance, [H, 2 * (R + MARGIN) + 1], of a table [2R + 1, H].

        That one begins with the keys farthest ahead of a query, and this one with those farthest behind.
        """
        if relative is None:
            return None
        if id(relative) not in self.tables:
            ends = relative.detach().float().flip(0).T  # [H, 2R + 1]
            padded = torch.nn.functional.pad(ends[None], (MARGIN, MARGIN), mode="replicate")[0]
            self.tables[id(relative)] = self.keep(padded.contiguous())
        return self.tables[id(relative)]

    def norm(self, norm: Norm | None, size: int) -> NormView:
        """Keep a norm; one without a weight scales by 1."""
        if norm is None:
            return NormView()
        weight = torch.ones(size) if norm.weight is None else norm.weight
        return NormView(self.vector(weight), self.vector(norm.bias))

    def keep(self, tensor: Tensor) -> int:
        """Hold on to a tensor and return its address."""
        self.kept.append(tensor)
        self.num_bytes += tensor.numel() * tensor.element_size()
        return tensor.data_ptr()


class _Product:
    """A packed matrix [outputs, inputs] by itself, with its bias."""

    def __init__(self, views: _Views, matrix: Matrix) -> None:
        self.bias = views.vector(matrix.bias)
        self.outputs, self.view = matrix.shape[0], views.matrix(matrix)

    def __call__(self, library: ctypes.CDLL, given: Tensor) -> Tensor:
        """Return [N, outputs] of [N, inputs], in its dtype."""
        return multiply(library, self.view, given, self.outputs, self.bias)


class CompiledDecoder:
    """A decoder on packed weights; made by `compile_decoder`.

    `num_bytes` is the memory of packed weights and kept tensors; rotary tables grow besides.

    Forwards on one decoder take turns (they share scratch memory); the logits returned belong to the caller.
    """

    def __init__(
        self, library: ctypes.CDLL, spec: Spec, weights: Weights, dtype: torch.dtype, release: bool = False
    ) -> None:
        self.spec, self.dtype = spec, dtype
        self._library = library
        views = _Views(Packer(library, dtype, release))
        self._layers = _view_layers(views, spec, weights)
        self._view = _view_model(views, spec, weights, self._layers)
        self._cross = [_Product(views, layer.cross.kv) for layer in weights.layers if layer.cross is not None]
        self._rotation = Rotation(spec, torch.float32, "cpu", is_half=True)
        self._kept, self.num_bytes = views.kept, views.num_bytes
        self._table, self._head_bias = views.embedding, weights.head.bias
        self._open()

    def _open(self) -> None:
        self._handle = self._library.outpace_new(ctypes.byref(self._view))
        if not self._handle:
            raise MemoryError("There is not enough memory for a compiled decoder.")
        self._lock, self._call = threading.Lock(), CallView()
        self._call_address = ctypes.byref(self._call)

    @property
    def code_bits(self) -> int:
        """Bits of a weight in the layers, where weights are codes; 0 = they are plain numbers."""
        return int(self._layers[0].up.coding.bits) if self.spec.num_layers else 0

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.outpace_delete(self._handle)

    def cross(self, states: Tensor) -> list[Tensor]:
        """Return per layer the keys and values [N, 2 * K * D] of an encoder's states [N, hidden]."""
        states = states.to(self.dtype).contiguous()
        return [product(self._library, states) for product in self._cross]

    def head_rows(self, ids: Tensor) -> Tensor:
        """Return some rows of the head, [len(ids), hidden], in the model's dtype; quantised ones in float32."""
        return self._rows(ids, is_head=True)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [..., hidden] of tokens: the numbers that a forward begins with."""
        if self._table is not None:
            found = torch.nn.functional.embedding(tokens, self._table)
        else:
            found = self._rows(tokens.flatten(), is_head=False).view(*tokens.shape, -1)
        if self.spec.embed_scale == 1.0:
            return found
        # Rounded to the dtype of the model, as a forward rounds what it embeds.
        scale = torch.tensor(self.spec.embed_scale, dtype=self.dtype)
        return (found.float() * scale.float()).to(self.dtype)

    def _rows(self, ids: Tensor, is_head: bool) -> Tensor:
        ids, rows = self._known(ids), torch.empty(len(ids), self.spec.hidden_size)
        self._library.outpace_rows(self._handle, int(is_head), ids.data_ptr(), len(ids), rows.data_ptr())
        view = self._view.head if is_head or not self._view.embedding.data else self._view.embedding
        return rows if view.coding.bits else rows.to(self.dtype)

    def _known(self, ids: Tensor) -> Tensor:
        """Return tokens [K] as C reads them, if all are of this vocabulary."""
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.spec.vocab_size:
            raise ConfigError(FAILURES[2])
        return ids.to(torch.int64).contiguous()

    def trim_head(self, ids: Tensor) -> TrimmedDecoder:
        """Return a decoder whose logits are those of some tokens; layers are shared, the head is packed anew.

        Args:
            ids: [K] int64 tokens.
        """
        return TrimmedDecoder(self._trim(ids), self)

    def _trim(self, ids: Tensor) -> CompiledDecoder:
        other = copy.copy(self)
        other._handle = None
        other.spec = dataclasses.replace(self.spec, vocab_size=len(ids))
        if self._view.head.coding.bits:
            panels = self._trim_codes(ids)
        else:
            panels = Packer(self._library, self.dtype, False).panels(Matrix(self.head_rows(ids)))
        other._view = ModelView.from_buffer_copy(self._view)
        other._view.vocab, other._view.head, other._view.embedding = len(ids), panels.view, MatrixView()
        other._kept = [*panels.kept, *self._kept]
        if self._head_bias is not None:
            other._head_bias = self._head_bias[ids]
            bias = torch.nn.functional.pad(other._head_bias.detach().float(), (0, -len(ids) % PADDING))
            other._kept.append(bias)
            other._view.head_bias = bias.data_ptr()
        other._open()
        return other

    def _trim_codes(self, ids: Tensor) -> Panels:
        ids, coding = self._known(ids), self._view.head.coding
        size = self._library.outpace_panel_bytes(ctypes.byref(coding), self.spec.hidden_size)
        buffer = empty_buffer(self._library, _num_panels(len(ids)) * size + ALIGNMENT)
        address = _round_up(buffer.data_ptr(), ALIGNMENT)
        given = (self._handle, ids.data_ptr(), len(ids), address, torch.get_num_threads())
        self._library.outpace_pack_head(*given)
        return Panels(MatrixView(coding, address), buffer.numel(), [buffer])

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Tensor:
        """Run one forward and return its logits; see `score`."""
        return self.score(tokens, position, visible, cache, ask, skip=skip).logits

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
        """Run one forward; arguments as in `Adapter.score`, buffers of `cache` as [k0, v0, k1, v1, ...].

        Args:
            tokens: [B, T] int64.
            position: [B, T] int64, -1 = padding, which writes nothing and whose logits are zero.
            visible: [B, T, T] bool or None.
            cache: per layer keys and values, each [B, K, slots, D] or [pages, K, page_size, D], in the model's dtype,
                or uint8 with 4 more in each entry (bytes, then their float32 factor); the slots of a head contiguous;
                room for the forward's tokens has been made in it.
            ask: [B, A] int64 or None.
            outputs: hidden states wanted with the logits.
            inputs: [B, T, hidden] in place of embedded tokens, or None.
            skip: layers to leave out.

        Returns:
            Logits and hidden states in the model's dtype, freshly allocated; both are zero where padding was asked.

        Raises:
            ConfigError: shapes, dtypes, ids, positions or the cache do not fit.
        """
        rows, width = tokens.shape
        # C walks plain arrays. What it reads keeps a name here until the call returns: an address keeps nothing alive.
        tokens, position = tokens.contiguous(), position.contiguous()
        visible = None if visible is None else visible.contiguous()
        ask = None if ask is None else ask.contiguous()
        self._check(tokens, position, visible, cache, ask)
        asked = width if ask is None else ask.shape[1]
        if inputs is not None:
            inputs = inputs.float().contiguous()
            if inputs.shape != (rows, width, self.spec.hidden_size):
                raise ConfigError("inputs has to be [B, T, hidden].")
        logits = torch.empty(rows, asked, self.spec.vocab_size if outputs.has_logits else 0, dtype=self.dtype)
        if any(not 0 <= layer <= self.spec.num_layers for layer in outputs.layers):
            raise ConfigError(f"There is no layer {max(outputs.layers)} to tap.")
        # C writes what enters layer k to address k, and the last hidden state behind those of all layers.
        wanted = (*outputs.layers, *([self.spec.num_layers + 1] if outputs.has_last else []))
        tapped = {index: torch.zeros(rows, asked, self.spec.hidden_size, dtype=self.dtype) for index in wanted}
        states = _addresses(tapped, self.spec.num_layers + 2)
        # Buffers are named anew in each call, since a cache that grew or lost rows has moved.
        buffers = (ctypes.c_void_p * len(cache.buffers))(*[buffer.data_ptr() for buffer in cache.buffers])
        lengths = (ctypes.c_int64 * rows)(*cache.lengths)
        tables = cache.tables()
        places = (ctypes.c_void_p * rows)(*[table.buffer_info()[0] for table in tables])
        held = (ctypes.c_int64 * rows)(*map(len, tables))
        skipped = _flags(skip, self.spec.num_layers)
        cross = self._source(cache.extra, rows) if self.spec.has_cross else None
        # Rotary tables reach as far as this call's last position, each row's by the phase that its text is in.
        last = min(int(position.max()) + 1, self.spec.max_positions) if position.numel() else 0
        found = {phase: self._rotation.tables(max(1, last), phase) for phase in cache.phases}
        turns = [table.data_ptr() for phase in cache.phases for pair in found[phase] for table in pair]
        turned = (ctypes.c_void_p * max(1, len(turns)))(*turns)
        # One call at a time: scratch memory, the team of threads and the filled-in structure are the decoder's own.
        with self._lock:
            call = self._call
            call.rows, call.width, call.asked = rows, width, asked
            call.threads = torch.get_num_threads()
            call.tokens, call.position = tokens.data_ptr(), position.data_ptr()
            call.visible = None if visible is None else visible.data_ptr()
            call.ask = None if ask is None else ask.data_ptr()
            call.lengths, call.buffers = ctypes.addressof(lengths), ctypes.addressof(buffers)
            call.page_size, strides = cache.page_size, cache.buffers[0].stride()
            call.page_stride, call.head_stride = (stride // cache.buffers[0].shape[-1] for stride in strides[:2])
            call.is_coded = cache.buffers[0].dtype == torch.uint8
            call.tables, call.held = ctypes.addressof(places), ctypes.addressof(held)
            call.skip = None if skipped is None else ctypes.addressof(skipped)
            call.ropes, call.turns = len(self.spec.ropes), ctypes.addressof(turned)
            call.logits = logits.data_ptr() if outputs.has_logits else None
            call.inputs = None if inputs is None else inputs.data_ptr()
            call.taps = None if states is None else ctypes.addressof(states)
            call.cross = None if cross is None else ctypes.addressof(cross)
            if cross is not None:
                call.sources, call.source_slots = cache.extra[0].data_ptr(), cache.extra[1].shape[1]
            status = self._library.outpace_forward(self._handle, self._call_address)
        if status:
            raise ConfigError(FAILURES[status])
        hidden = tapped.pop(self.spec.num_layers + 1) if outputs.has_last else None
        return Scores(logits, tapped, {}, hidden)

    def _source(self, extra: Sequence[Tensor], rows: int) -> ctypes.Array[ctypes.c_void_p]:
        """Return the addresses of what `EncoderDecoder.encode` left, each checked."""
        if not extra:
            raise ConfigError("The cache holds no source.", "Call encode before the first forward.")
        lengths, *entries = extra
        shape = (rows, entries[0].shape[1], self.spec.num_kv_heads, self.spec.head_dim)
        is_fit = len(entries) == 2 * self.spec.num_layers and lengths.shape == (rows, 1)
        for tensor in entries:
            is_fit &= tensor.shape == shape and tensor.dtype == self.dtype and tensor.is_contiguous()
        if not is_fit or lengths.dtype != torch.int64 or not lengths.is_contiguous():
            raise ConfigError(f"What is held of sources has to be lengths [B, 1] and {self.dtype} {list(shape)}.")
        return (ctypes.c_void_p * len(entries))(*[tensor.data_ptr() for tensor in entries])

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits [N, V] of last hidden states [N, hidden], with the bits that a forward gives them."""
        if hidden.dim() != 2 or hidden.shape[1] != self.spec.hidden_size or hidden.device.type != "cpu":
            raise ConfigError("hidden has to be [N, hidden], on the CPU.")
        hidden = hidden.to(self.dtype).contiguous()
        logits = torch.empty(len(hidden), self.spec.vocab_size, dtype=self.dtype)
        given = (hidden.data_ptr(), len(hidden), logits.data_ptr(), torch.get_num_threads())
        with self._lock:
            status = self._library.outpace_head(self._handle, *given)
        if status:
            raise ConfigError(FAILURES[status])
        return logits

    def _check(
        self, tokens: Tensor, position: Tensor, visible: Tensor | None, cache: Cache, ask: Tensor | None
    ) -> None:
        """Refuse what the C side could not survive; what depends on values it checks itself."""
        rows, width = tokens.shape
        is_int = tokens.dtype == position.dtype == torch.int64 and (ask is None or ask.dtype == torch.int64)
        if not is_int or position.shape != tokens.shape or (ask is not None and ask.shape[0] != rows):
            raise ConfigError("tokens and position have to be int64 [B, T], ask int64 [B, A].")
        if tokens.device.type != "cpu":
            raise ConfigError("The compiled path runs on the CPU.", hint="Move the tokens there.")
        if visible is not None and (visible.dtype != torch.bool or visible.shape != (rows, width, width)):
            raise ConfigError("visible has to be bool [B, T, T].")
        spec = self.spec
        if len(cache.buffers) != 2 * spec.num_layers or len(cache.lengths) != rows or min(cache.lengths, default=0) < 0:
            raise ConfigError("The cache has another number of layers or rows than this forward.")
        tables, size = cache.tables(), cache.page_size
        pages = max([len(cache.buffers[0]), *(max(table) + 1 for table in tables if table)])
        # An entry is numbers of the model's, or bytes with a factor behind them.
        is_coded = cache.buffers[0].dtype == torch.uint8
        dtype, width = (torch.uint8, spec.head_dim + FACTOR_BYTES) if is_coded else (self.dtype, spec.head_dim)
        shape = (pages, spec.num_kv_heads, size, width)
        strides = cache.buffers[0].stride()
        is_regular = strides[2:] == (width, 1) and not any(stride % width for stride in strides[:2])
        for buffer in cache.buffers:
            if buffer.shape != shape or buffer.dtype != dtype or buffer.stride() != strides or not is_regular:
                raise ConfigError(f"Every cache buffer has to be {dtype} {list(shape)}, heads contiguous.")
        if any(length > len(table) * size for length, table in zip(cache.lengths, tables, strict=True)):
            raise ConfigError("The cache claims more entries than it has slots.")


class TrimmedDecoder:
    """A decoder with some rows of the head; it takes every token, which the whole decoder embeds."""

    def __init__(self, decoder: CompiledDecoder, whole: CompiledDecoder) -> None:
        self._decoder, self._whole = decoder, whole

    @property
    def code_bits(self) -> int:
        """As `CompiledDecoder.code_bits`."""
        return self._whole.code_bits

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
        """As `CompiledDecoder.score`, with logits [B, A, K]."""
        if inputs is None:
            inputs = self._whole.embed(tokens)
        return self._decoder.score(torch.zeros_like(tokens), position, visible, cache, ask, outputs, inputs, skip)

    def head(self, hidden: Tensor) -> Tensor:
        """As `CompiledDecoder.head`, with logits [N, K]."""
        return self._decoder.head(hidden)

    def embed(self, tokens: Tensor) -> Tensor:
        """As `CompiledDecoder.embed`."""
        return self._whole.embed(tokens)

    def cross(self, states: Tensor) -> list[Tensor]:
        """As `CompiledDecoder.cross`."""
        return self._whole.cross(states)

    def trim_head(self, ids: Tensor) -> TrimmedDecoder:
        """Return a decoder with some of these rows."""
        return TrimmedDecoder(self._decoder._trim(ids), self._whole)


def _view_layers(views: _Views, spec: Spec, weights: Weights) -> ctypes.Array[LayerView]:
    layers = (LayerView * spec.num_layers)()
    for index, (view, layer) in enumerate(zip(layers, weights.layers, strict=True)):
        view.attention_norm = views.norm(layer.attn_norm, spec.hidden_size)
        view.ffn_norm = views.norm(layer.mlp_norm, spec.hidden_size)
        view.query_norm, view.key_norm = views.vector(layer.q_norm), views.vector(layer.k_norm)
        view.qkv_bias, view.output_bias = views.vector(layer.qkv.bias), views.vector(layer.o.bias)
        view.up_bias = views.panel_vector(layer.up.bias, spec.is_gated)
        view.down_bias = views.vector(layer.down.bias)
        view.qkv, view.output = views.matrix(layer.qkv), views.matrix(layer.o)
        view.up, view.down = views.matrix(layer.up, is_gated=spec.is_gated), views.matrix(layer.down)
        view.window, view.rope = spec.windows[index] or 0, spec.rope_index[index]
        view.distance = views.distances(layer.relative)
        if layer.cross is not None:
            _view_cross(views, view.cross, layer.cross, spec.hidden_size)
    return layers


def _view_cross(views: _Views, view: CrossView, cross: CrossWeights, hidden: int) -> None:
    view.norm = views.norm(cross.norm, hidden)
    view.query_bias, view.output_bias = views.vector(cross.q.bias), views.vector(cross.o.bias)
    view.query, view.output = views.matrix(cross.q), views.matrix(cross.o)


def _view_model(views: _Views, spec: Spec, weights: Weights, layers: ctypes.Array[LayerView]) -> ModelView:
    view = _view_shape(spec, views.packer.dtype)
    view.layer = ctypes.cast(layers, ctypes.POINTER(LayerView))
    view.embed_norm = views.norm(weights.embed_norm, spec.hidden_size)
    view.final_norm = views.norm(weights.final_norm, spec.hidden_size)
    if weights.positions is not None:
        view.position_table = views.keep(weights.positions.detach().float().contiguous())
    # Asked before packing frees the head: a tied embedding is read back from the packed head, which saves a copy.
    is_tied = weights.is_tied
    if weights.head.shape[0]:
        view.head, view.head_bias = views.matrix(weights.head), views.vector(weights.head.bias)
    elif weights.table is not None:  # an encoder has no head: it embeds by the decoder's, where that is packed
        view.head, is_tied = views.matrix(weights.table), True
    if not is_tied and weights.table is not None:
        view.embedding = views.matrix(weights.table)
    elif not is_tied:
        views.embedding = weights.embed.detach().to(views.packer.dtype).contiguous()
        view.embedding.data = views.keep(views.embedding)
    return view


def _view_shape(spec: Spec, dtype: torch.dtype) -> ModelView:
    view = ModelView(is_bfloat16=dtype == torch.bfloat16, is_full=spec.attention == "full")
    view.block, view.is_shifted = spec.block_size if spec.attention == "block" else 0, spec.logits_shift
    view.has_mean, view.is_after = spec.norm == "layer", spec.norm_placement == "after"
    view.is_parallel, view.is_gated = spec.is_parallel, spec.is_gated
    view.activation = ACTIVATIONS.index(spec.activation)
    view.vocab, view.hidden, view.layers = spec.vocab_size, spec.hidden_size, spec.num_layers
    view.heads, view.kv_heads, view.head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
    view.ffn, view.positions, view.first_row = spec.ffn_size, spec.max_positions, spec.position_offset
    view.norm_eps, view.attention_scale = spec.norm_eps, spec.attn_scale
    view.embed_scale, view.head_scale = spec.embed_scale, spec.head_scale
    view.reach = spec.relative_distance
    return view


def multiply(library: ctypes.CDLL, view: MatrixView, given: Tensor, outputs: int, bias: int | None) -> Tensor:
    """Return [N, outputs], one product by itself.

    Args:
        library: the kernels.
        view: a packed matrix.
        given: [N, inputs], contiguous, in a type that kernels compute in.
        outputs: rows of the matrix.
        bias: address of padded float32 numbers; None = none.

    Raises:
        ConfigError: there is no memory for it.
    """
    rows, inputs = given.shape
    found = torch.empty(rows, outputs, dtype=given.dtype)
    is_bfloat16, threads = int(given.dtype == torch.bfloat16), torch.get_num_threads()
    sizes = (rows, inputs, outputs)
    with _product_lock:
        status = library.outpace_linear(
            ctypes.byref(view), is_bfloat16, given.data_ptr(), *sizes, bias, found.data_ptr(), threads
        )
    if status:
        raise ConfigError(FAILURES[status])
    return found


def _num_panels(outputs: int, is_gated: bool = False) -> int:
    """Return the panels of a matrix; of a gated one, each holds half a panel of gates."""
    return math.ceil(outputs // 2 / (COLUMNS // 2)) if is_gated else math.ceil(outputs / COLUMNS)


def _flags(chosen: Sequence[int], count: int) -> ctypes.Array[ctypes.c_uint8] | None:
    """Return a byte per layer, 1 for the chosen; None when there is none."""
    return (ctypes.c_uint8 * count)(*[index in chosen for index in range(count)]) if chosen else None


def _addresses(tensors: Mapping[int, Tensor], count: int) -> ctypes.Array[ctypes.c_void_p] | None:
    """Return `count` addresses, null where there is no tensor; None when there is none at all."""
    if not tensors:
        return None
    found = [tensors[index].data_ptr() if index in tensors else None for index in range(count)]
    return (ctypes.c_void_p * count)(*found)


def _round_up(value: int, multiple: int) -> int:
    return (value + multiple - 1) // multiple * multiple
