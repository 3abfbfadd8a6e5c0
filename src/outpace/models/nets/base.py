"""What a sequence-to-sequence network gives so that the engine can decode it: an encoder, and a step over new tokens.

A network keeps an *entry* per target token, whatever that is: a recurrent state, a row of features, keys and values.
Entries lie in an ordinary cache, one slot a token, so drafts roll back, rows fork, and trees branch without a word from
the network. It reads new tokens through a `Window`, which tells where the tokens before each of them have entries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = ["PairConfig", "PairNet", "Window", "gathered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairConfig:
    """What every network says of itself; kinds add their sizes.

    Attributes:
        vocab_size: tokens of the vocabulary that both sides share; 0 = not said yet.
        max_positions: most target tokens, the start token included.
        max_source: most source tokens.
        start_token: what the decoder begins with.
        end_token: what ends sources and targets.
    """

    vocab_size: int = 0
    max_positions: int = 256
    max_source: int = 256
    start_token: int = 2
    end_token: int = 0


@dataclass(slots=True)
class Window:
    """New tokens of a forward, and what lies before them.

    Attributes:
        inputs: [B, T, width], their embeddings.
        position: [B, T] int64, from 0; -1 = padding.
        visible: [B, T, T] bool, token (row) sees token (column), itself included; None = all before it and itself.
        lengths: [B] int64, valid entries of each row.
        past: the cached entries, each [B, slots, ...].
        memory: what `PairNet.encode` returned, of these rows.
    """

    inputs: Tensor
    position: Tensor
    visible: Tensor | None
    lengths: Tensor
    past: Sequence[Tensor]
    memory: Sequence[Tensor]

    @property
    def slots(self) -> int:
        """Slots of each row in `past` that may hold an entry."""
        return int(self.lengths.max())

    def ancestors(self, distance: int) -> Tensor:
        """Return where the entry of the token so many places before each token lies, [B, T] int64.

        The index counts `slots` cached entries, then the tokens of this window; -1 = the text has no such token.
        """
        at = self.position - distance
        in_window = self.position.unsqueeze(1) == at.unsqueeze(2)  # [B, T, T]
        in_window &= self.sight() & (self.position >= 0).unsqueeze(1)
        found = torch.where(at < self.lengths.unsqueeze(1), at, self.slots + in_window.long().argmax(-1))
        return found.masked_fill((at < 0) | (self.position < 0), -1)

    def sight(self) -> Tensor:
        """Return who sees whom among the window's tokens, [B, T, T] bool."""
        if self.visible is not None:
            return self.visible
        size = self.position.shape[1]
        square = torch.ones(size, size, dtype=torch.bool, device=self.position.device)
        return square.tril().expand(len(self.position), -1, -1)

    def whole_sight(self) -> Tensor:
        """Return who sees which cached entry, then which token of the window: [B, T, slots + T] bool."""
        size = self.position.shape[1]
        is_held = torch.arange(self.slots, device=self.position.device) < self.lengths.unsqueeze(1)
        own = self.sight() & (self.position >= 0).unsqueeze(1)
        return torch.cat([is_held.unsqueeze(1).expand(-1, size, -1), own], -1)


class PairNet(nn.Module, ABC):
    """A network from a source to a target, written from left to right.

    Attributes:
        config: its sizes.
        num_layers: of its decoder, by which work is counted.
        has_logits: whether `head` of `states` is what training maximises; else it has a `loss` of its own.
    """

    Config: ClassVar[type[Any]] = PairConfig
    has_logits: ClassVar[bool] = True
    config: Any
    num_layers: int = 1

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [B, T, width] of target tokens [B, T]."""

    def check(self, source: Sequence[int]) -> None:
        """Refuse a source that the network cannot read, in a sentence; any will do."""
        del source

    def adopt(self, weights: Mapping[str, Tensor]) -> bool:
        """Take what this network wants of another one's weights by its own names; False = whatever agrees in name."""
        del weights
        return False

    @abstractmethod
    def encode(self, sources: Tensor, is_real: Tensor) -> list[Tensor]:
        """Return what the decoder reads of sources [B, S], whose padding `is_real` [B, S] is False.

        Rows are on axis 0 of each tensor, and axis 1 may be padded with zeros. Padding must not change a row.
        """

    @abstractmethod
    def entry_shapes(self, source: int) -> list[tuple[int, ...]]:
        """Return the shape of each part of a token's entry, where the longest source has so many tokens."""

    @abstractmethod
    def read(self, window: Window) -> tuple[Tensor, list[Tensor]]:
        """Return the last states [B, T, hidden] of new tokens, and their entries, each [B, T, ...]."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V] of last states [..., hidden]."""

    @abstractmethod
    def states(self, sources: Tensor, is_real: Tensor, inputs: Tensor) -> Tensor:
        """Return the last states [B, T, hidden] of whole targets [B, T], as training wants them: in one go."""


def gathered(past: Tensor, new: Tensor, index: Tensor) -> Tensor:
    """Return entries [B, T, ...] at `index` [B, T] into past [B, N, ...] and new [B, T', ...]; -1 gives zeros."""
    both = torch.cat([past, new], 1)
    rows = torch.arange(len(index), device=index.device).unsqueeze(1)
    found = both[rows, index.clamp(min=0)]
    return found * (index >= 0).view(*index.shape, *[1] * (found.dim() - 2)).to(found.dtype)
