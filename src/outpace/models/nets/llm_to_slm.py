"""A small decoder whose prompt a large encoder has read: its states, projected, are added to the prompt's embeddings.

Paper: Bergner, Skliar, Royer, Blankevoort, Asano, Bejnordi (2024), "Think Big, Generate Quick: LLM-to-SLM for Fast
Autoregressive Decoding", arXiv:2402.16844. The encoder stays as it was trained and runs once on the prompt; the
projector and the small model learn together; only the small model decodes. A projector of zeros is the small model.
Differences: both read the same tokens, so that states and embeddings lie side by side without an alignment; the large
encoder is a translator's (Marian's layers), the small model a decoder without pretraining.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.errors import ModelError
from outpace.models.nets.stacks import DecoderOnly, DecoderOnlyConfig
from outpace.papers import Paper

__all__ = ["PAPERS", "LlmToSlm", "LlmToSlmConfig"]

PAPERS = (
    Paper(
        "Think Big, Generate Quick: LLM-to-SLM for Fast Autoregressive Decoding",
        "Bergner et al.",
        2024,
        "2402.16844",
        274,
        "Language models of billions of parameters, tokenizers that differ, and the states of decoder-only models.",
        "outpace train captions-llm-to-slm",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmToSlmConfig(DecoderOnlyConfig):
    """Sizes of a small decoder and of the large encoder before it.

    Attributes:
        large_width, large_layers, large_heads, large_ffn: of the large encoder; no layers = the small decoder alone.
    """

    large_width: int = 192
    large_layers: int = 4
    large_heads: int = 4
    large_ffn: int = 512


class LargeEncoder(nn.Module):
    """Marian's encoder, frozen: norms behind the layers, places from a table that its files or its kind say.

    Args:
        config: its sizes.
    """

    def __init__(self, config: LlmToSlmConfig) -> None:
        super().__init__()
        width, self.scale = config.large_width, config.large_width**0.5
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.embed_places = nn.Embedding(config.max_source, width)
        sizes = (width, config.large_heads, config.large_ffn)
        self.layers: Any = nn.ModuleList(
            nn.TransformerEncoderLayer(*sizes, dropout=0.0, batch_first=True) for _ in range(config.large_layers)
        )
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stay as it is."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, tokens: Tensor, is_real: Tensor) -> Tensor:
        """Return the states [B, S, large_width] of tokens [B, S], real where `is_real`."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        states: Tensor = self.embed_tokens(tokens) * self.scale + self.embed_places(places)
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=~is_real)
        return states


class LlmToSlm(DecoderOnly):
    """A decoder-only network whose source embeddings have the projected states of a frozen encoder on top."""

    Config = LlmToSlmConfig

    def __init__(self, config: LlmToSlmConfig) -> None:
        super().__init__(config)
        if config.large_layers:
            self.large = LargeEncoder(config)
            self.projector = nn.Sequential(
                nn.Linear(config.large_width, config.width), nn.GELU(), nn.Linear(config.width, config.width)
            )

    def adopt(self, weights: Mapping[str, Tensor]) -> bool:
        """Take the encoder of a Marian model, if any is wanted.

        Raises:
            ModelError: it has none of these sizes.
        """
        if not self.config.large_layers:
            return True
        try:
            self.large.load_state_dict(_marian(weights, self.config.large_layers, self.config.max_source))
        except (KeyError, RuntimeError) as error:
            raise ModelError("The network to start from has no encoder of these sizes.", "Name a Marian.") from error
        return True

    def _opened(self, tokens: Tensor, is_real: Tensor) -> Tensor:
        opened = super()._opened(tokens, is_real)
        if not self.config.large_layers:
            return opened
        # The encoder's own precision, whatever the step's: it was trained in it, and runs once.
        with torch.autocast(tokens.device.type, enabled=False):
            states = F.layer_norm(self.large(tokens, is_real), (self.config.large_width,))
        informed: Tensor = opened + self.projector(states)
        return informed


def _marian(weights: Mapping[str, Tensor], layers: int, places: int) -> dict[str, Tensor]:
    """Return a Marian's encoder under the names of `LargeEncoder`."""
    mine = {key.partition("encoder.")[2]: weight for key, weight in weights.items() if ".encoder." in key}
    found = {"embed_tokens.weight": mine["embed_tokens.weight"]}
    found["embed_places.weight"] = mine["embed_positions.weight"][:places]
    names = {
        "self_attn.out_proj": "self_attn.out_proj",
        "self_attn_layer_norm": "norm1",
        "fc1": "linear1",
        "fc2": "linear2",
        "final_layer_norm": "norm2",
    }
    for at in range(layers):
        for part in ("weight", "bias"):
            rows = [mine[f"layers.{at}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            found[f"layers.{at}.self_attn.in_proj_{part}"] = torch.cat(rows)
            for theirs, ours in names.items():
                found[f"layers.{at}.{ours}.{part}"] = mine[f"layers.{at}.{theirs}.{part}"]
    return found
