"""Keep a token's keys and values from the step after it was written, and compute everything anew now and then.

Paper: Ma et al. (2025), arXiv 2505.15781, sections 3.2 (Decode) and 3.3 (Greedy).
Guarantee: approximate. The reference is the same model, order and block without a cache, which is what it is at
    refresh=1.
Cost: one forward per `per_step` tokens. Decode forwards the masks and the tokens written last; greedy forwards windows
    around both, inside one block.
Differences: with Greedy, any place of the block in work may be the next one written, where the paper draws the order
    in advance; so its window lies around all of them. The interval counts steps through the whole text, where the
    paper's begins anew with each block (Greedy does so here as well).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.canvas import Canvas, Policy, make_policy
from outpace.errors import ConfigError
from outpace.methods.base import Paper
from outpace.methods.diffusion.ranked import RankedCanvas
from outpace.methods.setting import setting

__all__ = ["DkvCache"]

VARIANTS = {"decode": "delayed", "greedy": "greedy"}


@dataclass(frozen=True)
class DkvCache(RankedCanvas):
    """Masked diffusion with a delayed cache.

    Attributes:
        variant: "decode" or "greedy".
        refresh: steps after which everything is computed anew; 1 = always, 0 = only as the variant says.
        window: greedy computes this many places on either side of its own anew.

    Raises:
        ConfigError: a setting outside its range, or a cache policy beside the variant.
    """

    refresh: int = setting(8, least=0, note="0 refreshes as the variant says")
    variant: str = setting("decode", among=tuple(VARIANTS))
    window: int = setting(4, least=0)

    name: ClassVar[str] = "dkv-cache"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Masked diffusion that caches each token one step after it was written."
    paper: ClassVar[Paper] = Paper(
        "dKV-Cache: The Cache for Diffusion Language Models",
        "Ma et al.",
        2025,
        "2505.15781",
        30,
        "The variants for long prompts (Prefill and PD).",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache != "auto":
            raise ConfigError(
                f"dkv-cache brings its own cache, so cache={self.cache} has no meaning.",
                "Set variant, or use masked-diffusion with another cache.",
            )

    def policy(self, canvas: Canvas) -> Policy:
        """Return the variant's cache policy."""
        del canvas
        return make_policy(VARIANTS[self.variant], self.refresh, self.window)
