"""EAGLE's layer with experts that guess apart, and last levels that one pass tells together.

Paper: Huang et al. (2025), arXiv 2502.06282, Jakiro. Siblings that come from one law lean on one guess; here each
expert has a law of its own, and what is drafted from is their mixture, so that the likeliest siblings are those of
several experts. The last levels are told by the pass before them, from the contrast of the stronger expert with the
weaker.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.errors import ConfigError
from outpace.heads.decoder import MLP, Layer, Shape, Sight, Unrolled
from outpace.heads.eagle import EagleNet
from outpace.heads.feature import Scorer
from outpace.heads.net import Batch, Frozen, HeadConfig, Lesson
from outpace.heads.unroll import Tally, moved, soft_loss

__all__ = ["JakiroNet"]


class Experts(nn.Module):
    """Several feed-forward layers and a router.

    Args:
        shape: of a layer; its feed-forward width is shared among them.
        count: experts.
    """

    def __init__(self, shape: Shape, count: int) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.hidden, count, bias=False)
        self.experts = nn.ModuleList([MLP(shape) for _ in range(count)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts' outputs [..., E, hidden], and the logarithms of their shares [..., E]."""
        return torch.stack([expert(x) for expert in self.experts], -2), self.gate(x).log_softmax(-1)


class JakiroNet(EagleNet):
    """Jakiro. Settings: those of `EagleNet`, and those below.

    experts: feed-forward layers; 1 = EAGLE's.
    parallel: last levels that are told without a pass of their own.
    contrast: how much of the difference between the strongest and the weakest expert is added for those.
    """

    kind: ClassVar[str] = "jakiro"
    extra: ClassVar[dict[str, Any]] = {**EagleNet.extra, "experts": 2, "parallel": 1, "contrast": 0.5}

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.count, self.parallel = int(config.settings["experts"]), int(config.settings["parallel"])
        if self.count < 1 or not 0 <= self.parallel < config.depth:
            raise ConfigError(
                f"{self.count} experts and {self.parallel} parallel levels of {config.depth} were asked for.",
                "Use 1 expert or more, and fewer parallel levels than depth.",
            )
        last: Layer = self.layers[-1]  # type: ignore[assignment]
        last.mlp = Experts(self.shape, self.count)
        self.ahead = nn.ModuleList([nn.Linear(self.width, self.width) for _ in range(self.parallel)])

    def begin(self, frozen: Frozen) -> None:
        """Let the levels told together begin with the same guess as the pass."""
        super().begin(frozen)
        with torch.no_grad():
            for linear in self.ahead:
                nn.init.zeros_(linear.weight)  # type: ignore[arg-type]
                nn.init.zeros_(linear.bias)  # type: ignore[arg-type]

    def run(self, embeds: Tensor, features: Tensor, sight: Sight) -> Tensor:
        """Return the experts' features side by side, and the logarithms of their shares: [B, T, E * hidden + E]."""
        x = self.enter(embeds, features)
        turns = self.rotation.at(sight.position, x)
        for layer in self.layers[:-1]:
            x = layer(x, self.rotation, turns, sight)
        last: Layer = self.layers[-1]  # type: ignore[assignment]
        x = last.mix(x, self.rotation, turns, sight)
        found, shares = last.mlp(last.post_attention_layernorm(x))
        return torch.cat([(x.unsqueeze(-2) + found).flatten(-2), shares], -1)

    def _parts(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts' features [..., E, hidden], and the logarithms of their shares [..., E]."""
        found, shares = out[..., : -self.count], out[..., -self.count :]
        # A product with what is not contiguous copies the output matrix for every token: a hundred times the time.
        return found.contiguous().unflatten(-1, (self.count, self.width)), shares

    def feedback(self, out: Tensor) -> Tensor:
        """Return the experts' mean feature, by their shares."""
        found, shares = self._parts(out)
        return (found * shares.exp().unsqueeze(-1)).sum(-2)

    def laws(self, scorer: Scorer, out: Tensor, ahead: Tensor) -> Tensor:
        """Return logits [..., K]: of the mixture of the experts' laws, or of a level told together."""
        out = out[..., -1, :]
        logits = self.mixture(scorer, out)
        for level in range(self.parallel):
            if bool((is_here := ahead == level + 1).any()):
                logits = torch.where(is_here.unsqueeze(-1), self.later(scorer, out, level), logits)
        return logits

    def mixture(self, scorer: Scorer, out: Tensor) -> Tensor:
        """Return the logarithm of the mixture of the experts' laws, [..., K]."""
        found, shares = self._parts(out)
        return (scorer.logits(found).log_softmax(-1) + shares.unsqueeze(-1)).logsumexp(-2)

    def later(self, scorer: Scorer, out: Tensor, level: int) -> Tensor:
        """Return logits [..., K] of the place that is `level` + 1 behind the one that the pass tells."""
        found, shares = self._parts(out)
        order = shares.argsort(dim=-1, descending=True, stable=True)[..., None].expand(found.shape)
        found = found.gather(-2, order)
        x = found[..., 0, :] + self.config.settings["contrast"] * (found[..., 0, :] - found[..., -1, :])
        return scorer.logits(x + F.silu(self.ahead[level](x)))

    def anchor(self, depth: int) -> int:
        """Return how many drafts the pass has read that tells what follows `depth` of them."""
        return min(depth, self.config.depth - 1 - self.parallel)

    def most(self) -> int:
        """Return the depth that it was trained for, the levels told together included."""
        return self.config.depth

    def loss(self, batch: Batch) -> Lesson:
        """EAGLE's loss with the mixture's laws, and cross-entropy of the levels told together."""
        settings, frozen = self.config.settings, batch.frozen
        features, goal = self.noisy(self.fuse(batch.states))[:, :-1], batch.last[:, 1:]
        embeds = self.embed(frozen, batch.tokens[:, 1:])
        sight, tally = Unrolled(len(embeds), embeds.shape[1], embeds.device), Tally(batch)
        with torch.no_grad():
            law = frozen.logits(goal).softmax(-1)
        passes = min(self._passes(), self.config.depth - self.parallel)
        for step in range(passes):
            sight.advance()
            out, weight = self.run(embeds, features, sight), tally.weight(step)
            logits = self.mixture(frozen, out)
            part = settings["feature_weight"] * self.feature_loss(out, goal, weight)
            tally.add(part + settings["token_weight"] * soft_loss(logits, law, weight))
            tally.count(step, logits)
            features = moved(self.feedback(out))
        for level in range(self.parallel):
            # At an entry they tell a place further on; moved by that, they stand where its own entry does.
            logits, step = moved(self.later(frozen, out, level), level + 1), passes + level
            tally.add(settings["token_weight"] * soft_loss(logits, law, tally.weight(step)))
            tally.count(step, logits)
        return tally.lesson()
