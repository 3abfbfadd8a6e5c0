"""An RNN encoder-decoder: gated recurrent units on both sides, with or without attention.

Papers: Cho et al. (2014), "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
Translation", arXiv:1406.1078, section 2; the attention is the general one of Luong et al. (2015), arXiv:1508.04025,
section 3.1.
Differences: without attention the summary is the last state of a bidirectional encoder and is read at every step, as in
the paper; the maxout layer before the softmax is a tanh layer, and the output matrix is the embedding. With attention
the context joins the state behind the recurrence, so that a whole target is read in one go in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from outpace.models.nets.base import PairConfig, PairNet, Window, gathered
from outpace.papers import Paper

__all__ = ["PAPERS", "Gru", "GruConfig"]

PAPERS = (
    Paper(
        "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation",
        "Cho et al.",
        2014,
        "1406.1078",
        63,
        "The phrase table and the log-linear model around it: `outpace score --pairs FILE` gives the feature.",
        "outpace train pairs-gru",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GruConfig(PairConfig):
    """Sizes of a GRU encoder-decoder.

    Attributes:
        width: of embeddings.
        hidden: of the recurrent states, even.
        has_attention: look at all source states; else at the summary alone.
        dropout: of embeddings and of what the head reads, in training.
    """

    width: int = 192
    hidden: int = 256
    has_attention: bool = True
    dropout: float = 0.2


class Gru(PairNet):
    """A bidirectional GRU that reads, and a GRU that writes."""

    Config = GruConfig

    def __init__(self, config: GruConfig) -> None:
        super().__init__()
        self.config, width, hidden = config, config.width, config.hidden
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.reader = nn.GRU(width, hidden // 2, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(hidden, hidden)
        self.writer = nn.GRU(width + hidden, hidden, batch_first=True)
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.merge = nn.Linear(2 * hidden, width)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [B, T, width]."""
        return F.dropout(self.embedding(tokens), self.config.dropout, self.training)

    def encode(self, sources: Tensor, is_real: Tensor) -> list[Tensor]:
        """Return the mask [B, S], the source's states [B, S, hidden] and its summary [B, hidden]."""
        return self.encode_embedded(self.embed(sources), is_real)

    def encode_embedded(self, embedded: Tensor, is_real: Tensor) -> list[Tensor]:
        """Return what `encode` returns, of source embeddings [B, S, width]."""
        packed = pack_padded_sequence(embedded, is_real.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        read, last = self.reader(packed)
        states, _ = pad_packed_sequence(read, batch_first=True, total_length=embedded.shape[1])
        return [is_real, states, last.transpose(0, 1).flatten(1)]

    def entry_shapes(self, source: int) -> list[tuple[int, ...]]:
        """A token's entry is the state behind it."""
        del source
        return [(self.config.hidden,)]

    def read(self, window: Window) -> tuple[Tensor, list[Tensor]]:
        """Read new tokens one after another, each on the state of the token before it."""
        first, parents = self.first(window.memory), window.ancestors(1)
        past = window.past[0][:, : window.slots]
        shown, states = list[Tensor](), window.inputs.new_zeros(*window.inputs.shape[:2], self.config.hidden)
        for at in range(window.inputs.shape[1]):
            parent = parents[:, at : at + 1]
            before = torch.where(parent < 0, first, gathered(past, states, parent)[:, 0])
            hidden, states[:, at] = self.advance(window.inputs[:, at], before, window.memory)
            shown.append(hidden)
        return torch.stack(shown, 1), [states]

    def advance(self, inputs: Tensor, state: Tensor, memory: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return what the head reads behind one token [B, width], and the next state, both [B, ...]."""
        _, last = self.writer(self._fed(inputs.unsqueeze(1), memory[2]), state.unsqueeze(0).contiguous())
        return self._merged(last.transpose(0, 1), memory)[:, 0], last[0]

    def states(self, sources: Tensor, is_real: Tensor, inputs: Tensor) -> Tensor:
        """Return what the head reads of whole targets, [B, T, width]."""
        return self.states_on(self.encode(sources, is_real), inputs)

    def states_on(self, memory: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """Return what `states` returns, of sources that are encoded."""
        states, _ = self.writer(self._fed(self.embed(inputs), memory[2]), self.first(memory).unsqueeze(0))
        return F.dropout(self._merged(states, memory), self.config.dropout, self.training)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits by the embedding matrix."""
        return F.linear(hidden, self.embedding.weight, self.bias)

    def _fed(self, inputs: Tensor, summary: Tensor) -> Tensor:
        return torch.cat([inputs, summary.unsqueeze(1).expand(-1, inputs.shape[1], -1)], -1)

    def first(self, memory: Sequence[Tensor]) -> Tensor:
        """Return the state [B, hidden] before the first token."""
        return torch.tanh(self.bridge(memory[2]))

    def _merged(self, states: Tensor, memory: Sequence[Tensor]) -> Tensor:
        """Join states [B, T, hidden] with what they attend to, or with the summary."""
        is_real, source, summary = memory
        if self.config.has_attention:
            weights = self.query(states) @ source.transpose(1, 2)
            weights = weights.masked_fill(~is_real.unsqueeze(1), torch.finfo(weights.dtype).min)
            context = weights.softmax(-1) @ source
        else:
            context = summary.unsqueeze(1).expand_as(states)
        return torch.tanh(self.merge(torch.cat([states, context], -1)))
