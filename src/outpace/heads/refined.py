"""Independent heads whose drafts a small language model rescores: what fits the token before it comes first.

Paper: Kim et al. (2024), arXiv 2404.09221, Exploring and Improving Drafts in Blockwise Parallel Decoding (section 5).
The `top` likeliest tokens of each place are a lattice; a path through it is worth the heads' log-probabilities, and
`weight` times those of a small model that knows the token before. The model is neural and reads one token, two layers
between the target's embedding and its output matrix. It learns from the texts beside the heads, which learn as Medusa's
do and are none the wiser; the weight of each place is learned too, where the paper tries some.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.heads.layer import RmsNorm
from outpace.heads.medusa import MedusaNet
from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, Frozen, HeadConfig, Lesson
from outpace.heads.slots import Options, labels, slot_lesson

__all__ = ["RefinedNet"]


class RefinedNet(MedusaNet):
    """Settings: depth (heads), blocks (per head), top (tokens of a place that are rescored), inner (of the model)."""

    kind: ClassVar[str] = "refined"
    options: ClassVar[Options] = {"blocks": (1, 1), "top": (32, 1), "inner": (0, 0)}

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        inner = self.option("inner") or 2 * size
        self.rescorer = nn.Sequential(RmsNorm(size), nn.Linear(size, inner), nn.SiLU(), nn.Linear(inner, size))
        self.weight = nn.Parameter(torch.full((config.depth,), 0.5))

    def begin(self, frozen: Frozen) -> None:
        """Let the small model begin with no opinion."""
        super().begin(frozen)
        nn.init.zeros_(self.rescorer[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.rescorer[-1].bias)  # type: ignore[arg-type]

    def rescored(self, logits: Tensor, said: Tensor, depth: Tensor) -> Tensor:
        """Return the log-probabilities of paths' next steps, [..., K], before the lattice is cut out.

        Args:
            logits: [..., K] of the heads.
            said: [..., K] logits of the small model.
            depth: [...] int64, which place ahead.
        """
        return logits.log_softmax(-1) + self.weight[depth].unsqueeze(-1) * said.log_softmax(-1)

    def lattice(self, logits: Tensor, scores: Tensor) -> Tensor:
        """Return the scores of the heads' likeliest tokens, -inf elsewhere."""
        least = logits.topk(min(int(self.option("top")), logits.shape[-1]), -1).values[..., -1:]
        return scores.masked_fill(logits < least, float("-inf"))

    def laws(self, batch: Batch) -> list[Tensor]:
        """Return per depth logits [B, T, K], after the text's own tokens."""
        heads = super().laws(batch)
        scores = self._scores(batch, heads, self._says(batch))
        return [self.lattice(logits, one) for logits, one in zip(heads, scores, strict=True)]

    def _says(self, batch: Batch) -> Tensor:
        """Return the small model's logits of the next token, at every token, [B, T, K]."""
        return batch.frozen.logits(self.rescorer(batch.frozen.embed(batch.tokens)))

    def _scores(self, batch: Batch, heads: list[Tensor], says: Tensor) -> list[Tensor]:
        ahead = [torch.cat([says[:, k + 1 :], says[:, : k + 1]], 1) for k in range(len(heads))]
        depths = [torch.full_like(batch.tokens, k) for k in range(len(heads))]
        return [self.rescored(*one) for one in zip(heads, ahead, depths, strict=True)]

    def loss(self, batch: Batch) -> Lesson:
        """Cross-entropy of the heads, of the small model by itself, and of the two together by the weights alone."""
        heads, says = super().laws(batch), self._says(batch)
        alone = slot_lesson(heads, batch)
        label, is_known, _ = labels(batch, 1)
        language = F.cross_entropy(says[is_known], label[is_known])
        both = self._scores(batch, [one.detach() for one in heads], says.detach())
        weighed = slot_lesson(both, batch)
        kept = slot_lesson([self.lattice(one, score) for one, score in zip(heads, both, strict=True)], batch)
        parts = {"heads": alone.loss.item(), "language": language.item(), "together": weighed.loss.item()}
        if alone.reached is not None:
            parts["accepted unrefined"] = float(alone.reached.sum() / alone.counts[0].clamp(min=1))
        total = alone.loss + language + weighed.loss
        return Lesson(total, kept.hits, kept.counts, kept.reached, parts)

    def after(self, model: HeadModel, slots: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return logits [B, N, K], rescored by the last token of each path."""
        logits = super().after(model, slots, depth, path)
        token = path.gather(-1, depth.unsqueeze(-1)).squeeze(-1).clamp(min=0)
        said = model.logits(self.rescorer(model.embed(token)))
        return self.lattice(logits, self.rescored(logits, said, depth))
