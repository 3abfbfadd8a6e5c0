"""A toy model whose every token depends on every visible entry and its position: cheap, float64, and unforgiving.

A misplaced cache entry, a wrong position or a leaking mask changes its output, so methods can be checked on it in
milliseconds. Shares nothing with `outpace.models`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outpace.cache import Cache, Pages
from outpace.errors import ConfigError
from outpace.types import NO_OUTPUTS, Adapter, Capabilities, Counter, Outputs, Scores

__all__ = ["ToyEncoderDecoder", "ToyModel"]


class ToyModel(Adapter):
    """A few layers of distance-weighted sums over visible entries.

    Args:
        vocab_size: V.
        num_layers: layers, each skippable.
        attention: "causal", "full", "block" or "causal-block".
        seed: decides the weights.
        hidden: width.
        sharpness: scale of the logits; larger = more predictable text.
        max_positions: context length.
        like: a model to stay close to (a drafter that often agrees), with `noise` times other weights mixed in.
        noise: how far from `like`.
        block_size: positions per block of "block" and "causal-block" attention.
        logits_shift: a canvas model whose output at i speaks of token i + 1.
    """

    def __init__(
        self,
        vocab_size: int = 13,
        num_layers: int = 3,
        attention: str = "causal",
        seed: int = 0,
        hidden: int = 8,
        sharpness: float = 3.0,
        max_positions: int = 4096,
        like: ToyModel | None = None,
        noise: float = 0.1,
        block_size: int = 4,
        logits_shift: bool = False,
    ) -> None:
        self.capabilities = Capabilities(
            vocab_size,
            max_positions,
            attention,
            has_skip=True,
            num_layers=num_layers,
            mask_id=None if attention == "causal" else vocab_size - 1,
            block_size=block_size if attention in ("block", "causal-block") else 0,
            logits_shift=logits_shift,
            has_hidden=True,
            heads=("confidence",),
        )
        self.dtype, self.mask_token, self.own_mask = torch.float64, vocab_size - 1, vocab_size - 1
        generator = torch.Generator().manual_seed(seed)
        shapes = [(vocab_size, hidden), (num_layers, hidden, hidden), (num_layers, 7), (hidden, vocab_size)]
        self.weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        if like is not None:
            self.weights = [ours * noise + theirs for ours, theirs in zip(self.weights, like.weights, strict=True)]
        self.sharpness, self.hidden = sharpness, hidden

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return an empty cache: per layer [rows, capacity, hidden] values, and the entries' positions."""
        values = [
            torch.full((rows, capacity, self.hidden), float("nan"), dtype=torch.float64)
            for _ in range(self.capabilities.num_layers)
        ]
        places = torch.full((rows, capacity, 1), -1, dtype=torch.float64)
        return Cache([*values, places], 1, counter)

    def new_pool(self, num_pages: int, page_size: int = 32) -> Pages:
        """Return memory for paged caches, laid out as `new_cache` does."""
        sizes = [(self.capabilities.num_layers, self.hidden), (1, 1)]
        return Pages(
            [
                torch.full((count, num_pages, page_size, size), float("nan"), dtype=torch.float64)
                for count, size in sizes
            ],
            1,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [B, T, hidden] that `score` takes as `inputs`."""
        return self.weights[0][tokens]

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of last hidden states [..., hidden]."""
        return self.sharpness * torch.tanh(hidden @ self.weights[3])

    def early(self, hidden: Tensor) -> Tensor:
        """Return the logits of states that enter a layer: there is no norm."""
        return self.head(hidden)

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
        cache.stage(position)
        with cache.dense(position.shape[1]) as dense:
            return self._score(tokens, position, visible, dense, ask, outputs, inputs, skip)

    def _score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None,
        outputs: Outputs,
        inputs: Tensor | None,
        skip: Sequence[int],
    ) -> Scores:
        rows, count = tokens.shape
        num_layers = self.capabilities.num_layers
        cache.counter.add(rows * count, num_layers - len({*skip}))
        # In numpy: on so few numbers a call of PyTorch costs several times the arithmetic.
        lengths, place = np.array(cache.lengths)[:, None], position.numpy()
        slots, every = lengths + np.arange(count), np.arange(rows)[:, None]
        # What lies behind the last staged entry is seen by nobody.
        extent = cache.slots if cache.has_fixed_extent else max(cache.lengths) + count
        places = cache.buffers[-1].numpy()[..., 0]
        places[every, slots] = place
        sees = np.repeat((np.arange(extent) < lengths)[:, None], count, 1)
        within = self._default_sight(place, lengths) & (place >= 0)[:, None] if visible is None else visible.numpy()
        sees[every[:, :, None], np.arange(count)[:, None], slots[:, None]] = within
        is_seen = sees.any(1, keepdims=True).reshape(rows, extent, 1)
        embedding, mix, decay, _ = (weight.numpy() for weight in self.weights)
        # The weight of an entry is a fixed function of its distance; unseen entries weigh nothing.
        distance = np.abs(place[:, :, None] - places[:, None, :extent].astype(np.int64))
        weights = np.where(sees, decay[:, distance % 7] / np.sqrt(1.0 + distance), 0.0)
        state, entering = embedding[tokens.numpy()] if inputs is None else inputs.numpy(), {}
        for layer in range(num_layers):
            entering[layer] = state
            if layer in skip:
                continue
            values = cache.buffers[layer].numpy()
            values[every, slots] = state
            # np.where keeps the NaN of never-written slots out of the sum.
            seen = np.where(is_seen, values[:, :extent], 0.0)
            state = state + np.tanh(weights[layer] @ seen @ mix[layer])
        entering[num_layers] = state
        asked = np.arange(count)[None] if ask is None else ask.numpy()
        taps = {layer: torch.from_numpy(entering[layer][every, asked]) for layer in outputs.layers}
        last = torch.from_numpy(state[every, np.maximum(asked - 1, 0) if self.capabilities.logits_shift else asked])
        logits = self.head(last)
        heads = {name: logits.amax(-1, keepdim=True) for name in outputs.heads}  # there is one
        return Scores(logits, taps, heads, last if outputs.has_last else None)

    def _default_sight(self, position: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which token sees which where the caller does not say: [B, T, T] bool, or [T, T] for every row.

        Raises:
            ConfigError: a causal row is no chain behind its cached text, as models take for granted then.
        """
        count = position.shape[1]
        if (
            self.capabilities.attention == "causal"
            and ((position >= 0) & (position != lengths + np.arange(count))).any()
        ):
            raise ConfigError("Tokens without a mask stand elsewhere than behind their text.", "Say who sees whom.")
        if self.capabilities.attention == "block":
            block = position // self.capabilities.block_size
            return block[:, None] <= block[:, :, None]
        every = np.ones((count, count), dtype=np.bool_)
        return every if self.capabilities.attention == "full" else np.tril(every)


class ToyEncoderDecoder(ToyModel):
    """A causal toy whose every token depends on a source too, and on where it stands; settings as of `ToyModel`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.capabilities = replace(self.capabilities, is_encoder_decoder=True)

    def encode(self, sources: Sequence[list[int]], cache: Cache) -> None:
        """Keep [B, S, hidden] of the source in the cache, zero where a row's is shorter."""
        longest = max(map(len, sources))
        ids = torch.tensor([source + [0] * (longest - len(source)) for source in sources])
        is_real = torch.tensor([[at < len(source) for at in range(longest)] for source in sources])
        cache.extra = [torch.tanh(self.embed(ids) @ self.weights[1][-1]) * is_real.unsqueeze(-1)]

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
        source = cache.extra[0]
        distance = (position.unsqueeze(2) - torch.arange(source.shape[1])).abs()
        weight = self.weights[2][0][distance % 7] / (1 + distance).double()
        state = (self.embed(tokens) if inputs is None else inputs) + torch.tanh(weight @ source)
        return super().score(tokens, position, visible, cache, ask, outputs, state, skip)
