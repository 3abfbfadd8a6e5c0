"""A semi-autoregressive drafter: a pass reads a block of entries and tells as many tokens.

Paper: Gao et al. (2024), arXiv 2412.12639, Falcon. The entries of a block see each other (relaxed causal mask), and
each tells the feature and the token a block further on. Training is by coupled sequential glancing distillation: the
next block is drafted from the drafter's own outputs, with more of the true ones shown the more of the block was wrong.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from outpace.errors import ConfigError
from outpace.heads.decoder import Unrolled
from outpace.heads.eagle import EagleNet
from outpace.heads.feature import Scorer
from outpace.heads.net import Batch, HeadConfig, Lesson
from outpace.heads.unroll import Tally, moved, soft_loss

__all__ = ["FalconNet"]


class FalconNet(EagleNet):
    """Falcon. Settings: those of `EagleNet` (one layer), and those below.

    steps: blocks that are drafted behind each other in training.
    block: tokens told by a pass.
    glancing: share of a block's wrong entries that are shown.
    """

    kind: ClassVar[str] = "falcon"
    extra: ClassVar[dict[str, Any]] = {**EagleNet.extra, "steps": 2, "block": 2, "glancing": 0.5}

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.stride = int(config.settings["block"])
        # A second layer's keys of the text would depend on where its blocks began.
        if self.stride < 1 or self.own_layers != 1:
            raise ConfigError(
                f"A block of {self.stride} tokens and {self.own_layers} layers were asked for.",
                "Falcon has one layer, and blocks of 1 or more.",
            )

    def anchor(self, depth: int) -> int:
        """Return how many drafts the pass has read that tells what follows `depth` of them: whole blocks."""
        return depth - depth % self.stride

    def laws(self, scorer: Scorer, out: Tensor, ahead: Tensor) -> Tensor:
        """Return logits [..., K] of the place that many tokens into the block."""
        index = ahead[..., None, None].expand(*ahead.shape, 1, out.shape[-1])
        return scorer.logits(out.gather(-2, index).squeeze(-2))

    def loss(self, batch: Batch) -> Lesson:
        """EAGLE's losses a block further on, block behind block."""
        settings, frozen, block = self.config.settings, batch.frozen, self.stride
        true = self.fuse(batch.states)[:, :-1]
        embeds = self.embed(frozen, batch.tokens[:, 1:])
        goal = F.pad(batch.last[:, block:], (0, 0, 0, block - 1))  # the entry's own place, a block further on
        offset = batch.step % block if self.training else 0
        sight = Unrolled(len(embeds), embeds.shape[1], embeds.device, block, offset)
        tally, features = Tally(batch, block), self.noisy(true)
        with torch.no_grad():
            law = frozen.logits(goal).softmax(-1)
        for step in range(self._passes()):
            sight.advance()
            out, weight = self.run(embeds, features, sight), tally.weight(offset + step * block)
            logits = frozen.logits(out)
            part = settings["feature_weight"] * self.feature_loss(out, goal, weight)
            tally.add(part + settings["token_weight"] * soft_loss(logits, law, weight))
            tally.count_blocks(step, logits, block, offset)
            features = self._glanced(moved(out, block), true, moved(logits.argmax(-1) != tally.label, block), sight)
        return tally.lesson()

    def _glanced(self, own: Tensor, true: Tensor, is_wrong: Tensor, sight: Unrolled) -> Tensor:
        """Return the drafter's own features, some of them replaced: the more of a block was wrong, the more."""
        if not self.training:
            return own
        number = sight.number - sight.number.min()
        wrong = is_wrong.new_zeros((len(own), int(number.max()) + 1), dtype=own.dtype)
        wrong.index_add_(1, number, is_wrong.to(own.dtype))
        share = self.config.settings["glancing"] * wrong[:, number] / self.stride
        return torch.where((torch.rand_like(share) < share).unsqueeze(-1), true, own)

    def _passes(self) -> int:
        steps = int(self.config.settings["steps"])
        return steps if self.training else max(steps, -(-self.config.depth // self.stride))
