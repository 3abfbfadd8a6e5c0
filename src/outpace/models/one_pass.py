"""Models that write their whole text in one pass of a network: CTC, graphs, tags, lengths and slots.

Such a model is an encoder-decoder to the loop. `encode` runs the network once per row and keeps the law of every token
of the row's text, its end last; `score` answers from what it holds, so any method of the loop works on it, and
`one-pass` takes the whole text in a single step. A new kind gives `write` alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from outpace.cache import Cache, Counter
from outpace.errors import CapabilityError, ConfigError
from outpace.types import NO_OUTPUTS, Adapter, Capabilities, Outputs, Scores

__all__ = ["OnePassModel", "end_law", "whole_laws"]

_OTHERS = -50.0  # log-odds of any other token where a text has ended


class OnePassModel(Adapter):
    """A model whose whole text is there after one pass.

    A cache's `extra` begins with the laws [B, N, V], one per token and one for the end, and how many of them count
    [B, 1]; a kind may keep more behind them.

    Args:
        vocab_size: V.
        max_source: the longest source, in tokens.
        max_positions: the longest text, in tokens, the decoder's start included.
        start_token: what the text is said to begin with; never written.
    """

    start_token: int

    def __init__(self, vocab_size: int, max_source: int, max_positions: int, start_token: int) -> None:
        self.capabilities = Capabilities(vocab_size, max_positions, is_encoder_decoder=True, is_one_pass=True)
        self.max_source, self.start_token = max_source, start_token
        self.path, self.is_invariant = "one pass", True

    @abstractmethod
    def write(self, sources: Sequence[list[int]]) -> list[Tensor]:
        """Run the network once on all sources and return per row the logits [N, V] of its text, the end's law last.

        A row must not depend on its neighbours, nor on the padding that they make necessary.
        """

    @torch.no_grad()
    def encode(self, sources: Sequence[list[int]], cache: Cache) -> None:
        """Write each row's text, and keep its laws in the cache.

        Raises:
            ConfigError: a source is empty or too long.
        """
        self.check_sources(sources)
        laws = self.write(sources)
        lengths = torch.tensor([[len(law)] for law in laws], device=self.device)
        cache.extra = [torch.nn.utils.rnn.pad_sequence(laws, batch_first=True), lengths]

    def check_sources(self, sources: Sequence[list[int]]) -> None:
        """Refuse sources that cannot be read.

        Raises:
            ConfigError: a source is empty or too long.
        """
        if not all(sources):
            raise ConfigError("A source is empty.", "Give at least one token.")
        longest = max(len(source) for source in sources)
        if longest > self.max_source:
            raise ConfigError(
                f"The source has {longest} tokens, but the model reads at most {self.max_source}.",
                "Shorten the source, or write it part by part.",
            )

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return an empty cache: its entries hold nothing, its `extra` everything."""
        return Cache([torch.zeros(rows, capacity, dtype=torch.int8, device=self.device)], 1, counter, [0] * rows)

    def embed(self, tokens: Tensor) -> Tensor:
        """Refuse: no token of the text is read."""
        raise CapabilityError("A one-pass model reads no token of its text.", "Use an autoregressive model.")

    def head(self, hidden: Tensor) -> Tensor:
        """Refuse: a law is no function of a hidden state alone."""
        raise CapabilityError("A one-pass model gives no hidden states.", "Use an autoregressive model.")

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
        """Look the laws up; see `outpace.types.Adapter`. After a text's end comes its end again."""
        self.check(outputs, skip)
        if inputs is not None:
            self.embed(tokens)
        cache.check_room(tokens.shape[1])
        cache.stage(position)
        cache.counter.add(tokens.numel(), 1)
        laws, lengths = cache.extra[:2]
        asked = position if ask is None else position.gather(1, ask)
        at = torch.minimum(asked.clamp(min=0), lengths - 1)
        return Scores(laws.gather(1, at.unsqueeze(-1).expand(-1, -1, laws.shape[-1])))


def end_law(vocab_size: int, end: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the law [1, V] of a text's end, which is certain."""
    law = torch.full((1, vocab_size), _OTHERS, dtype=dtype)
    law[0, end] = 0.0
    return law


def whole_laws(cache: Cache) -> list[Tensor]:
    """Return what a one-pass model holds of each row: the laws [N, V] of its text as logits, the end's last.

    Law i is that of the token after position i, where position 0 is the decoder's start.
    """
    laws, lengths = cache.extra[:2]
    return [law[:length] for law, length in zip(laws, lengths[:, 0].tolist(), strict=True)]
