"""Draw all masks at once, and keep the tokens that a small causal model would have drawn as well, from the left.

Paper: Israel, Van den Broeck, Grover (2025), arXiv 2506.00413. Each place is drawn twice with the same noise: from the
    diffusion model's law, and from the product of both models' laws, raised to `weight` and 1 - `weight`. The longest
    run of places where both draws agree is kept, and at least the first, as drawn from the diffusion model.
Guarantee: approximate. weight=1 keeps every token drawn; the reference is left to right, one token per step.
Cost: per step one forward of what the cache does not hold, and one of the guide over the window; the guide's cache.
Differences: under block attention a step sees the model's block whole, and draws no further; the guide needs the
    diffusion model's vocabulary.

The file is long because three parts are its own: the sliding schedule, the frozen cache and the agreement.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from outpace.canvas import Canvas, Parts, Policy, Reading, Schedule, make_policy
from outpace.canvas.row import Bools
from outpace.canvas.rules.agreed import law_product
from outpace.canvas.sliding import Sliding
from outpace.errors import ConfigError
from outpace.methods.base import Paper
from outpace.methods.diffusion.guided import GuidedCanvas
from outpace.sampling import Sampler
from outpace.setting import setting
from outpace.types import Capabilities

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["Apd"]


@dataclass(frozen=True)
class Apd(GuidedCanvas):
    """Adaptive parallel decoding.

    Attributes:
        weight: of the diffusion model in the product (the paper's R), from 0 to 1; greater = more tokens per step.
        max_lookahead: masks that a step draws, and sees (the paper's M); 0 = all.
        kv_window: places behind the first mask that are computed anew, the others frozen (the paper's W); -1 = no
            approximate cache.

    Raises:
        ConfigError: a setting outside its range, or one that the sliding window replaces.
    """

    weight: float = setting(0.7, least=0, most=1, note="0 = the guide, 1 = the diffusion model")
    max_lookahead: int = setting(0, least=0, note="0 = all")
    kv_window: int = setting(-1, least=-1, note="-1 = no approximate cache")

    is_open_ended: ClassVar[bool] = True
    name: ClassVar[str] = "apd"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = (
        "Keeps drawn tokens from the left while a mixture with a small causal model draws them too."
    )
    paper: ClassVar[Paper] = Paper(
        "Accelerating Diffusion LLMs via Adaptive Parallel Decoding",
        "Israel, Van den Broeck, Grover",
        2025,
        "2506.00413",
        281,
        "Guides of another vocabulary.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block or self.ahead != -1:
            raise ConfigError("apd slides one window over the text; it has no block.", "Set max_lookahead instead.")
        if self.kv_window >= 0 and self.cache != "auto":
            raise ConfigError(f"Both kv_window and cache={self.cache} ask for a cache.", "Set one of them.")

    def parts(self, offered: Capabilities, tokenizer: Tokenizer | None) -> Parts:
        """Return the parts, on a canvas of which a forward holds nothing beyond the window."""
        parts = super().parts(offered, tokenizer)
        return replace(parts, canvas=replace(parts.canvas, ahead=0))

    def schedule(self, canvas: Canvas) -> Schedule:
        """Return the sliding window."""
        del canvas
        return Sliding(self.max_lookahead)

    def policy(self, canvas: Canvas) -> Policy:
        """Return the cache policy; kv_window freezes what lies further back."""
        if self.kv_window < 0:
            return super().policy(canvas)
        return make_policy("free", self.refresh, self.kv_window)

    def agrees(self, reading: Reading, expected: Tensor, banned: Tensor, sampler: Sampler) -> Bools:
        """Return where the product of both laws draws the same token, with the same noise."""
        del banned
        count = len(expected)
        both = sampler.process(law_product(reading.logits[:count], expected, self.weight), None).unsqueeze(0)
        where = torch.from_numpy(reading.places[:count]).to(both.device).unsqueeze(0)
        drawn = sampler.pick(both, where, visit=reading.visit)[0]
        agrees: Bools = drawn.cpu().numpy() == reading.tokens[:count]
        agrees[:1] = True  # it follows decided text only, where the diffusion model's own law is the right one
        return agrees
