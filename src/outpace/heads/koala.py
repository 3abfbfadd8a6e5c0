"""Heads of several blocks, taught by the text and by a judge that learns to tell their states from the target's.

Paper: Zhang et al. (2024), arXiv 2408.08146, KOALA (sections 3.1 and 3.2). The heads are those of Medusa. While they
are trained, a small network judges a state: was it the target's own at that place, or made up by a head some places
before? The heads learn to be taken for the target. The judge sees the state that the shared output matrix reads, which
says no less than the law that the paper's judge sees, and one step trains both: the gradient of its loss is turned
around where it enters the heads (Ganin and Lempitsky, 2015, arXiv 1409.7495, section 3.2).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.heads.medusa import MedusaNet
from outpace.heads.net import Batch, HeadConfig, Lesson, shifted
from outpace.heads.slots import Options, shifted_states, slot_lesson

__all__ = ["KoalaNet"]


class _Turned(torch.autograd.Function):
    """x, whose gradient is taken times minus a weight."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: float) -> Tensor:
        context.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -context.weight * gradient, None


class KoalaNet(MedusaNet):
    """Settings: depth (heads), blocks (per head), adversarial (weight of the judge's word, 0 = no judge)."""

    kind: ClassVar[str] = "koala"
    options: ClassVar[Options] = {"blocks": (2, 1), "adversarial": (0.1, 0.0)}

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        size, inner = config.hidden_size, max(8, config.hidden_size // 4)
        self.judge = nn.Sequential(
            nn.LayerNorm(size + config.depth), nn.Linear(size + config.depth, inner), nn.SiLU(), nn.Linear(inner, 1)
        )

    def loss(self, batch: Batch) -> Lesson:
        """Cross-entropy of each head against the text, and how well the judge is deceived."""
        x = self.hidden(batch.states)
        lesson = slot_lesson([batch.frozen.logits(part) for part in x.unbind(-2)], batch)
        weight = float(self.option("adversarial"))
        if not weight:
            return lesson
        words = torch.stack([self._judged(x[..., k, :], k, batch, weight) for k in range(self.config.depth)]).mean()
        # The judge's own share of the gradient is whole; what passes into the heads is turned, and has the weight.
        parts = {"text": lesson.loss.item(), "judge": words.item()}
        return Lesson(lesson.loss + words, lesson.hits, lesson.counts, lesson.reached, parts)

    def _judged(self, drafted: Tensor, k: int, batch: Batch, weight: float) -> Tensor:
        """Return the judge's loss over the states of one head, in nats."""
        is_there = shifted(batch.is_taught.long(), k + 2)[0] > 0
        true = shifted_states(batch.last, k + 1)[is_there].detach()
        made = _Turned.apply(drafted[is_there], weight)  # type: ignore[no-untyped-call]
        which = F.one_hot(torch.tensor(k, device=true.device), self.config.depth).to(true).expand(len(true), -1)
        said = self.judge(torch.cat([torch.cat([true, made]), which.repeat(2, 1)], -1)).squeeze(-1)
        return F.binary_cross_entropy_with_logits(said, (torch.arange(len(said)) < len(true)).to(said))

    def bytes_per_draft(self) -> int:
        """Return the bytes of the heads; nobody asks the judge while drafting."""
        judge = sum(weight.numel() * weight.element_size() for weight in self.judge.parameters())
        return super().bytes_per_draft() - judge
