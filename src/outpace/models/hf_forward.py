"""What lets a transformers model write into our cache: entries staged per row, explicit positions, exact masks.

A transformers model builds its mask, and often its positions, from one past length that all rows share. Ragged rows and
trees have no such length. Instead of a mask of our own per architecture, the model goes on building its own: the
function that turns a rule over indices into a mask is wrapped, and while one of our forwards runs, the same rule is
read at each token's logical position. Sliding windows, chunks and mixes of them per layer follow without being known
here. Where a model computes positions or a relative bias itself, those functions are wrapped in the same way.

Outside our forwards (a model's own `generate`, other threads) every wrapped function does what it did before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from outpace.types import NO_OUTPUTS, Outputs, Scores

__all__ = ["Forward", "head_only", "joined", "prepare", "staged_cache", "stored_cache"]


class Forward:
    """One forward's tokens: where they are staged, what they see, where logits are wanted.

    Args:
        position: [B, T] logical positions, -1 = padding.
        visible: [B, T, T] or None, as `Adapter.score` takes it.
        lengths: valid entries per row.
        ask: [B, A] or None.
        limit: positions that the model has; padding beyond them is brought back inside.
        outputs: what is wanted with the logits.
    """

    def __init__(
        self,
        position: Tensor,
        visible: Tensor | None,
        lengths: Sequence[int],
        ask: Tensor | None,
        limit: int,
        outputs: Outputs = NO_OUTPUTS,
    ) -> None:
        self.rows, self.size = position.shape
        device = position.device
        self.position = position.clamp(0, limit - 1)
        self.held = torch.tensor(list(lengths), device=device)
        self.past = max(lengths)
        self.extent = self.past + self.size
        self.start = self.past if min(lengths) == self.past else -1  # the first staged slot, where rows share one
        self.slots = self.held[:, None] + torch.arange(self.size, device=device)
        self.row_index = torch.arange(self.rows, device=device)[:, None]
        self.ask = ask
        self.is_staged = True  # False: no cache, and the model's own masks and positions hold
        self.is_gathered = False
        self.outputs = outputs
        self.hidden: Tensor | None = None  # [B, A, hidden] what the output matrix reads
        self.instead: Tensor | None = None  # [1, N, hidden] what it shall read
        self.taps: dict[int, Tensor] = {}
        self.num_masks = 0
        own = torch.eye(self.size, dtype=torch.bool, device=device)
        if visible is None:
            visible = (position >= 0)[:, None, :].expand(-1, self.size, -1).tril()
        self._tree = visible | own
        self._sees: Tensor | None = None
        self._key_position: Tensor | None = None

    @property
    def key_position(self) -> Tensor:
        """[B, extent] logical position of every slot; a valid entry's slot is its position."""
        if self._key_position is None:
            slots = torch.arange(self.extent, device=self.position.device).repeat(self.rows, 1)
            self._key_position = slots.scatter_(1, self.slots, self.position)
        return self._key_position

    @property
    def sees(self) -> Tensor:
        """[B, T, extent] bool: valid entries, and staged ones as `visible` has it."""
        if self._sees is None:
            columns = torch.arange(self.extent, device=self.position.device)
            sees = (columns < self.held[:, None, None]).repeat(1, self.size, 1)
            self._sees = sees.scatter_(2, self.slots[:, None].expand(-1, self.size, -1), self._tree)
        return self._sees

    def mask(self, rule: Callable[..., Any], is_causal: bool) -> Tensor:
        """Return [B, 1, T, extent] bool: what is visible and allowed by the model's rule, read at logical positions."""
        self.num_masks += 1
        sees = self.sees[:, None]
        if is_causal:
            return sees
        query = self.position[:, None, :, None]
        # `visible` alone says who is earlier; the rule's causal part then always holds, and its window remains.
        key = torch.minimum(self.key_position[:, None, None, :], query)
        allowed = rule(self.row_index[:, :, None, None], key.new_zeros(1, 1, 1, 1), query, key)
        mask: Tensor = sees & allowed
        return mask

    def write(self, buffer: Tensor, entries: Tensor) -> Tensor:
        """Stage entries [B, H, T, D] in a buffer [B, H, capacity, D]; return its slots in use."""
        if self.start >= 0:
            buffer.narrow(2, self.start, self.size).copy_(entries)
        else:
            buffer.transpose(1, 2)[self.row_index, self.slots] = entries.transpose(1, 2).to(buffer.dtype)
        return buffer.narrow(2, 0, self.extent)

    def at_asked(self, states: Tensor) -> Tensor:
        """Return the asked rows of [B, T, N]."""
        return states if self.ask is None else states.take_along_dim(self.ask.unsqueeze(-1), 1)

    def scores(self, logits: Tensor) -> Scores:
        """Return what was asked for, with the logits that the model returned."""
        last = self.hidden if self.outputs.has_last else None
        return Scores(logits if self.is_gathered else self.at_asked(logits), self.taps, {}, last)

    @contextmanager
    def running(self, blocks: Sequence[Any] = ()) -> Iterator[None]:
        """While the model runs: wrapped functions answer for this forward, and its layers `blocks` are tapped."""
        token, hooks = _RUNNING.set(self), []
        for layer in self.outputs.layers:
            if layer < len(blocks):
                hooks.append(blocks[layer].register_forward_pre_hook(partial(_tap_entry, layer), with_kwargs=True))
            else:
                hooks.append(blocks[-1].register_forward_hook(partial(_tap_exit, layer)))
        try:
            yield
        finally:
            _RUNNING.reset(token)
            for hook in hooks:
                hook.remove()


_RUNNING: ContextVar[Forward | None] = ContextVar("outpace_forward", default=None)


def joined(parts: Sequence[Scores], join: Callable[[list[Tensor]], Tensor]) -> Scores:
    """Return the scores whose every output is made of those of the parts."""
    taps = {layer: join([part.taps[layer] for part in parts]) for layer in parts[0].taps}
    last = [part.last for part in parts if part.last is not None]
    return Scores(join([part.logits for part in parts]), taps, {}, join(last) if last else None)


def head_only(rows: int, size: int, ask: Tensor | None, device: torch.device, outputs: Outputs = NO_OUTPUTS) -> Forward:
    """Return a forward without a cache: only the rows of logits that are asked for go through the output matrix."""
    position = torch.arange(size, device=device).expand(rows, -1)
    forward = Forward(position, None, [0] * rows, ask, size, outputs)
    forward.is_staged = False
    return forward


def staged() -> Forward | None:
    """Return the running forward if it has a cache."""
    forward = _RUNNING.get()
    return forward if forward is not None and forward.is_staged else None


# The cache


@lru_cache(maxsize=1)
def _layer_class() -> Any:
    """Return the class of one layer of our cache, as transformers wants it; made on first use."""
    base: Any = _cache_utils().DynamicLayer

    class StagedLayer(base):  # type: ignore[misc]  # transformers is untyped
        """One layer's buffers behind transformers' interface."""

        def __init__(self, keys: Tensor, values: Tensor, forward: Forward) -> None:
            super().__init__()
            self.buffers, self.forward, self.is_initialized = (keys, values), forward, True
            self.dtype, self.device = keys.dtype, keys.device
            self.length = forward.past

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            self.length = self.forward.extent
            self.keys = self.forward.write(self.buffers[0], key_states)
            self.values = self.forward.write(self.buffers[1], value_states)
            return self.keys, self.values

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self.forward.extent, 0

        def get_seq_length(self) -> int:
            return self.length

    return StagedLayer


def staged_cache(buffers: Sequence[Tensor], forward: Forward) -> Any:
    """Return a transformers `Cache` that writes into buffers [k0, v0, k1, v1, ...], each [B, H, capacity, D]."""
    pairs = zip(buffers[::2], buffers[1::2], strict=True)
    return _cache_utils().Cache(layers=[_layer_class()(keys, values, forward) for keys, values in pairs])


def stored_cache(entries: Sequence[Tensor]) -> Any:
    """Return a transformers `Cache` that holds finished entries [k0, v0, ...], each [B, S, H, D], and never grows."""
    layers = []
    for keys, values in zip(entries[::2], entries[1::2], strict=True):
        layer = _cache_utils().DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys.transpose(1, 2), values.transpose(1, 2)
        layers.append(layer)
    return _cache_utils().Cache(layers=layers)


def _cache_utils() -> Any:
    from transformers import cache_utils

    return cache_utils


# The wrapped functions


def prepare(model: Any) -> None:
    """Wrap what a model computes from a shared past length: masks (once for all models), positions, relative biases."""
    _wrap_masks()
    if getattr(model, "_outpace_prepared", False):
        return
    model._outpace_prepared = True
    for module in model.modules():
        names = _arguments(module.forward) if isinstance(module, torch.nn.Embedding) else ()
        if "position_ids" in names and "past_key_values_length" in names:
            module.forward = partial(_embed_positions, module.forward)
        compute = getattr(module, "compute_bias", None)
        if compute is not None and "past_seen_tokens" in _arguments(compute):
            module.compute_bias = partial(_relative_bias, compute)
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(_gather_asked)


def _arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


@lru_cache(maxsize=1)
def _wrap_masks() -> None:
    """Let the makers of eager and sdpa masks answer for our forwards; others go to the original."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as makers

    for name in ("eager", "sdpa"):
        makers[name] = partial(_make_mask, makers[name], name == "eager")


def _make_mask(original: Callable[..., Any], is_additive: bool, *args: Any, **kwargs: Any) -> Any:
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

    forward, rule = staged(), kwargs.get("mask_function", causal_mask_function)
    if forward is None or rule is bidirectional_mask_function:  # the latter looks at an encoder
        return original(*args, **kwargs)
    if (kwargs.get("q_length"), kwargs.get("kv_length")) != (forward.size, forward.extent):
        return original(*args, **kwargs)
    mask = forward.mask(rule, rule is causal_mask_function)
    if not is_additive:
        return mask
    dtype = kwargs.get("dtype", torch.float32)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _embed_positions(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Embed explicit positions where a decoder would count on from its past length (BART, Marian, ...)."""
    forward = staged()
    if forward is None:
        return original(*args, **kwargs)
    # These modules take a flat list of positions, and add a row axis or not.
    flat = original(args[0], position_ids=forward.position.flatten())
    return flat.reshape(forward.rows, forward.size, -1)


def _relative_bias(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Bias by explicit distance where a decoder would count slots (T5 and its kin); [B, H, T, extent]."""
    forward = staged()
    if forward is None:
        return original(*args, **kwargs)
    # A causal bias depends on how far back a key lies: one query behind all keys gives it for every distance.
    last = forward.extent + forward.size - 1
    table = original(1, last + 1, past_seen_tokens=last)[0, :, 0]
    back = forward.position[:, :, None] - forward.key_position[:, None, :]
    return table[:, last - back.clamp(0, last)].transpose(0, 1)


def _gather_asked(module: Any, args: tuple[Any, ...]) -> Any:
    """Before the output matrix: keep only the asked positions."""
    del module
    forward = _RUNNING.get()
    if forward is None or forward.is_gathered or not args:
        return None
    hidden = args[0]
    if hidden.dim() != 3 or hidden.shape[:2] != (forward.rows, forward.size):
        return None
    hidden = forward.at_asked(hidden) if forward.instead is None else forward.instead
    forward.is_gathered, forward.hidden = True, hidden
    return (hidden, *args[1:])


def _tap_entry(layer: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a layer: keep what enters it."""
    del module
    if (forward := _RUNNING.get()) is not None:
        forward.taps[layer] = forward.at_asked(args[0] if args else kwargs["hidden_states"])


def _tap_exit(layer: int, module: Any, args: tuple[Any, ...], output: Any) -> None:
    """Behind the last layer: keep what leaves it, before any norm."""
    del module, args
    if (forward := _RUNNING.get()) is not None:
        forward.taps[layer] = forward.at_asked(output[0] if isinstance(output, tuple) else output)
