"""Write the sub-blocks of a block model's blocks in turn, all places at once that the model is sure of.

Paper: Wu et al. (2025), arXiv 2509.26328: finished blocks are cached exactly, and within a block everything outside the
    sub-block in work is cached as it was when the sub-block began.
Guarantee: approximate. `cache=block` computes the whole block in every step, which is exact against no cache at all.
Cost: one forward per step, over the sub-block, and one over the block per sub-block.
Differences: a sub-block is half a block unless said otherwise (the authors' is a quarter); its surroundings are
    computed anew when the one before it is finished, and kept from then on (the authors compute them anew until the
    sub-block's first place is written); the first token of a block is drawn like any other, not taken from the end of
    the block before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.canvas import Canvas, FixedBlocks, Policy, Ranked, Schedule, make_policy
from outpace.errors import ConfigError
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import CanvasBatch, CanvasMethod
from outpace.methods.setting import setting
from outpace.types import Context, Needs

__all__ = ["FastDllmV2"]


@dataclass(frozen=True)
class FastDllmV2(CanvasMethod):
    """Hierarchical caching and confidence-aware decoding on a model with block attention.

    `block` is the length of a sub-block, 0 = half the model's block. The cache "auto" is "dual".

    Attributes:
        threshold: places of the sub-block at least this sure are written together; the surest always is. In (0, 1].

    Raises:
        ConfigError: a threshold outside (0, 1].
    """

    threshold: float = setting(0.9, above=0, most=1)

    name: ClassVar[str] = "fast-dllm-v2"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Unmasks a block model's blocks in sub-blocks, with a cache inside the block too."
    paper: ClassVar[Paper] = Paper(
        "Fast-dLLM v2: Efficient Block-Diffusion LLM",
        "Wu et al.",
        2025,
        "2509.26328",
        285,
    )

    @property
    def needs(self) -> Needs:
        """A masked model with block attention."""
        return replace(super().needs, attention="block")

    @property
    def rule(self) -> Ranked:
        """All places above the threshold."""
        return Ranked(threshold=self.threshold)

    def start(self, context: Context) -> CanvasBatch:
        """Return the rows' canvases.

        Raises:
            ConfigError: as `CanvasMethod.start`, or sub-blocks that do not fill the model's block.
        """
        size = context.target.capabilities.block_size
        if self.block and size % self.block:
            raise ConfigError(
                f"Sub-blocks of {self.block} do not fill the model's block of {size}.",
                "Use a block that divides it.",
            )
        return super().start(context)

    def schedule(self, canvas: Canvas) -> Schedule:
        """Return the sub-blocks."""
        return FixedBlocks(self.block or max(canvas.block_size // 2, 1))

    def policy(self, canvas: Canvas) -> Policy:
        """Return the cache policy."""
        return make_policy("dual", self.refresh) if self.cache == "auto" else super().policy(canvas)
