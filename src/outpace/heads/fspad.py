"""EAGLE's drafter with features that the tokens choose from, and with laws that need not be those of its features.

Paper: Gui et al. (2024), arXiv 2408.15562, FSPAD. Feature sampling: the feature of a token does not tell which token
was drawn from it; the embedding of the token that was gates the feature in a wide space. Partial alignment: what is fed
back is aligned with the target's features, the laws come from the layer's output itself, a matrix before it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.heads.eagle import EagleNet
from outpace.heads.net import Frozen, HeadConfig

__all__ = ["FspadNet"]


class FspadNet(EagleNet):
    """FSPAD. Settings: those of `EagleNet`, and those below.

    sampling: width of the space where embeddings gate features; 0 = features are taken as they are.
    is_partial: what is fed back is made of the output by a matrix; else it is the output.
    """

    kind: ClassVar[str] = "fspad"
    extra: ClassVar[dict[str, Any]] = {**EagleNet.extra, "sampling": 512, "is_partial": True}

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        wide = int(config.settings["sampling"])
        if wide:
            self.sample_gate = nn.Linear(self.width, wide, bias=False)
            self.sample_up = nn.Linear(self.width, wide, bias=False)
            self.sample_down = nn.Linear(wide, self.width, bias=False)
        if config.settings["is_partial"]:
            self.align = nn.Linear(self.width, self.width, bias=False)

    def begin(self, frozen: Frozen) -> None:
        """Let the two additions begin as if they were not there."""
        super().begin(frozen)
        with torch.no_grad():
            if self.config.settings["sampling"]:
                self.sample_down.weight.zero_()
            if self.config.settings["is_partial"]:
                nn.init.eye_(self.align.weight)

    def enter(self, embeds: Tensor, features: Tensor) -> Tensor:
        """Return what enters the layer: the features with what the tokens choose of them added."""
        if self.config.settings["sampling"]:
            gated = F.silu(self.sample_gate(embeds)) * self.sample_up(features)
            features = features + self.sample_down(gated)
        return super().enter(embeds, features)

    def feedback(self, out: Tensor) -> Tensor:
        """Return the aligned features."""
        return self.align(out) if self.config.settings["is_partial"] else out
