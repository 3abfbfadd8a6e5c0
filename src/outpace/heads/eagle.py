"""One decoder layer on (token, feature) entries that predicts the target's next last hidden state.

Paper: Li et al. (2024), arXiv 2401.15077, EAGLE; arXiv 2406.16858, EAGLE-2, drafts with the same files.
h = fc([embedding of token i + 1; feature i]); a layer without a first norm; the target's own output matrix.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.heads.decoder import Layer, Sight, Unrolled
from outpace.heads.feature import FeatureNet
from outpace.heads.net import Batch, Frozen, HeadConfig, Lesson
from outpace.heads.unroll import Tally, moved, soft_loss

__all__ = ["EagleNet"]


class EagleNet(FeatureNet):
    """EAGLE. Settings: those of `FeatureNet`, and those below.

    steps: passes over its own outputs in training, 1 = EAGLE's, 3 = HASS' (Zhang et al. 2024, arXiv 2408.15766).
    fc_bias: whether the fusion has a bias.
    feature_weight, token_weight: of smooth L1 on features, and of cross-entropy against the target's laws.
    noise: half-width of the uniform noise that is added to the target's features in training.
    """

    kind: ClassVar[str] = "eagle"
    extra: ClassVar[dict[str, Any]] = {
        "steps": 1,
        "fc_bias": True,
        "feature_weight": 1.0,
        "token_weight": 0.1,
        "noise": 0.1,
    }

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.fc = nn.Linear(2 * self.width, self.width, bias=bool(config.settings["fc_bias"]))
        # The first layer reads what fc gives; only later ones have a norm before attention.
        self.layers = nn.ModuleList([self.new_layer(index) for index in range(self.own_layers)])

    def new_layer(self, index: int) -> Layer:
        """Return one of the layers."""
        return Layer(self.shape, index, has_input_norm=index > 0)

    def begin(self, frozen: Frozen) -> None:
        """Let attention begin quietly."""
        del frozen
        with torch.no_grad():
            for layer in self.layers:
                assert isinstance(layer, Layer)
                layer.self_attn.o_proj.weight.mul_(0.1)

    def enter(self, embeds: Tensor, features: Tensor) -> Tensor:
        """Return what enters the first layer, [B, T, hidden]."""
        return self.fc(torch.cat([embeds, features], -1))  # type: ignore[no-any-return]

    def run(self, embeds: Tensor, features: Tensor, sight: Sight) -> Tensor:
        """Return [B, T, hidden]."""
        x = self.enter(embeds, features)
        turns = self.rotation.at(sight.position, x)
        for layer in self.layers:
            x = layer(x, self.rotation, turns, sight)
        return x

    def loss(self, batch: Batch) -> Lesson:
        """Smooth L1 on features and cross-entropy against the target's laws (EAGLE, section 4.2), pass by pass."""
        settings, frozen = self.config.settings, batch.frozen
        features, goal = self.noisy(self.fuse(batch.states))[:, :-1], batch.last[:, 1:]
        embeds = self.embed(frozen, batch.tokens[:, 1:])
        sight, tally = Unrolled(len(embeds), embeds.shape[1], embeds.device), Tally(batch)
        with torch.no_grad():
            law = frozen.logits(goal).softmax(-1)
        for step in range(self._passes()):
            sight.advance()
            out = self.run(embeds, features, sight)
            logits = self.laws(frozen, out.unsqueeze(-2), torch.zeros_like(batch.tokens[:, 1:]))
            weight = tally.weight(step)
            if step < settings["steps"] or not self.training:
                part = settings["feature_weight"] * self.feature_loss(out, goal, weight)
                tally.add(part + settings["token_weight"] * soft_loss(logits, law, weight))
            tally.count(step, logits)
            features = moved(self.feedback(out))
        return tally.lesson()

    def noisy(self, features: Tensor) -> Tensor:
        """Return features with noise while training."""
        if not self.training or not self.config.settings["noise"]:
            return features
        noise: Tensor = (2 * torch.rand_like(features) - 1) * self.config.settings["noise"]
        return features + noise

    def feature_loss(self, out: Tensor, goal: Tensor, weight: Tensor) -> Tensor:
        """Return the mean smooth L1 distance of outputs [B, T, O] from features [B, T, hidden] where weight is 1."""
        distance = F.smooth_l1_loss(self.feedback(out), goal, reduction="none").mean(-1)
        return (distance * weight).sum() / weight.sum().clamp(min=1)

    def _passes(self) -> int:
        steps = int(self.config.settings["steps"])
        return steps if self.training else max(steps, self.config.depth)
