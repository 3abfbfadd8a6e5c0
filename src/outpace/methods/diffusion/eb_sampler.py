"""Write as many places at once as the entropies of their laws allow.

Paper: Ben-Hamu et al. (2025), arXiv 2505.24857. Places are ranked, and the longest beginning is written whose
    entropies, without the greatest of them, sum to at most gamma, which bounds what is lost by drawing places apart.
Guarantee: approximate; gamma bounds what each step may lose. gamma = 0 is one token per step in the order of entropy.
Cost: one forward per step, over what the cache does not hold.
Differences: none known in the rule; entropies are of the model's own law, at temperature 1, whatever is drawn from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.canvas.rules.parallel import EntropyBounded
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import CanvasMethod
from outpace.methods.setting import setting

__all__ = ["EbSampler"]


@dataclass(frozen=True)
class EbSampler(CanvasMethod):
    """Entropy-bounded unmasking.

    Attributes:
        gamma: the bound per step, in nats.
        order: what is written first: "entropy" (least), "confidence" or "margin".

    Raises:
        ConfigError: a negative gamma, or an unknown order.
    """

    gamma: float = setting(0.1, least=0)
    order: str = setting("entropy", among=("entropy", "confidence", "margin"))

    name: ClassVar[str] = "eb-sampler"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Unmasks as many positions per step as a bound on their entropy allows."
    paper: ClassVar[Paper] = Paper(
        "Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking",
        "Ben-Hamu et al.",
        2025,
        "2505.24857",
    )

    @property
    def rule(self) -> EntropyBounded:
        """As many places as the bound allows."""
        return EntropyBounded(self.gamma, self.order)
