"""Write every place that the model is sure of, and keep the keys and values of what lies outside the block.

Paper: Wu et al. (2025), arXiv 2505.22618: confidence-aware parallel decoding (algorithm 1), by a threshold or by the
    factor of theorem 1, over a block-wise cache of the prefix, or of prefix and suffix ("dual").
Guarantee: approximate, in the order of writing as in the cache; `refresh=1` reads nothing stale.
Cost: one forward per step, over the block alone (dual) or all from it on (prefix), and one over the whole canvas per
    block. On block models finished blocks are cached exactly, whatever the cache is called.
Differences: the factor's condition holds for every rank up to the last one written (the authors' loop takes one place
    more where it reaches the end). A new block begins with a step that computes everything, so that the two sides of
    the block are as the authors' are after theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.canvas import Canvas, Policy, Ranked, Rule, make_policy
from outpace.canvas.rules.parallel import Factor
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import CanvasMethod
from outpace.methods.setting import setting

__all__ = ["FastDllm"]


@dataclass(frozen=True)
class FastDllm(CanvasMethod):
    """Confidence-aware parallel decoding with a block-wise cache.

    The cache "auto" is "dual" under full attention, and the exact "block" under block attention.

    Attributes:
        threshold: places at least this sure are written together; the surest always is. In (0, 1].
        factor: in place of the threshold, if above 0: the n surest are written while c_n >= 1 - factor / (n + 1).

    Raises:
        ConfigError: a threshold outside (0, 1], or a negative factor.
    """

    threshold: float = setting(0.9, above=0, most=1)
    factor: float = setting(0.0, least=0, note="0 uses the threshold")

    name: ClassVar[str] = "fast-dllm"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Unmasks all positions the model is sure of, with cached keys and values around the block."
    paper: ClassVar[Paper] = Paper(
        "Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding",
        "Wu et al.",
        2025,
        "2505.22618",
        22,
    )

    @property
    def rule(self) -> Rule:
        """All places above the threshold, or as many as the factor allows."""
        return Factor(self.factor) if self.factor else Ranked(threshold=self.threshold)

    def policy(self, canvas: Canvas) -> Policy:
        """Return the cache policy."""
        is_full = self.cache == "auto" and not canvas.block_size
        return make_policy("dual", self.refresh) if is_full else super().policy(canvas)
