"""Context-aware cross-attention: a gate between all of the source and the source around where a place stands.

Paper: Ding et al. (2020), "Context-Aware Cross-Attention for Non-Autoregressive Translation": the same queries, keys
and values are attended to twice, once everywhere and once in a window; a gate that sees both outputs joins them.
Differences: none known to us in the equations; the paper measures CMLMs, here any kind of the family may have it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from outpace.errors import ConfigError
from outpace.models.editing.encoder import Layer, LayerSizes
from outpace.papers import Paper

__all__ = ["PAPERS", "ContextAwareLayer", "CrossSizes", "decoder_layer", "window_mask"]

PAPERS = (
    Paper(
        "Context-Aware Cross-Attention for Non-Autoregressive Translation",
        "Ding et al.",
        2020,
        "",
        44,
        "",
        "outpace train nar-context-aware",
    ),
)


class CrossSizes(LayerSizes, Protocol):
    """Sizes of a layer with cross-attention."""

    @property
    def dropout(self) -> float: ...  # noqa: D102

    @property
    def cross_window(self) -> int: ...  # noqa: D102


class ContextAwareLayer(Layer):
    """A layer whose cross-attention has a local branch.

    Args:
        sizes: its sizes.
        window: source tokens to either side that the local branch sees.
        dropout: of each branch of the layer, in training.
    """

    def __init__(self, sizes: LayerSizes, window: int, dropout: float = 0.0) -> None:
        super().__init__(sizes, has_cross=True, dropout=dropout)
        self.window = window
        self.gate = nn.Linear(2 * sizes.width, sizes.width)

    def _cross(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor, others_seen: Tensor | None) -> Tensor:
        assert others_seen is not None
        everywhere, nearby = self.branches(query, key, value, seen, others_seen)
        gate: Tensor = self.gate(torch.cat([everywhere, nearby], -1)).sigmoid()
        return gate * everywhere + (1 - gate) * nearby

    def branches(
        self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor, others_seen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what both branches find, [B, L, W] each: all of the source, and what lies in the window.

        Args:
            query: [B, L, W].
            key, value: [B, S, W].
            seen: [B, 1, 1 or L, L] bool, the places that others see: the real ones.
            others_seen: [B, 1, 1, S] bool, real source tokens.
        """
        mask = window_mask(seen[:, 0].any(1), others_seen[:, 0, 0], self.window)
        return self._attend(query, key, value, others_seen), self._attend(query, key, value, mask[:, None])


def window_mask(is_place: Tensor, is_real: Tensor, window: int) -> Tensor:
    """Return which source tokens lie around each place, [B, L, S] bool.

    Args:
        is_place: [B, L] bool.
        is_real: [B, S] bool.
        window: tokens to either side of the one that place t stands at, round(t * (S - 1) / (L - 1)); each place,
            padding too, sees at least one token.
    """
    places, last = is_place.sum(1)[:, None], (is_real.sum(1) - 1)[:, None]
    at = torch.arange(is_place.shape[1], device=is_place.device)
    centre = (at * last / (places - 1).clamp(min=1)).round().long().minimum(last)
    away = torch.arange(is_real.shape[1], device=is_real.device) - centre[:, :, None]
    return (away.abs() <= window) & is_real[:, None, :]


def decoder_layer(config: CrossSizes) -> Layer:
    """Return a layer of a decoder, as its sizes ask for it.

    Raises:
        ConfigError: the window is below 0.
    """
    if config.cross_window < 0:
        raise ConfigError(f"A window of {config.cross_window} tokens sees nothing.", "Give 0 (no window) or more.")
    if config.cross_window:
        return ContextAwareLayer(config, config.cross_window, config.dropout)
    return Layer(config, has_cross=True, dropout=config.dropout)
