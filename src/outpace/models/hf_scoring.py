"""Four ways of scoring with a transformers model.

    batched   all rows in one forward, each at its own length; trees where they come out right too
    rows      one row at a time, chains only: models that count positions from one past length
    own       the model's own cache, one per row, chains only: recurrent and hybrid models, layers that share theirs
    plain     the whole prefix again each time, without a cache

Which of them a model allows is not known here: `outpace.models.hf_adapter` finds it out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from outpace.cache import Cache, Pages
from outpace.errors import CapabilityError
from outpace.models.hf_forward import Forward, head_only, joined, prepare, staged_cache
from outpace.models.hf_own import OwnCache, OwnState
from outpace.types import NO_OUTPUTS, Adapter, Counter, Outputs, Scores

__all__ = ["NATIVE", "TransformersScorer"]

NATIVE = "Use a model that outpace loads natively."
REREAD = 8  # tokens that are read again with the next ones rather than by a forward of their own


class TransformersScorer(Adapter):
    """A causal transformers model that is scored in a known way.

    Args:
        model: any `...ForCausalLM` (or, for a subclass, `...ForConditionalGeneration`).

    Attributes:
        mode: "batched", "rows", "own" or "plain", see the module; a subclass finds it out.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.mode = "plain"
        self.notes: list[str] = []
        self.device, self.dtype = model.device, model.dtype
        self._accepts = set(inspect.signature(model.forward).parameters)
        self._shapes: list[tuple[int, int, torch.dtype]] = []  # of every buffer: heads, head size, dtype
        self._own = ""  # what a forward calls the cache that it returns and takes
        self._width = 0  # of a hidden state
        self._reads_many = self._can_copy = True  # on top of a state: several tokens in a forward; a copy to go back to
        self._num_masks = 0  # masks made from our positions so far
        self._blocks: Sequence[Any] = ()  # the decoder's layers, where hidden states can be read between them
        self._table, self._embed_scale = model.get_input_embeddings(), 1.0
        self._reads_soft = False
        self._has_plain_head = False  # logits are the output matrix times the last hidden state, and nothing else
        if getattr(model.config, "_attn_implementation", "eager") not in ("eager", "sdpa"):
            model.set_attn_implementation("sdpa" if getattr(model, "_supports_sdpa", False) else "eager")
        prepare(model)

    # The contract

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return an empty cache: [k0, v0, ...], each [rows, H, capacity, D]; else tokens [rows, capacity]."""
        if self.mode in ("own", "plain"):
            tokens = torch.zeros(rows, capacity, dtype=torch.int64, device=self.device)
            if self.mode == "own":
                return OwnCache(tokens, counter, [0] * rows)
            return Cache([tokens], 1, counter, [0] * rows)
        buffers = [
            torch.zeros(rows, heads, capacity, size, dtype=dtype, device=self.device)
            for heads, size, dtype in self._shapes
        ]
        return Cache(buffers, 2, counter, [0] * rows)

    def new_pool(self, num_pages: int, page_size: int = 32) -> Pages | None:
        """Return memory for paged caches, [k0, v0, ...], each [num_pages, H, page_size, D]; None without slots."""
        if self.mode in ("own", "plain"):
            return None
        return Pages(
            [
                torch.empty(1, num_pages, heads, page_size, size, dtype=dtype, device=self.device)
                for heads, size, dtype in self._shapes
            ]
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [B, T, hidden] that `score` takes as `inputs`."""
        embedded: Tensor = self._table(tokens)
        return embedded * self._embed_scale if self._embed_scale != 1 else embedded

    @torch.no_grad()
    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of last hidden states [..., hidden]."""
        flat = hidden.reshape(1, -1, hidden.shape[-1]).to(self.dtype)
        if self._has_plain_head:
            logits: Tensor = self.model.get_output_embeddings()(flat)
        else:  # scaled, capped or shifted behind the matrix: the model runs a token, and these states take its place
            forward = head_only(1, 1, None, self.device)
            forward.instead = flat
            with forward.running():
                logits = self._first_call(torch.tensor([[1]], device=self.device)).logits
        return logits.reshape(*hidden.shape[:-1], -1)

    @torch.no_grad()
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
        """Run one forward; see `outpace.types.Adapter`."""
        self.check(outputs, skip)
        self._check(tokens, position, visible, cache)
        if inputs is not None and not self._reads_soft:
            raise CapabilityError("This model cannot read soft embeddings.", NATIVE)
        cache.stage(position)
        with cache.dense(tokens.shape[1]) as dense:
            return self._score(tokens, position, visible, dense, ask, outputs, inputs)

    def _score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None,
        outputs: Outputs,
        inputs: Tensor | None,
    ) -> Scores:
        """Run one forward on rows that lie side by side."""
        if self.mode in ("own", "plain"):
            self._note(tokens, cache)
            if ask is not None and not ask.shape[1]:  # prefill: what was noted is read with the first that is asked
                return self._nothing(len(tokens), 0, outputs)
        if self.mode == "plain":
            return self._score_plain(tokens, position, cache, ask, outputs)
        if isinstance(cache, OwnCache):
            return self._score_own(position, cache, ask, outputs)
        if self.mode == "rows":
            return self._score_rows(tokens, position, cache, ask, outputs, inputs)
        forward = Forward(position, visible, cache.lengths, ask, self.capabilities.max_positions, outputs)
        cache.counter.add(tokens.numel(), self.capabilities.num_layers)
        return self._run(tokens, inputs, forward, cache.buffers, cache.extra)

    def _check(self, tokens: Tensor, position: Tensor, visible: Tensor | None, cache: Cache) -> None:
        size = tokens.shape[1]
        cache.check_room(size)
        if visible is None or self.capabilities.has_tree:
            return
        is_real = position >= 0
        chain = torch.ones(size, size, dtype=torch.bool, device=tokens.device).tril()
        if ((visible ^ chain) & is_real[:, :, None] & is_real[:, None, :]).any():
            raise CapabilityError("This model cannot score trees.", "Draft chains (tree_width=1).")

    # Four ways of scoring

    def _score_rows(
        self,
        tokens: Tensor,
        position: Tensor,
        cache: Cache,
        ask: Tensor | None,
        outputs: Outputs,
        inputs: Tensor | None,
    ) -> Scores:
        """Score each row by itself, without its padding; a row of padding only gets zeros."""
        limit = self.capabilities.max_positions

        def score(row: int, count: int, where: Tensor) -> Scores:
            one = slice(row, row + 1)
            forward = Forward(position[one, :count], None, cache.lengths[one], where, limit, outputs)
            cache.counter.add(count, self.capabilities.num_layers)
            buffers, extra = [buffer[one] for buffer in cache.buffers], [tensor[one] for tensor in cache.extra]
            soft = None if inputs is None else inputs[one, :count]
            return self._run(tokens[one, :count], soft, forward, buffers, extra)

        return self._one_by_one(position, ask, outputs, score)

    def _note(self, tokens: Tensor, cache: Cache) -> None:
        """Write the tokens into the book of a model that reads them later."""
        held = torch.tensor(cache.lengths, device=tokens.device)[:, None]
        cache.buffers[0].scatter_(1, held + torch.arange(tokens.shape[1], device=tokens.device), tokens)

    def _nothing(self, rows: int, asked: int, outputs: Outputs) -> Scores:
        """Return zeros: what padding says."""

        def zeros(width: int) -> Tensor:
            return torch.zeros(rows, asked, width, dtype=self.dtype, device=self.device)

        taps = {layer: zeros(self._width) for layer in outputs.layers}
        return Scores(zeros(self.capabilities.vocab_size), taps, {}, zeros(self._width) if outputs.has_last else None)

    def _score_own(self, position: Tensor, cache: OwnCache, ask: Tensor | None, outputs: Outputs) -> Scores:
        """Let each row's own cache read what it has not read yet."""

        def score(row: int, count: int, where: Tensor) -> Scores:
            return self._read(cache, row, count, where, outputs)

        return self._one_by_one(position, ask, outputs, score)

    def _read(self, cache: OwnCache, row: int, count: int, where: Tensor, outputs: Outputs) -> Scores:
        """Read a row's book up to its `count` staged tokens; `where` [1, A] of them are asked."""
        state, held, book = cache.states[row], cache.lengths[row], cache.buffers[0][row : row + 1]
        if state.length > held:  # tokens were staged and never kept
            state = cache.states[row] = OwnState()
        state.unshare()
        if count > 1 and self._can_copy:
            if held - state.length > (REREAD if state.length and self._reads_many else 0):
                self._feed(cache, state, book[:, state.length : held], None, NO_OUTPUTS)
            if state.length:
                state.save()
        first = state.length
        return self._feed(cache, state, book[:, first : held + count], where + held - first, outputs)

    def _feed(self, cache: OwnCache, state: OwnState, tokens: Tensor, ask: Tensor | None, outputs: Outputs) -> Scores:
        """Read tokens [1, T] on top of a state, in one forward where the model can; `ask` None = no logits wanted."""
        total = tokens.shape[1]
        size = total if self._reads_many or not state.length else 1
        found = []
        for at in range(0, total, size):
            part = tokens[:, at : at + size]
            wanted = torch.arange(part.shape[1], device=part.device)[None] if size < total else ask
            wanted = part.new_zeros(1, 1) if wanted is None else wanted
            forward = head_only(1, part.shape[1], wanted, part.device, outputs)
            cache.counter.add(part.shape[1], self.capabilities.num_layers)
            past = {} if state.past is None else {self._own: state.past}
            with forward.running(self._blocks):
                output = self.model(input_ids=part, **past, use_cache=True)
            state.past, state.length = getattr(output, self._own), state.length + part.shape[1]
            found.append(forward.scores(output.logits))
        scores = joined(found, lambda parts: torch.cat(parts, 1))
        if size == total or ask is None:
            return scores
        return joined([scores], lambda parts: parts[0].take_along_dim(ask.unsqueeze(-1), 1))

    def _one_by_one(
        self, position: Tensor, ask: Tensor | None, outputs: Outputs, score: Callable[[int, int, Tensor], Scores]
    ) -> Scores:
        """Put rows together that are scored by themselves: `score(row, real tokens, asked [1, A])`."""
        rows, size = position.shape
        counts = (position >= 0).sum(1).tolist()
        asked = torch.arange(size, device=position.device).expand(rows, -1) if ask is None else ask
        real = [row for row, count in enumerate(counts) if count]
        if not real:
            return self._nothing(rows, asked.shape[1], outputs)

        def spread(parts: list[Tensor]) -> Tensor:
            shape = (rows, asked.shape[1], parts[0].shape[-1])
            whole = torch.zeros(shape, dtype=self.dtype, device=position.device)
            whole[real] = torch.cat(parts).to(self.dtype)
            return whole

        found = [score(row, counts[row], asked[row : row + 1].clamp(max=counts[row] - 1)) for row in real]
        return joined(found, spread)

    def _score_plain(
        self, tokens: Tensor, position: Tensor, cache: Cache, ask: Tensor | None, outputs: Outputs
    ) -> Scores:
        """Score whole texts again; rows are padded at the right, where a causal model does not look."""
        rows, size = tokens.shape
        held = torch.tensor(cache.lengths, device=tokens.device)[:, None]
        asked = held + (torch.arange(size, device=tokens.device) if ask is None else ask)
        extent = int((held[:, 0] + (position >= 0).sum(1)).max())
        forward = head_only(rows, extent, asked.clamp(max=extent - 1), tokens.device, outputs)
        cache.counter.add(rows * extent, self.capabilities.num_layers)
        return self._run(cache.buffers[0][:, :extent], None, forward, [], cache.extra)

    def _run(
        self,
        tokens: Tensor,
        inputs: Tensor | None,
        forward: Forward,
        buffers: Sequence[Tensor],
        extra: Sequence[Tensor],
    ) -> Scores:
        """Call the model and read off what the forward was asked for."""
        with forward.running(self._blocks):
            past = staged_cache(buffers, forward) if forward.is_staged else None
            output = self._call(tokens, inputs, forward.position if forward.is_staged else None, past, extra)
        self._num_masks += forward.num_masks
        return forward.scores(output.logits)

    def _call(
        self, tokens: Tensor, inputs: Tensor | None, position: Tensor | None, past: Any, extra: Sequence[Tensor]
    ) -> Any:
        del extra
        arguments = {"input_ids": tokens} if inputs is None else {"inputs_embeds": inputs.to(self.dtype)}
        if position is not None and "position_ids" in self._accepts:
            arguments["position_ids"] = position
        if past is None:
            return self.model(**arguments, use_cache=False)
        return self.model(**arguments, past_key_values=past, use_cache=True)

    def _first_call(self, tokens: Tensor, **more: Any) -> Any:
        return self.model(input_ids=tokens, use_cache=True, **more)
