"""Neighbours of chunks, and a cross-attention that reads them: retrieval beside a model that stays as it is.

A text is cut into chunks of equal length. Its tokens read the nearest chunks of a collection, each with what followed
it, by the last whole chunk before the token that is predicted: what is read never knows that token. Nearness is the
inner product of their tokens' mean embeddings, scaled to length 1.

Source: Borgeaud et al. (2022), arXiv 2112.04426 (RETRO: chunks, neighbours with their continuations, chunked
cross-attention, fitted to a model that was trained without); Wang et al. (2023), arXiv 2304.06762, study it at scale.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from outpace.errors import ConfigError
from outpace.retrieve.states import text_states
from outpace.types import Adapter

__all__ = ["ChunkIndex", "ChunkReader", "chunk_before", "unit"]


def unit(states: Tensor) -> Tensor:
    """Return states [..., F] of a mean square of 1."""
    return states * (states.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def chunk_before(place: int, size: int) -> int:
    """Return the chunk that the state at a place reads by, -1 = none: the last one that ends there or before."""
    return (place + 1) // size - 1


class ChunkReader(nn.Module):
    """A cross-attention from the states of a text to those of its neighbours, added to the last hidden state.

    Args:
        size: F, numbers of a state.
        chunk: tokens of a chunk.
        neighbours: chunks that are read at once, each with as many tokens behind it.
        heads: of the attention.
        width: of each head.
    """

    def __init__(self, size: int, chunk: int = 16, neighbours: int = 2, heads: int = 4, width: int = 32) -> None:
        super().__init__()
        self.shape = {"size": size, "chunk": chunk, "neighbours": neighbours, "heads": heads, "width": width}
        self.chunk, self.neighbours, self.heads = chunk, neighbours, heads
        self.query = nn.Linear(size, heads * width)
        self.key, self.value = nn.Linear(3 * size, heads * width), nn.Linear(3 * size, heads * width)
        self.out, self.up, self.down = nn.Linear(heads * width, size), nn.Linear(2 * size, size), nn.Linear(size, size)
        for last in (self.out, self.down):  # a reader begins as the model alone
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, states: Tensor, read: Tensor) -> Tensor:
        """Return states [B, T, F] with what rows read of [B, N, 3F] added; a row without entries stays as it is."""
        rows, count, _ = states.shape
        shape = (rows, -1, self.heads, self.query.out_features // self.heads)
        query = self.query(unit(states)).view(shape).transpose(1, 2)
        key, value = (part(read).view(shape).transpose(1, 2) for part in (self.key, self.value))
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(rows, count, -1)
        found = self.out(seen)
        more: Tensor = self.down(F.gelu(self.up(torch.cat([unit(states), found], -1))))
        both: Tensor = states + found + more
        return both

    def save(self, file: Path, model: str) -> None:
        """Write the weights, with their shape and the name of the model that they were trained beside."""
        file.parent.mkdir(parents=True, exist_ok=True)
        told = {"kind": "chunks", "settings": json.dumps({"model": model, "shape": self.shape})}
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, str(file), told)

    @staticmethod
    def read(file: str | Path) -> ChunkReader:
        """Read the weights of a file.

        Raises:
            ConfigError: there is none, or it holds something else.
        """
        try:
            with safe_open(str(file), "pt") as found:
                shape = json.loads((found.metadata() or {})["settings"])["shape"]
                reader = ChunkReader(**shape)
                reader.load_state_dict({name: found.get_tensor(name) for name in found.keys()})
        except Exception as error:  # the library raises an exception of its own
            raise ConfigError(
                f"{file} holds no chunk reader.", "Train one with python -m outpace.train.chunks."
            ) from error
        return reader.eval()


class ChunkIndex:
    """The chunks of a collection.

    Args:
        target: reads them.
        texts: token ids, text by text; what is left of a text behind its last whole chunk follows that one.
        chunk: tokens of a chunk.

    Raises:
        ConfigError: no text is as long as a chunk.
    """

    def __init__(self, target: Adapter, texts: Sequence[Sequence[int]], chunk: int) -> None:
        self.target, self.chunk = target, chunk
        places = [(number, at) for number, text in enumerate(texts) for at in range(0, len(text) - chunk + 1, chunk)]
        if not places:
            raise ConfigError(f"No text of the collection has {chunk} tokens.", "Give longer texts.")
        self.texts = torch.tensor([number for number, _ in places])
        self.spans = [list(texts[number][at : at + 2 * chunk]) for number, at in places]
        states = text_states(target, self.spans)
        self.keys = torch.stack([self.key(span[:chunk]) for span in self.spans])
        size = states[0].shape[1]
        self._read = torch.zeros(len(places), 2 * chunk, 3 * size)
        for number, (span, held) in enumerate(zip(self.spans, states, strict=True)):
            self._read[number, : len(span)] = self._entries(span, held)

    def _entries(self, span: Sequence[int], states: Tensor) -> Tensor:
        """Return what can be read of a span, [N, 3F]: its states, its tokens, and the tokens behind each."""
        ids = torch.tensor([*span, span[-1]], device=self.target.device)
        embedded = unit(self.target.embed(ids).float().cpu())
        return torch.cat([unit(states), embedded[:-1], embedded[1:]], -1)

    def key(self, chunk: Sequence[int]) -> Tensor:
        """Return the key [F] of a chunk."""
        ids = torch.tensor(list(chunk), device=self.target.device)
        return F.normalize(self.target.embed(ids).float().mean(0), dim=0).cpu()

    def nearest(self, keys: Tensor, count: int, but: Tensor | None = None) -> Tensor:
        """Return the nearest chunks of keys [Q, F], [Q, count], the nearest first.

        Args:
            keys: of the chunks.
            count: how many, at most all.
            but: [Q] texts whose chunks do not count, -1 = none.
        """
        near = keys @ self.keys.T
        if but is not None:
            near = near.masked_fill(self.texts == but.unsqueeze(1), -2.0)
        return near.topk(min(count, len(self.keys)), 1).indices

    def entries(self, chosen: Tensor) -> Tensor:
        """Return what is read of chosen chunks [Q, K], [Q, K * 2 * chunk, 3F]."""
        return self._read[chosen].flatten(1, 2)
