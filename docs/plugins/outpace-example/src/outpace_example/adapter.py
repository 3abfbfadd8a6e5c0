"""A model of your own behind the contract: a table that says what follows each token."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.types import NO_OUTPUTS, Adapter, Capabilities, Counter, Outputs, Scores

__all__ = ["Bigram"]


class Bigram(Adapter):
    """A bigram table as a decoder: a token's embedding is its row of the table, and the row is what the head reads.

    Args:
        logits: [V, V] float64, row i holds the logits of what follows token i.
    """

    def __init__(self, logits: Tensor) -> None:
        self.table = logits
        self.dtype, self.device, self.head_weights = logits.dtype, logits.device, logits.numel()
        self.capabilities = Capabilities(vocab_size=len(logits), max_positions=1 << 20, has_hidden=True)

    @classmethod
    def counted(cls, texts: Sequence[Sequence[int]], vocab_size: int) -> Bigram:
        """Return the table of some texts, every pair counted once more than it was seen."""
        counts = torch.ones(vocab_size, vocab_size, dtype=torch.float64)
        for text in texts:
            for first, second in itertools.pairwise(text):
                counts[first, second] += 1
        return cls((counts / counts.sum(1, keepdim=True)).log())

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return a cache that only knows how long its rows are: nothing earlier than the last token is read."""
        return Cache([torch.zeros(rows, capacity, 0, device=self.device)], 1, counter)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the tokens' rows."""
        return self.table[tokens]

    def head(self, hidden: Tensor) -> Tensor:
        """Return the rows as they are."""
        return hidden

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
        """Look the asked tokens up; where they stand and what they see changes nothing."""
        del position, visible
        self.check(outputs, skip)
        cache.counter.add(tokens.numel(), 1)
        hidden = self.embed(tokens) if inputs is None else inputs
        if ask is not None:
            hidden = hidden.take_along_dim(ask.unsqueeze(-1), 1)
        taps = dict.fromkeys(outputs.layers, hidden)  # no layer: what enters the first is what leaves the last
        return Scores(self.head(hidden), taps, {}, hidden if outputs.has_last else None)
