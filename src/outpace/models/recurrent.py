"""A recurrent language model: LSTM layers between tied embeddings, one entry of states per token in an ordinary cache.

Since every token keeps the states behind it, drafts roll back, rows fork and trees branch as for any other model.

Source: Merity, Keskar and Socher (2017), Regularizing and Optimizing LSTM Language Models, arXiv 1708.02182: the
AWD-LSTM, whose training is in `outpace.train.recurrent`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.cache import Cache
from outpace.errors import ModelError
from outpace.models.nets.base import Window
from outpace.text.files import read_object
from outpace.types import NO_OUTPUTS, Adapter, Capabilities, Counter, Outputs, Scores

__all__ = ["MODEL_TYPE", "RecurrentConfig", "RecurrentModel", "RecurrentNet", "config_of", "open_recurrent"]

MODEL_TYPE = "outpace_recurrent"
_FIRST_SLOTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentConfig:
    """Sizes.

    Attributes:
        vocab: V.
        width: of the embeddings, and of the last layer's states.
        hidden: of the states between layers.
        layers: LSTM layers.
        places: longest text that the engine is promised; the network itself has no such bound.
    """

    vocab: int
    width: int = 192
    hidden: int = 256
    layers: int = 2
    places: int = 4096


class RecurrentNet(nn.Module):
    """The network.

    Args:
        config: its sizes.
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab, config.width)
        sizes = [config.width, *[config.hidden] * (config.layers - 1), config.width]
        self.cells = nn.ModuleList(
            nn.LSTM(inside, outside, batch_first=True) for inside, outside in itertools.pairwise(sizes)
        )
        self.bias = nn.Parameter(torch.zeros(config.vocab))
        nn.init.uniform_(self.embed_tokens.weight, -0.1, 0.1)

    @property
    def sizes(self) -> list[int]:
        """Width of each layer's states."""
        return [cell.hidden_size for cell in self.cells]  # type: ignore[misc]

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V]."""
        return F.linear(hidden, self.embed_tokens.weight, self.bias)

    def step(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Read one token of each row.

        Args:
            x: [B, width] embeddings.
            states: h and c of each layer, [B, size] each.

        Returns:
            The last layer's h, and all states behind the token.
        """
        found = []
        for index, cell in enumerate(self.cells):
            now = (states[2 * index].unsqueeze(0), states[2 * index + 1].unsqueeze(0))
            out, (h, c) = cell(x.unsqueeze(1), now)
            x = out.squeeze(1)
            found += [h.squeeze(0), c.squeeze(0)]
        return x, found

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the last states [B, T, width] of whole texts [B, T], from states of zeros."""
        x = self.embed_tokens(tokens)
        for cell in self.cells:
            x, _ = cell(x)
        return x  # type: ignore[no-any-return]


def config_of(net: RecurrentNet) -> dict[str, Any]:
    """Return the `config.json` of a network."""
    return {"model_type": MODEL_TYPE, "architectures": ["RecurrentNet"], **asdict(net.config)}


class RecurrentModel(Adapter):
    """A recurrent network behind the contract.

    Args:
        net: the network; it is put into evaluation mode.
    """

    def __init__(self, net: RecurrentNet) -> None:
        self.net = net.eval().requires_grad_(False)
        config, weight = net.config, net.embed_tokens.weight
        self.capabilities = Capabilities(config.vocab, config.places, num_layers=config.layers, has_hidden=False)
        self.device, self.dtype, self.path, self.shape = weight.device, weight.dtype, "recurrent", str(config)

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return an empty cache: per layer h and c, each [rows, slots, size]."""
        slots = min(capacity, _FIRST_SLOTS)
        sizes = [size for size in self.net.sizes for _ in range(2)]
        buffers = [torch.zeros(rows, slots, size, dtype=self.dtype, device=self.device) for size in sizes]
        return Cache(buffers, 1, counter, [0] * rows, limit=capacity)

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [..., width]."""
        found: Tensor = self.net.embed_tokens(tokens)
        return found

    @torch.no_grad()
    def head(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V] of last states."""
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
        """Run one forward, token by token; see `outpace.types.Adapter`."""
        self.check(Outputs(outputs.layers, False, outputs.heads), skip)
        size = tokens.shape[1]
        cache.check_room(size)
        cache.stage(position)
        with cache.dense(size) as dense:
            lengths = torch.tensor(dense.lengths, device=self.device)
            past = [buffer[:, : int(lengths.max())] for buffer in dense.buffers]
            soft = self.embed(tokens) if inputs is None else inputs.to(self.dtype)
            before = Window(soft, position, visible, lengths, past, ()).ancestors(1)
            hidden, entries = self._read(soft, before, past)
            slots = lengths.unsqueeze(1) + torch.arange(size, device=self.device)
            rows = torch.arange(len(tokens), device=self.device).unsqueeze(1)
            for buffer, new in zip(dense.buffers, entries, strict=True):
                buffer[rows, slots] = new
        cache.counter.add(tokens.numel(), self.capabilities.num_layers)
        hidden = hidden if ask is None else hidden.take_along_dim(ask.unsqueeze(-1), 1)
        return Scores(self.head(hidden), last=hidden if outputs.has_last else None)

    def _read(self, soft: Tensor, before: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the last states [B, T, width], and every token's entry; a parent stands before its children."""
        rows, size = torch.arange(len(soft), device=soft.device), soft.shape[1]
        # The entry before a text's first token is one of zeros, which stands before all others.
        held = [F.pad(entry, (0, 0, 1, size)) for entry in past]
        first, hidden = held[0].shape[1] - size, list[Tensor]()
        for at in range(size):
            parent = before[:, at] + 1
            last, states = self.net.step(soft[:, at], [entry[rows, parent] for entry in held])
            hidden.append(last)
            for entry, new in zip(held, states, strict=True):
                entry[:, first + at] = new
        return torch.stack(hidden, 1), [entry[:, first:] for entry in held]


def open_recurrent(directory: Path, dtype: torch.dtype, device: torch.device) -> RecurrentModel:
    """Return the adapter of a directory's network.

    Raises:
        ModelError: a file is missing or damaged, or its tensors are not those that its sizes tell.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_object(directory / "config.json")
    names = {field.name for field in fields(RecurrentConfig)}
    try:
        net = RecurrentNet(RecurrentConfig(**{name: value for name, value in config.items() if name in names}))
        weights = load_file(directory / "model.safetensors")
        net.load_state_dict({name: weight.float() for name, weight in weights.items()})
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{directory} holds no whole recurrent model: {reason}", "Fetch its files again.") from error
    return RecurrentModel(net.to(device, dtype))
