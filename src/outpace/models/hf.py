"""Any transformers model behind the `Adapter` contract: slower than the native decoder, same answers.

    adapter = load_transformers("org/name")     # or a directory; causal or encoder-decoder
    adapter = wrap(model)                       # a model object in memory

What a model can do is found out by trying it, not by its name: on the way in, a few short forwards are compared with
the model's own full forward, and the adapter settles for the first way of scoring that gives the same logits.

    batched   all rows in one forward, each at its own length; trees where they come out right too
    rows      one row at a time, chains only: models that count positions from one past length
    own       the model's own cache, one per row, chains only: recurrent and hybrid models, layers that share theirs
    plain     the whole prefix again each time, without a cache

The slower three say so in `notes`. A model that looks ahead is refused. transformers is imported only inside functions.
"""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outpace.cache import Cache, Pages
from outpace.errors import CapabilityError, ConfigError, ModelError
from outpace.models.hf_forward import Forward, head_only, joined, prepare, staged_cache, stored_cache
from outpace.models.hf_own import OwnCache, OwnState
from outpace.types import NO_OUTPUTS, Adapter, Capabilities, Counter, Outputs, Scores

__all__ = ["TransformersAdapter", "TransformersSeq2Seq", "load_transformers", "quiet", "wrap"]

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
MAX_POSITIONS = ("max_target_positions", "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
UNLIMITED = 2048  # positions promised where a model names none (relative positions)
NOTES = {
    "rows": "transformers adapter: this model counts positions by itself, so its rows are scored one by one.",
    "own": "transformers adapter: this model's cache has no slots, so its rows are scored one by one, each on a cache "
    "of the model's own; rejected drafts are undone by {how}.",
    "plain": "transformers adapter: this model has no cache that can roll back, so every step reads the whole prefix.",
}
NATIVE = "Use a model that outpace loads natively."
OWN = ("past_key_values", "cache_params", "state")  # what a forward calls the cache that it returns and takes
REREAD = 8  # tokens that are read again with the next ones rather than by a forward of their own
PROBE = 12  # tokens of the longest probed row


def load_transformers(
    name: str | os.PathLike[str],
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    trust_remote_code: bool = False,
) -> TransformersAdapter:
    """Load a model with transformers.

    Args:
        name: a directory, or an id on the Hugging Face hub. Only safetensors are read.
        dtype: "auto" (as stored, but bfloat16 for float16 on a CPU), or a name or torch dtype.
        device: "auto", "cpu", "cuda", or a torch device.
        trust_remote_code: run the code that comes with the model.

    Raises:
        ModelError: it cannot be found, read or trusted, or transformers is not installed.
        CapabilityError: it is not a model that writes from left to right.
    """
    from outpace.models.loading import loading_notes, pick_device, pick_dtype, read_config, resolve
    from outpace.models.tensors import check_stored, find_tensor_files

    transformers = _transformers()
    # A fetched snapshot has no code in it, so a trusted name goes to transformers as it is.
    where = os.fspath(name) if trust_remote_code and not Path(name).is_dir() else str(resolve(name))
    place = pick_device(device)
    stored: dict[str, Any] = {}
    if os.path.isdir(where):
        stored = read_config(where)
        check_stored(find_tensor_files(Path(where)), stored)
    with quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code)
            kind = pick_dtype(dtype, stored or config.to_dict(), place)
            maker = (
                transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
            )
            model, report = maker.from_pretrained(
                where,
                config=config,
                dtype=kind,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
        except ModelError:
            raise
        except Exception as error:  # transformers raises a dozen kinds; each means that the model cannot be had
            raise ModelError(f"transformers cannot load {where}: {_first_line(error)}", _load_hint(error)) from error
    missing = sorted(report["missing_keys"]) or sorted(str(item) for item in report["mismatched_keys"])
    if missing:
        raise ModelError(
            f"{where} lacks or mis-shapes {len(missing)} tensors, {missing[0]} among them.",
            "The files are not of this config.json.",
        )
    adapter = wrap(model.to(place))
    adapter.notes += loading_notes(Path(where), stored, dtype, kind)
    if report["unexpected_keys"]:
        first = sorted(report["unexpected_keys"])[0]
        adapter.notes.append(f"transformers left {len(report['unexpected_keys'])} tensors unread, {first} among them.")
    return adapter


def wrap(model: Any) -> TransformersAdapter:
    """Return the adapter of a transformers model in memory: a `TransformersSeq2Seq` if it has an encoder.

    The model is put into evaluation mode. Its own functions, `generate` included, go on working as before.

    Raises:
        ModelError: the model cannot be run.
        CapabilityError: it is not a model that writes from left to right.
    """
    _transformers()
    return TransformersSeq2Seq(model) if model.config.is_encoder_decoder else TransformersAdapter(model)


class TransformersAdapter(Adapter):
    """A causal transformers model.

    Args:
        model: any `...ForCausalLM` (or, for the subclass, `...ForConditionalGeneration`).

    Attributes:
        mode: "batched", "rows", "own" or "plain", see the module.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.mode = "plain"
        self.notes: list[str] = []
        self.device, self.dtype = model.device, model.dtype
        self._accepts = set(inspect.signature(model.forward).parameters)
        self._shapes: list[tuple[int, int, torch.dtype]] = []  # of every buffer: heads, head size, dtype
        self._has_windows = False
        self._own = ""  # which of OWN
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
        with quiet(), torch.no_grad():
            self.capabilities = self._discover()
            self._look_inside()
            self._settle()
        self.shape, self.path = str(self.model.config), self.mode

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

    # What the model can do, by trying

    def _discover(self) -> Capabilities:
        """Run three tokens; read the cache's shapes and the vocabulary off what comes out."""
        config = self.model.config.get_text_config(decoder=True)
        try:
            output = self._first_call(torch.tensor([[1, 2, 3]], device=self.device))
        except Exception as error:  # whatever it raises, this adapter cannot run it
            raise ModelError(
                f"{type(self.model).__name__} cannot be run on plain tokens: {_first_line(error)}",
                "Only models from tokens to tokens fit this adapter.",
            ) from error
        layers = list(self._layers_of(getattr(output, "past_key_values", None)))
        self._shapes = _shapes(layers)
        self._own = next((name for name in OWN if getattr(output, name, None) is not None), "")
        self._has_windows = any(getattr(layer, "is_sliding", False) for layer in layers)
        return Capabilities(
            vocab_size=output.logits.shape[-1],
            max_positions=self._max_positions(config),
            has_tree=False,
            num_layers=int(getattr(config, "num_decoder_layers", None) or getattr(config, "num_hidden_layers", 0) or 0),
            is_encoder_decoder=self.model.config.is_encoder_decoder,
        )

    def _look_inside(self) -> None:
        """Find the layers between which hidden states are read, by comparing with those that the model returns."""
        count, tokens = self.capabilities.num_layers, torch.tensor([[1, 2, 3]], device=self.device)
        root = self.model.get_decoder() if self.capabilities.is_encoder_decoder else self.model
        lists = [
            list(each) for each in root.modules() if isinstance(each, torch.nn.ModuleList) and len(each) == count > 0
        ]
        for blocks in lists:
            forward = head_only(1, 3, None, self.device, Outputs(tuple(range(count + 1)), has_last=True))
            try:
                with forward.running(blocks):
                    output = self._first_call(tokens, output_hidden_states=True)
            except Exception:  # a model that cannot return them, in its own words
                return
            names = ("decoder_hidden_states", "hidden_states")
            theirs = next((found for name in names if (found := getattr(output, name, None)) is not None), ())
            if forward.hidden is None or len(theirs) != count + 1 or len(forward.taps) != count + 1:
                continue
            if any(states.shape[:-1] != (1, 3) for states in forward.taps.values()):  # several streams side by side
                continue
            # A few models return what leaves each layer instead of what enters it.
            if any(all(torch.equal(forward.taps[at + n], theirs[n]) for n in range(count)) for at in (0, 1)):
                self._blocks, self._width = blocks, forward.taps[0].shape[-1]
                self.capabilities = replace(self.capabilities, has_hidden=True)
                head = self.model.get_output_embeddings()
                self._has_plain_head = torch.equal(head(forward.hidden), output.logits)
                return

    def _max_positions(self, config: Any) -> int:
        found = next(
            (int(n) for n in (getattr(config, name, None) for name in MAX_POSITIONS) if n and n > 0), UNLIMITED
        )
        scaling = getattr(config, "rope_parameters", None) or {}
        named = [scaling, *(value for value in scaling.values() if isinstance(value, dict))]
        kinds = {str(item.get("rope_type", "default")) for item in named}
        if kinds & {"dynamic", "longrope"}:
            # Their frequencies change with the longest row of a batch, so longer texts would not be a row's own.
            first = [item.get("original_max_position_embeddings") for item in named]
            found = min([found, *(int(n) for n in first if n)])
            self.notes.append(f"transformers adapter: texts end at {found} tokens, where the model's rotation changes.")
        return found

    def _first_call(self, tokens: Tensor, **more: Any) -> Any:
        return self.model(input_ids=tokens, use_cache=True, **more)

    def _layers_of(self, past: Any) -> Sequence[Any]:
        return getattr(past, "layers", ())

    def _probe_cache(self, rows: int, capacity: int) -> Cache:
        return self.new_cache(rows, capacity)

    def _settle(self) -> None:
        """Choose the fastest way of scoring whose logits equal the model's own full forward."""
        texts = self._probe_texts()
        self.mode = "plain"
        want = [self._full(texts, row, PROBE) for row in range(2)]
        short = self._full(texts, 0, PROBE // 2)
        if not self._is_close(short, want[0][: PROBE // 2]):
            raise CapabilityError(
                f"{type(self.model).__name__} scores a beginning differently once more follows: it is not causal.",
                "Use a causal or an encoder-decoder model.",
            )
        for mode in ("batched", "rows"):
            self.mode = mode
            if self._shapes and self._is_right(self._try_chain, texts, want):
                has_tree = mode == "batched" and self._is_right(self._try_tree, texts, want)
                self.capabilities = replace(self.capabilities, has_tree=has_tree)
                break
        else:
            self.mode = "own" if self._owns(texts, want) else "plain"
        self._reads_soft = self.mode in ("batched", "rows") and self._finds_embedding(texts, want[0])
        if self.mode in NOTES:
            how = "a copy of its state" if self._can_copy else "reading the text again"
            self.notes.append(NOTES[self.mode].format(how=how))

    def _finds_embedding(self, texts: Tensor, want: Tensor) -> bool:
        """Find what embeds the decoder's tokens: its own table or a shared one, scaled behind it or not."""
        extra = [tensor[:1] for tensor in self._probe_cache(2, PROBE).extra]
        owner = self.model.get_decoder()
        scales = dict.fromkeys((1.0, float(getattr(owner, "embed_scale", None) or 1)))
        tables = [self.model.get_input_embeddings(), getattr(owner, "embed_tokens", None)]
        for self._table in [table for table in tables if table is not None]:
            for self._embed_scale in scales:
                try:
                    logits = self._call(texts[:1], self.embed(texts[:1]), None, None, extra).logits
                except Exception:  # it takes tokens only, and says so in its own words
                    return False
                if self._is_close(logits[0], want):
                    return True
        return False

    def _owns(self, texts: Tensor, want: list[Tensor]) -> bool:
        """Find out whether rows can be scored on caches of the model's own, and how."""
        if self._own not in self._accepts or self.model.config.is_encoder_decoder:
            return False
        self.mode = "own"
        for self._reads_many in (True, False):
            if self._is_right(self._try_chain, texts, want):
                self._can_copy = self._is_right(self._try_back, texts, want)
                return True
        return False

    def _probe_texts(self) -> Tensor:
        """Return [2, PROBE] tokens, none of them special."""
        config, vocab = self.model.config, self.capabilities.vocab_size
        special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "decoder_start")}
        flat = {item for found in special for item in (found if isinstance(found, list) else [found])}
        words = [token for token in range(min(vocab, 1000)) if token not in flat] or [0]
        chosen = [[words[(7 * i * i + 3 * i + 5 + 11 * row) % len(words)] for i in range(PROBE)] for row in range(2)]
        return torch.tensor(chosen, device=self.device)

    def _full(self, texts: Tensor, row: int, length: int) -> Tensor:
        """Return logits [length, V] of one row's own full forward, without a cache."""
        extra = [tensor[row : row + 1] for tensor in self._probe_cache(2, PROBE).extra]
        logits: Tensor = self._call(texts[row : row + 1, :length], None, None, None, extra).logits
        return logits[0]

    def _is_right(self, attempt: Any, texts: Tensor, want: list[Tensor]) -> bool:
        try:
            pairs = attempt(texts, want)
        except Exception:  # a model that cannot be run in this way fails in its own words
            return False
        if (
            self._has_windows and not self._num_masks and self.mode != "own"
        ):  # a window wider than the probe, kept by unknown means
            return False
        return all(self._is_close(ours, theirs) for ours, theirs in pairs)

    def _is_close(self, ours: Tensor, theirs: Tensor) -> bool:
        scale = theirs.double().abs().max()
        # Recurrent states are computed in float32 at best, whatever the model's type.
        tolerance = (
            TOLERANCE.get(self.dtype, 5e-2) if self.mode != "own" else max(1e-3, TOLERANCE.get(self.dtype, 5e-2))
        )
        return bool((ours.double() - theirs.double()).abs().max() <= tolerance * scale)

    def _begin(self, texts: Tensor) -> tuple[Cache, Tensor]:
        """Score and keep seven tokens of one row and two of the other; return the cache and their logits."""
        cache, ends = self._probe_cache(2, 2 * PROBE), torch.tensor([[7], [2]], device=self.device)
        first = torch.arange(7, device=self.device).expand(2, -1)
        scores = self.score(texts[:, :7], torch.where(first < ends, first, -1), None, cache).logits
        cache.keep([range(7), range(2)])
        return cache, scores

    def _try_chain(self, texts: Tensor, want: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Two rows, seven and two tokens long, then three more of each."""
        cache, scores = self._begin(texts)
        ends = cache.lengths
        pairs = [(scores[row, :end], want[row][:end]) for row, end in enumerate(ends)]
        tokens = torch.stack([texts[row, end : end + 3] for row, end in enumerate(ends)])
        position = torch.tensor([[end, end + 1, end + 2] for end in ends], device=self.device)
        ask = torch.tensor([[1, 2], [0, 2]], device=self.device)
        scores = self.score(tokens, position, None, cache, ask).logits
        return pairs + [(scores[row], want[row][ends[row] + ask[row]]) for row in range(2)]

    def _try_back(self, texts: Tensor, want: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Three tokens of which one row keeps one and the other none, then what its text goes on with."""
        cache, _ = self._begin(texts)
        ends, kept = list(cache.lengths), (1, 0)
        tokens = torch.stack([texts[row, [end, 0, 1]] for row, end in enumerate(ends)])
        self.score(tokens, torch.tensor([[end, end + 1, end + 2] for end in ends], device=self.device), None, cache)
        cache.keep([range(count) for count in kept])
        starts = [end + count for end, count in zip(ends, kept, strict=True)]
        tokens = torch.stack([texts[row, start : start + 2] for row, start in enumerate(starts)])
        position = torch.tensor([[start, start + 1] for start in starts], device=self.device)
        scores = self.score(tokens, position, None, cache).logits
        return [(scores[row], want[row][start : start + 2]) for row, start in enumerate(starts)]

    def _try_tree(self, texts: Tensor, want: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """A token, its rival, and the token's child, which must not see the rival."""
        plain, self.capabilities = self.capabilities, replace(self.capabilities, has_tree=True)
        try:
            cache, _ = self._begin(texts)
            ends = cache.lengths
            tokens = torch.stack([texts[row, [end, end + 2, end + 1]] for row, end in enumerate(ends)])
            position = torch.tensor([[end, end, end + 1] for end in ends], device=self.device)
            sight = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 1]], dtype=torch.bool, device=self.device)
            scores = self.score(tokens, position, sight.expand(2, -1, -1), cache).logits
            return [(scores[row][[0, 2]], want[row][[end, end + 1]]) for row, end in enumerate(ends)]
        finally:
            self.capabilities = plain


class TransformersSeq2Seq(TransformersAdapter):
    """An encoder-decoder transformers model; the prompt is its source, and each row's encoder runs once.

    A cache's `extra` holds the encoder's states [B, S, hidden], their mask [B, S] (1 = a source token), and per decoder
    layer the cross-attention's keys and values, each [B, S, H, D].

    `max_source` is 0 where the encoder counts distances, or computes its positions.
    """

    start_token: int

    def __init__(self, model: Any) -> None:
        config, settings = model.config, getattr(model, "generation_config", None)
        names, owners = ("decoder_start_token_id", "bos_token_id"), (settings, config)
        found = [getattr(owner, name, None) for name in names for owner in owners]
        start = next((token for token in found if token is not None), None)
        if start is None:
            raise ModelError("The model names no token to start its decoder with.", "Set decoder_start_token_id.")
        self.start_token = int(start)
        self.max_source = _source_positions(model.get_encoder())
        super().__init__(model)

    @torch.no_grad()
    def encode(self, sources: Sequence[list[int]], cache: Cache) -> None:
        """Run the encoder on each row's source tokens and keep what the decoder needs in `cache`.

        One decoder token is run besides, for the cross-attention's keys and values.
        """
        if not all(sources):
            raise ConfigError("A source is empty.", "Give at least one token.")
        longest, pad = max(len(source) for source in sources), self.model.config.pad_token_id or 0
        if 0 < self.max_source < longest:
            raise ConfigError(
                f"The source has {longest} tokens, but the encoder's positions end at {self.max_source}.",
                "Shorten the source, or write it part by part.",
            )
        padded = [[*source, *([pad] * (longest - len(source)))] for source in sources]
        held = torch.tensor([len(source) for source in sources], device=self.device)[:, None]
        mask = (torch.arange(longest, device=self.device) < held).long()
        hidden = self.model.get_encoder()(torch.tensor(padded, device=self.device), attention_mask=mask)[0]
        cache.extra = [hidden, mask]
        if self.mode != "plain":
            start = torch.full((len(sources), 1), self.start_token, device=self.device)
            past = self._call_decoder({"decoder_input_ids": start}, hidden, mask, None, True).past_key_values
            layers = past.cross_attention_cache.layers
            cache.extra += [kv.transpose(1, 2).contiguous() for layer in layers for kv in (layer.keys, layer.values)]

    def _call(
        self, tokens: Tensor, inputs: Tensor | None, position: Tensor | None, past: Any, extra: Sequence[Tensor]
    ) -> Any:
        from transformers.cache_utils import EncoderDecoderCache

        soft = None if inputs is None else inputs.to(self.dtype)
        arguments = {"decoder_input_ids": tokens} if soft is None else {"decoder_inputs_embeds": soft}
        if position is not None and "decoder_position_ids" in self._accepts:
            arguments["decoder_position_ids"] = position
        both = None if past is None else EncoderDecoderCache(past, stored_cache(extra[2:]))
        return self._call_decoder(arguments, extra[0], extra[1], both, past is not None)

    def _call_decoder(
        self, arguments: dict[str, Tensor], hidden: Tensor, mask: Tensor, past: Any, is_cached: bool
    ) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        states = BaseModelOutput(last_hidden_state=hidden)
        return self.model(
            **arguments, encoder_outputs=states, attention_mask=mask, past_key_values=past, use_cache=is_cached
        )

    def _first_call(self, tokens: Tensor, **more: Any) -> Any:
        return self.model(input_ids=tokens, decoder_input_ids=tokens, use_cache=True, **more)

    def _layers_of(self, past: Any) -> Sequence[Any]:
        return getattr(getattr(past, "self_attention_cache", None), "layers", ())

    def _probe_cache(self, rows: int, capacity: int) -> Cache:
        cache = self.new_cache(rows, capacity)
        texts = self._probe_texts().tolist()
        self.encode([texts[0][:5], texts[1][:3]], cache)
        return cache


def _source_positions(encoder: Any) -> int:
    """Return how many positions the encoder's tables hold: the smallest table whose name says that it holds them.

    0 = it has none.
    """
    sizes = [
        module.num_embeddings - _first_position(module)
        for name, module in encoder.named_modules()
        if isinstance(module, torch.nn.Embedding) and "position" in name and "relative" not in name
    ]
    return min(sizes, default=0)


def _first_position(table: Any) -> int:
    """Return the row of a position table that the first token reads."""
    offset = getattr(table, "offset", None)  # BART and its kin
    padding = table.padding_idx  # RoBERTa and its kin
    return int(offset) if offset is not None else 0 if padding is None else int(padding) + 1


def _shapes(layers: Sequence[Any]) -> list[tuple[int, int, torch.dtype]]:
    """Return every buffer's heads, head size and dtype, or [] if a layer keeps something else than keys and values."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    shapes = []
    for layer in layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return []
        for entries in (layer.keys, layer.values):
            if entries is None or entries.dim() != 4 or entries.shape[0] != 1:
                return []
            shapes.append((entries.shape[1], entries.shape[3], entries.dtype))
    return shapes


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ModelError(
            "This model needs transformers, which is not installed.", 'pip install "outpace[transformers]"'
        ) from None
    return transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' log, progress bars and warnings away while a model is loaded or tried."""
    from transformers.utils import logging as found

    theirs: Any = found
    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _load_hint(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "It needs its own code; read that code, then pass trust_remote_code=True if you trust it."
    return "Check that the directory holds a model that transformers knows, as safetensors."
