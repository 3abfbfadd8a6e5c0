"""The native stack of layers: one forward for every family that a `Spec` can describe.

It embeds, has its forward laid out (`outpace.models.layout`), sends it through the layers (`outpace.models.layers`) and
reads the head; compiled kernels or a recording take over where they can. Knows weights and caches. Knows no method, no
sampler, no tokenizer and no file format.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from outpace.cache import FIRST_SLOTS, Cache, Pages
from outpace.errors import CapabilityError, ConfigError
from outpace.models.graphs import FIRST_EXTENT, Graphs, extent_for
from outpace.models.kernel_contract import CompiledDecoder, Kernels
from outpace.models.layers import Layers
from outpace.models.layout import SMALL_CHAIN, Layout, Layouts, upload
from outpace.models.rotation import Tables, turn
from outpace.models.spec import Spec, spec_capabilities
from outpace.models.weights import Weights, can_pack
from outpace.types import NO_OUTPUTS, Adapter, Counter, Outputs, Scores

__all__ = ["Transformer"]


class Transformer(Adapter):
    """A decoder behind the `Adapter` contract.

    Args:
        spec: its shape.
        weights: its weights; the transformer owns them from here on (packing frees the plain copies).
        pack: reorder matrices for oneDNN; None = where the device and dtype have it.
    """

    def __init__(self, spec: Spec, weights: Weights, pack: bool | None = None) -> None:
        self.spec = spec
        self.weights = weights
        self.capabilities = spec_capabilities(spec)
        self.dtype = weights.embed.dtype
        self.device = weights.embed.device
        self.notes: list[str] = []
        self.shape = str(spec)
        self.layer_weights, self.head_weights = spec.layer_weights, spec.vocab_size * spec.hidden_size
        self._pack(pack)
        self.layers = Layers(spec)
        self._layouts = Layouts(spec, self.dtype, self.device)
        self._embed_scale = torch.tensor(spec.embed_scale, dtype=self.dtype, device=self.device)
        self._compiled: CompiledDecoder | None = None
        self.graphs: Graphs | None = None
        self._entry = (spec.head_dim, self.dtype)  # width and dtype of a cached key or value

    def compile(self, kernels: Kernels, pack: bool | None = None) -> bool:
        """Hand the weights to compiled kernels, if they can serve this model; return whether they do.

        The plain matrices are freed then. Otherwise they are packed as `pack` says, and a note tells why.
        """
        is_tied = self.weights.is_tied
        self._compiled = kernels.compile_decoder(self.spec, self.weights, self.dtype, release=True)
        self.is_invariant = self._compiled is not None
        if self._compiled is None:
            self.notes.append(f"eager path: {kernels.note()}")
            self._pack(pack)
        else:
            self.path = "compiled"
            self.capabilities = replace(self.capabilities, code_bits=self._compiled.code_bits)
            if is_tied:  # the packed head holds the only copy that is needed
                self.weights.embed = self.weights.embed.new_empty(0, self.spec.hidden_size)
            self.notes += kernels.warnings()
        return self.is_invariant

    def use_int8_cache(self) -> None:
        """Keep keys and values as signed bytes with a factor for each of a head's vectors: half of bfloat16's memory.

        Raises:
            CapabilityError: no compiled kernels serve this model; they alone read such a cache.
        """
        if self._compiled is None:
            raise CapabilityError(
                "An int8 cache needs compiled kernels, which do not serve this model here.", "Use cache_dtype=auto."
            )
        self._entry = (self.spec.head_dim + 4, torch.uint8)

    def use_graphs(self, graphs: Graphs | None) -> None:
        """Record and replay small forwards from now on; None = run every forward plainly."""
        self.graphs = graphs
        if self._compiled is None and not self.is_packed:
            self.path = "torch" if graphs is None else "graphs"

    def _pack(self, wanted: bool | None) -> None:
        self.is_packed = can_pack(self.dtype, self.device) if wanted is None else wanted
        self.path = "packed" if self.is_packed else "torch"
        if self.is_packed:
            self.weights.pack()

    def trim_head(self, ids: Tensor) -> Transformer:
        """Return this decoder with some rows of its head: logits are [B, A, K], all else is the same and shared.

        Args:
            ids: [K] int64 tokens.
        """
        trimmed = copy.copy(self)
        trimmed.spec = replace(self.spec, vocab_size=len(ids))
        trimmed.graphs = None if self.graphs is None else self.graphs.fresh()
        if self._compiled is not None:
            trimmed._compiled = self._compiled.trim_head(ids)
            return trimmed
        rows = self.weights.head.rows(ids)
        if self.is_packed:
            rows.pack()
        trimmed.weights = replace(self.weights, head=rows)
        return trimmed

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return an empty cache: per layer a key and a value buffer, each [rows, K, slots, D], slots up to capacity."""
        spec = self.spec
        if self.graphs is not None:  # a graph serves caches of one size that lie in one place, so few sizes are used
            capacity = -(-capacity // FIRST_EXTENT) * FIRST_EXTENT
        width, dtype = self._entry
        shape = (rows, spec.num_kv_heads, min(capacity, FIRST_SLOTS), width)
        if self._compiled is not None:
            # Kernels read what was written and no more. Most slots of many short rows are never written: memory that
            # nobody touches costs nothing, where filling it took longer than the forwards of a small model.
            buffers = [torch.empty(shape, dtype=dtype) for _ in range(2 * spec.num_layers)]
        elif self.graphs is None:
            buffers = [torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(2 * spec.num_layers)]
        else:  # one piece of memory, which the next text is likely to get again
            buffers = list(torch.zeros((2 * spec.num_layers, *shape), dtype=dtype, device=self.device))
        return Cache(buffers, 2, counter, [0] * rows, limit=capacity)

    def new_scratch(self, rows: int, slots: int) -> Cache:
        """Return a cache for one forward of so many tokens a row, whose entries nobody reads later."""
        if self._compiled is None:
            return self.new_cache(rows, slots)
        shape = (rows, self.spec.num_kv_heads, slots, self.spec.head_dim)
        # Layers run one after the other: all of them write into the same two buffers.
        one = [torch.empty(shape, dtype=self.dtype), torch.empty(shape, dtype=self.dtype)]
        return Cache(one * self.spec.num_layers, 2, None, [0] * rows)

    def new_pool(self, num_pages: int, page_size: int = 32) -> Pages | None:
        """Return memory for paged caches, per layer keys and values [num_pages, K, page_size, D].

        None while forwards are recorded: a recorded forward reads static caches, at one address.
        """
        if self.graphs is not None:
            return None
        # Heads lie outermost in memory: what a head reads of neighbouring pages is one stream, as in a static cache.
        width, dtype = self._entry
        shape = (2 * self.spec.num_layers, self.spec.num_kv_heads, num_pages, page_size, width)
        return Pages([torch.empty(shape, dtype=dtype, device=self.device).transpose(1, 2)])

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [B, T, hidden] that `score` takes as `inputs`."""
        if self._compiled is not None:
            return self._compiled.embed(tokens)
        table = self.weights.table
        if table is not None:
            x = table.rows(tokens.flatten()).dense().view(*tokens.shape, -1).to(self.dtype)
        else:
            x = F.embedding(tokens, self.weights.embed)
        if self.spec.embed_scale != 1.0:
            x = x * self._embed_scale
        if self.weights.project_in is not None:
            x = self.weights.project_in(x)
        return x

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
        """Run one forward; see `outpace.types.Adapter`.

        `visible=None` on a causal model says that each row is a chain: position[b, i] = cache.lengths[b] + i, with
        padding only at the right.
        """
        rows, size = tokens.shape
        self._check(rows, size, visible, cache)
        cache.stage(position)
        turn(self.spec, position, cache)
        if outputs or skip:
            self.check(outputs, skip)
        cache.counter.add(rows * size, self.spec.num_layers - len(skip))
        if self._compiled is not None:
            return self._compiled.score(tokens, position, visible, cache, ask, outputs, inputs, skip)
        with cache.dense(size) as dense:
            # A recorded forward is found by where its cache lies, so one on a lent copy is run plainly.
            if self.graphs is not None and inputs is None and dense is cache and self._can_record(size):
                return self._run_recorded(self.graphs, tokens, position, visible, dense, ask, outputs, skip)
            with torch.inference_mode():
                # Where tokens go and what they see is laid out once; every layer then only reads it.
                layout = self._layouts.lay(position, visible, dense)
                x, tapped = self._run(tokens, position, layout, dense.buffers, ask, outputs, inputs, skip)
        with torch.no_grad():  # outside inference mode: callers may write into what they get
            return self._scores(x, tapped, layout, ask, outputs)

    def differentiable(self, tokens: Tensor, position: Tensor, cache: Cache, buffers: Sequence[Tensor]) -> Tensor:
        """Return the logits [B, T, V] of a chain behind a cache's entries, whose gradient reaches those entries.

        Args:
            tokens, position: as of `score`.
            cache: says how many entries each row has; nothing is staged in it.
            buffers: in the place of the cache's own, with room for the chain.

        Raises:
            CapabilityError: compiled, packed or recorded forwards have no gradient.
        """
        if self.path != "torch":
            raise CapabilityError(
                f"The {self.path} path of a model has no gradient.", "Load it with --no-compile --dtype float64."
            )
        layout = self._layouts.lay(position, None, cache)
        # Tables that inference made first cannot be part of a graph.
        layout.rotation = [(cos.clone(), sin.clone()) for cos, sin in layout.rotation]
        layout.masks = {
            window: (first, None if mask is None else mask.clone(), is_causal)
            for window, (first, mask, is_causal) in layout.masks.items()
        }
        own = [buffer.clone() for buffer in buffers]  # staged in: a leaf cannot be
        x, _ = self._run(tokens, position, layout, own, None, NO_OUTPUTS, None, ())
        return self.head(x).view(*tokens.shape, -1)

    def _run(
        self,
        tokens: Tensor,
        position: Tensor,
        layout: Layout,
        buffers: list[Tensor],
        ask: Tensor | None,
        outputs: Outputs,
        inputs: Tensor | None,
        skip: Sequence[int],
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return what the head reads, [B * A, hidden], and what enters the tapped layers, [B * T, hidden] each."""
        rows, size = tokens.shape
        x = self.embed(tokens) if inputs is None else inputs.to(self.dtype)
        x = self.layers.norm(self._add_positions(x, position), self.weights.embed_norm).reshape(rows * size, -1)
        x, tapped = self.layers.run(self.weights.layers, x, layout, buffers, skip, outputs.layers)
        # The head is the largest matrix of a small model: only what is asked goes through it.
        x = self._select(x, rows, size, ask, self.spec.logits_shift)
        return self.layers.norm(x, self.weights.final_norm), tapped

    def _add_positions(self, x: Tensor, position: Tensor) -> Tensor:
        table = self.weights.positions
        if table is None:
            return x
        reach = position.clamp(0, self.spec.max_positions - 1)
        return x + F.embedding(reach + self.spec.position_offset, table)

    def _scores(
        self, x: Tensor, tapped: dict[int, Tensor], layout: Layout, ask: Tensor | None, outputs: Outputs
    ) -> Scores:
        rows, size = layout.rows, layout.size
        count = len(x) // rows if rows else 0
        logits = self.head(x) if outputs.has_logits else x.new_zeros(rows * count, 0)
        kept = {i: self._select(h, rows, size, ask).clone().view(rows, -1, h.shape[-1]) for i, h in tapped.items()}
        last = x.clone().view(rows, -1, x.shape[-1]) if outputs.has_last else None
        return Scores(logits.view(rows, count, logits.shape[-1]), kept, {}, last)

    # Forwards that can be recorded

    def _can_record(self, size: int) -> bool:
        """Return whether a forward is one of those that are laid out on the device, by tensors alone.

        This is a matter of its shape, never of what was recorded before, so that a text is rounded the same each time.
        """
        # Which experts are read is known on the host alone, so a mixture is never recorded.
        return size <= SMALL_CHAIN and not self.spec.turns_at and self.spec.routing is None

    def _run_recorded(
        self,
        graphs: Graphs,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None,
        outputs: Outputs,
        skip: Sequence[int],
    ) -> Scores:
        """Run a forward through `graphs`: it looks at a set number of slots, and masks those that hold nothing."""
        rows, size = tokens.shape
        used = max(cache.lengths) + size
        extent = cache.slots if cache.has_fixed_extent else extent_for(used, cache.slots)
        buffers, tables = list(cache.buffers), list[Tables]()  # a graph reads both: the former are in its key

        def forward(
            tokens: Tensor, position: Tensor, held: Tensor, visible: Tensor | None, ask: Tensor | None
        ) -> tuple[Tensor, ...]:
            layout = self._layouts.lay_fixed(position, visible, cache, held, extent)
            tables.extend(layout.tables)
            scores = self._scores(
                *self._run(tokens, position, layout, buffers, ask, outputs, None, skip), layout, ask, outputs
            )
            last = () if scores.last is None else (scores.last,)
            return scores.logits, *(scores.taps[index] for index in outputs.layers), *last

        lies = tuple(buffer.data_ptr() for buffer in buffers)
        asked = None if ask is None else ask.shape[1]
        shape = (rows, size, extent, self._layouts.turning(cache), asked, visible is None, buffers[0].shape)
        key = (shape, outputs, tuple(skip), lies)
        given = (tokens, position, upload(cache.lengths, self.device), visible, ask)
        logits, *rest = graphs.run(key, forward, given, tables)
        if graphs.fault and graphs.fault not in self.notes:
            self.notes.append(graphs.fault)
        return Scores(logits, dict(zip(outputs.layers, rest, strict=False)), {}, rest[-1] if outputs.has_last else None)

    def _check(self, rows: int, size: int, visible: Tensor | None, cache: Cache) -> None:
        lengths = cache.lengths
        if len(lengths) != rows:
            raise ConfigError(f"The forward has {rows} rows and its cache {len(lengths)}.")
        longest = max(lengths, default=0)
        cache.check_room(size)
        # Padding and trees reach less far than slots do, and only their positions know; a lone chain is exact.
        is_exact = rows == 1 and visible is None and not cache.has_fixed_extent
        reach = longest + (size if is_exact else 1)
        if reach > self.spec.max_positions:
            raise ConfigError(
                f"Position {reach - 1} lies beyond the model's context of {self.spec.max_positions} tokens.",
                hint="Use a shorter prompt or fewer new tokens.",
            )

    # From hidden states to logits

    def _select(self, x: Tensor, rows: int, size: int, ask: Tensor | None, is_shifted: bool = False) -> Tensor:
        """Gather the asked positions out of x [B * T, hidden], giving [B * A, hidden]."""
        if ask is None and not is_shifted:
            return x
        if ask is None:
            ask = torch.arange(size, device=x.device).expand(rows, -1)
        if is_shifted:  # what is said of a token is said one position before it
            ask = (ask - 1).clamp(min=0)
        if rows > 1:
            ask = ask + torch.arange(0, rows * size, size, device=x.device)[:, None]
        return x.index_select(0, ask.reshape(-1))

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of last hidden states [..., hidden], as `Scores.last` holds them."""
        weights, cap = self.weights, self.spec.final_softcap
        flat = hidden.reshape(-1, hidden.shape[-1])
        if self.spec.head_scale != 1.0 and self._compiled is None:
            flat = flat * self.spec.head_scale
        if self._compiled is not None:
            logits = self._compiled.head(flat)
        elif not flat.shape[0]:
            logits = flat.new_zeros(0, self.spec.vocab_size)
        else:
            logits = weights.head(flat if weights.project_out is None else weights.project_out(flat))
            logits = torch.tanh(logits / cap) * cap if cap else logits
        return logits.view(*hidden.shape[:-1], self.spec.vocab_size)

    def early(self, hidden: Tensor) -> Tensor:
        """Return the logits as if states [..., hidden] that enter a layer had left the last one."""
        return self.head(self.layers.norm(hidden, self.weights.final_norm))

    def __repr__(self) -> str:
        spec = self.spec
        shape = f"{spec.num_layers} layers, {spec.num_weights / 1e6:.1f}M weights, {spec.vocab_size} words"
        return f"Transformer({shape}, {self.dtype}, {self.device}, {self.path})"
