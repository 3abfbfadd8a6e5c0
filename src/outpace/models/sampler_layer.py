"""One layer on top of a masked model: what its laws of open places become once some of them are written.

It reads the model's last states of the places that a forward asked, and the embeddings of the tokens written there
since, and moves the states; the model's own head makes laws of them. An untrained layer moves nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.errors import ModelError
from outpace.models.editing.encoder import Layer
from outpace.text.files import read_object
from outpace.types import Adapter

__all__ = ["MODEL_TYPE", "SamplerConfig", "SamplerLayer", "config_of", "corrected", "read_sampler"]

MODEL_TYPE = "outpace_sampler_layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerConfig:
    """Sizes.

    Attributes:
        vocab: of the masked model, in tokens.
        hidden: width of its last states.
        width: of the layer.
        heads: of its attention.
        ffn: of its feed-forward network.
        reach: places that it tells apart, counted from the first one asked; later ones are as the last.
    """

    vocab: int
    hidden: int
    width: int = 256
    heads: int = 4
    ffn: int = 768
    reach: int = 64


class SamplerLayer(nn.Module):
    """The layer.

    Args:
        config: its sizes.
    """

    def __init__(self, config: SamplerConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.read, self.read_token = nn.Linear(config.hidden, width), nn.Linear(config.hidden, width)
        self.read_left, self.read_right = (nn.Linear(config.hidden, width, bias=False) for _ in range(2))
        self.embed_places, self.embed_open = nn.Embedding(config.reach, width), nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.embed_places.weight, std=0.1)
        self.layer, self.norm = Layer(config), nn.LayerNorm(width)
        self.scale = nn.LayerNorm(config.hidden, elementwise_affine=False)  # embeddings may be tiny beside states
        self.out = nn.Linear(width, config.hidden, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, last: Tensor, embedded: Tensor, is_open: Tensor, places: Tensor) -> Tensor:
        """Return the moved states [B, A, hidden].

        Args:
            last: [B, A, hidden], the model's last states of the asked places.
            embedded: [B, A, hidden], the model's embeddings of the tokens there; any where a place is open.
            is_open: [B, A] bool, nothing was written there since.
            places: [B, A] int64, ascending.
        """
        at = (places - places[:, :1]).clamp(0, self.config.reach - 1)
        tokens = self.scale(embedded.to(self.read.weight)).masked_fill(is_open[..., None], 0.0)
        state = self.read(last.to(self.read.weight)) + self.embed_places(at)
        state = state + torch.where(is_open[..., None], self.embed_open.to(state), self.read_token(tokens))
        # Neighbours tell most; attention alone would have to learn which places they are.
        is_next = (places.diff(dim=1) == 1)[..., None]
        state = state + F.pad(self.read_left(tokens[:, :-1] * is_next), (0, 0, 1, 0))
        state = state + F.pad(self.read_right(tokens[:, 1:] * is_next), (0, 0, 0, 1))
        seen = torch.ones(1, 1, 1, state.shape[1], dtype=torch.bool, device=state.device)
        moved: Tensor = last + self.out(self.norm(self.layer(state, seen))).to(last)
        return moved


def corrected(layer: SamplerLayer, target: Adapter, last: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
    """Return logits [B, A, V] of asked places: what the model's head says of the states that a layer moves.

    Args:
        layer: trained on that model.
        target: the masked model.
        last: [B, A, hidden], its last states of the asked places.
        tokens: [B, A] int64, those written there since; -1 = open.
        places: [B, A] int64, ascending.
    """
    return target.head(layer(last, target.embed(tokens.clamp(min=0)), tokens < 0, places))


def config_of(net: SamplerLayer) -> dict[str, Any]:
    """Return the `config.json` of a layer."""
    return {"model_type": MODEL_TYPE, **asdict(net.config)}


def read_sampler(directory: Path) -> SamplerLayer:
    """Return the layer of a directory, in float32.

    Raises:
        ModelError: it holds none, or not the whole of one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_object(directory / "config.json")
    if config.get("model_type") != MODEL_TYPE:
        raise ModelError(f"{directory} holds no sampler layer.", "Train one: outpace train stories-mask-joint.")
    names = {field.name for field in fields(SamplerConfig)}
    try:
        net = SamplerLayer(SamplerConfig(**{name: value for name, value in config.items() if name in names}))
        net.load_state_dict({name: one.float() for name, one in load_file(directory / "model.safetensors").items()})
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{directory} holds no whole sampler layer: {reason}", "Train it again.") from error
    return net.eval().requires_grad_(False)
