"""The adapter of our own sequence-to-sequence networks: their entries in an ordinary cache, one slot a token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.errors import CapabilityError, ConfigError
from outpace.models.nets.base import PairNet, Window
from outpace.types import NO_OUTPUTS, Adapter, Capabilities, Counter, Outputs, Scores

__all__ = ["NetAdapter"]

_FIRST_SLOTS = 64  # entries may be large, and most texts are short


class NetAdapter(Adapter):
    """A `PairNet` behind the contract; its prompt is the source, and each row's encoder runs once.

    A cache's buffers hold the parts of the entries, each [rows, slots, ...]; its `extra` holds what the network's
    `encode` returned.

    Args:
        net: the network; it is put into evaluation mode.
    """

    def __init__(self, net: PairNet) -> None:
        self.net = net.eval()
        first = next(net.parameters())
        self.device, self.dtype, self.start_token = first.device, first.dtype, net.config.start_token
        self.capabilities = Capabilities(
            vocab_size=net.config.vocab_size,
            max_positions=net.config.max_positions,
            num_layers=net.num_layers,
            is_encoder_decoder=True,
        )
        self.shape = f"{type(net).__name__} {net.config}"

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return an empty cache; its buffers take their shapes when the sources are known."""
        buffers = self._buffers(rows, min(capacity, _FIRST_SLOTS), 0)
        return Cache(buffers, 1, counter, [0] * rows, limit=capacity)

    def _buffers(self, rows: int, slots: int, source: int) -> list[Tensor]:
        shapes = self.net.entry_shapes(source)
        return [torch.zeros(rows, slots, *shape, dtype=self.dtype, device=self.device) for shape in shapes]

    @torch.no_grad()
    def encode(self, sources: Sequence[list[int]], cache: Cache) -> None:
        """Run the encoder on each row's source tokens, and keep what the decoder reads in `cache`.

        Raises:
            ConfigError: a source is empty, longer than the network's positions, or lacks what the network looks for.
        """
        if not all(sources):
            raise ConfigError("A source is empty.", "Give at least one token.")
        longest, most = max(map(len, sources)), self.net.config.max_source
        if longest > most:
            raise ConfigError(
                f"The source has {longest} tokens, but the encoder's positions end at {most}.",
                "Shorten the source, or write it part by part.",
            )
        for source in sources:
            self.net.check(source)
        padded = [[*source, *[0] * (longest - len(source))] for source in sources]
        held = torch.tensor([len(source) for source in sources], device=self.device).unsqueeze(1)
        is_real = torch.arange(longest, device=self.device) < held
        cache.extra = self.net.encode(torch.tensor(padded, device=self.device), is_real)
        cache.buffers = self._buffers(len(cache.lengths), cache.slots, longest)  # beams of one source are many rows

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [B, T, width] that `score` takes as `inputs`."""
        return self.net.embed(tokens)

    @torch.no_grad()
    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of last hidden states [..., hidden]."""
        return self.net.head(hidden)

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
        size = tokens.shape[1]
        cache.check_room(size)
        if not cache.extra:
            raise CapabilityError("This model reads a source.", "Encode one first.")
        cache.stage(position)
        with cache.dense(size) as dense:
            lengths = torch.tensor(dense.lengths, device=self.device)
            past = [buffer[:, : int(lengths.max())] for buffer in dense.buffers]
            soft = self.embed(tokens) if inputs is None else inputs.to(self.dtype)
            window = Window(soft, position, visible, lengths, past, dense.extra)
            hidden, entries = self.net.read(window)
            slots = lengths.unsqueeze(1) + torch.arange(size, device=self.device)
            rows = torch.arange(len(tokens), device=self.device).unsqueeze(1)
            for buffer, new in zip(dense.buffers, entries, strict=True):
                buffer[rows, slots] = new
        cache.counter.add(tokens.numel(), self.capabilities.num_layers)
        if ask is not None:
            hidden = hidden.take_along_dim(ask.unsqueeze(-1), 1)
        return Scores(self.head(hidden))
