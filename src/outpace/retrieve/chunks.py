"""Neighbours of chunks, and a cross-attention that reads them: retrieval beside a model that stays as it is.

A text is cut into chunks of equal length. Its tokens read the nearest chunks of a collection, each with what followed
it, by the last whole chunk before the token that is predicted: what is read never knows that token. A collection has a
chunk at every token, so that what follows one goes on from the same place. Nearness is the inner product of their
tokens' mean embeddings, the last tokens weighing most, scaled to length 1.

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


_HALVING = 4.0  # tokens back at which one weighs half as much in a chunk's key


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
        self.offset = nn.Parameter(torch.zeros(heads, chunk, 2 * chunk))  # by the two places in their spans
        self.out, self.up, self.down = nn.Linear(heads * width, size), nn.Linear(2 * size, size), nn.Linear(size, size)
        for last in (self.out, self.down):  # a reader begins as the model alone
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, states: Tensor, read: Tensor, first: int = 0) -> Tensor:
        """Return states [B, T, F] with what rows read of [B, K * 2 * chunk, 3F] added.

        Args:
            states: of one chunk's places, or of some in a row.
            read: entries of K neighbours.
            first: place in its chunk of the token that the first state predicts.
        """
        rows, count, _ = states.shape
        shape = (rows, -1, self.heads, self.query.out_features // self.heads)
        query = self.query(unit(states)).view(shape).transpose(1, 2)
        key, value = (part(read).view(shape).transpose(1, 2) for part in (self.key, self.value))
        near = self.offset[:, first : first + count].repeat(1, 1, read.shape[1] // (2 * self.chunk))
        bias = near.expand(rows, -1, -1, -1)
        seen = F.scaled_dot_product_attention(query, key, value, bias).transpose(1, 2).reshape(rows, count, -1)
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
        long = [number for number, text in enumerate(texts) if len(text) >= chunk]
        if not long:
            raise ConfigError(f"No text of the collection has {chunk} tokens.", "Give longer texts.")
        # All texts lie one behind the other, and then an entry of zeros, which stands for what a text no longer has.
        begins, places, keys = 0, list[tuple[int, int, int]](), list[Tensor]()
        for number in long:
            size = len(texts[number])
            places += [(number, begins + at, begins + size) for at in range(size - chunk + 1)]
            keys.append(self._keys(texts[number]))
            begins += size
        self.texts, self.starts, self._ends = torch.tensor(places).T
        self.keys = torch.cat(keys)
        self._tokens = torch.tensor([token for number in long for token in texts[number]])
        entries = [
            self._entries(texts[number], held)
            for number, held in zip(long, text_states(target, [texts[number] for number in long]), strict=True)
        ]
        self._read = torch.cat([*entries, torch.zeros(1, entries[0].shape[1])])

    def __len__(self) -> int:
        """Chunks."""
        return len(self.starts)

    def _entries(self, text: Sequence[int], states: Tensor) -> Tensor:
        """Return what can be read of a text, [N, 3F]: its states, its tokens, and the tokens behind each."""
        ids = torch.tensor([*text, text[-1]], device=self.target.device)
        embedded = unit(self.target.embed(ids).float().cpu())
        return torch.cat([unit(states), embedded[:-1], embedded[1:]], -1)

    def _keys(self, text: Sequence[int]) -> Tensor:
        """Return the keys of all chunks of a text, [N, F]."""
        embedded = self.target.embed(torch.tensor(list(text), device=self.target.device)).float().cpu()
        weight = 0.5 ** (torch.arange(self.chunk - 1, -1, -1) / _HALVING)
        return F.normalize(embedded.unfold(0, self.chunk, 1) @ weight, dim=-1)

    def key(self, chunk: Sequence[int]) -> Tensor:
        """Return the key [F] of a chunk."""
        return self._keys(chunk)[0]

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

    def following(self, chosen: Tensor) -> Tensor:
        """Return the token behind each of chosen chunks [...], -1 where its text ends with it."""
        at = self.starts[chosen] + self.chunk
        token = self._tokens[at.clamp(max=len(self._tokens) - 1)]
        return torch.where(at < self._ends[chosen], token, -1)

    def entries(self, chosen: Tensor) -> Tensor:
        """Return what is read of chosen chunks [Q, K], [Q, K * 2 * chunk, 3F]."""
        at = self.starts[chosen].unsqueeze(-1) + torch.arange(2 * self.chunk)
        at = torch.where(at < self._ends[chosen].unsqueeze(-1), at, len(self._read) - 1)
        return self._read[at.flatten(1)]
