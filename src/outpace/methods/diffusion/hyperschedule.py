"""Give each place a noise schedule of its own: from left to right, all at once, or in a window that slides.

Paper: Fathi et al. (2025), arXiv 2504.06416. A hyperschedule says how noisy each place is at each time; one sampler
    serves all of them. Under noise of masks and random tokens, a hybrid, a model learns to find wrong tokens, and
    `correct` writes others over them while their block is in work.
Guarantee: approximate. `shape=step` is decoding from left to right of the same network, `shape=flat` is `mdlm`, token
    for token; `cache=block` changes nothing.
Cost: one forward per time step in which something is written; mending asks laws of the whole block.
Differences: built from the abstract; noise levels run within each block; which tokens are mended is ours (another token
    is at least `correct` likely), and so are the last `rounds` behind the last mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.canvas.rules.hyper import SHAPES, Hyper
from outpace.errors import ConfigError
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import CanvasBatch, CanvasMethod
from outpace.setting import setting
from outpace.types import Context

__all__ = ["Hyperschedule"]

_KNOWS = {"step": (), "flat": ("steps",), "sliding": ("width", "rate"), "block": ("steps", "width")}


@dataclass(frozen=True)
class Hyperschedule(CanvasMethod):
    """Ancestral sampling under a noise schedule per place.

    Attributes:
        shape: "step" (places one after the other), "flat" (all at once), "sliding" (`rate` more places per step, each
            over `width` steps) or "block" (groups of `width` places one after the other, each over `steps` steps).
        steps: time steps of a block or group; 0 = as many as it has places.
        width: steps that a place takes ("sliding"), or places of a group ("block"); 0 = 4.
        rate: places that begin per step ("sliding"); 0 = 1.
        correct: least probability at which another token is written over one that stands; 0 = none is. It needs a model
            that was trained to find wrong tokens.
        rounds: steps behind the last mask of a block that mend alone; they end as soon as nothing is wrong.

    Raises:
        ConfigError: a setting outside its range, or one that the shape does not have.
    """

    shape: str = setting("flat", among=SHAPES)
    steps: int = setting(0, least=0, note="0 takes one per place")
    width: int = setting(0, least=0, note="0 takes 4")
    rate: float = setting(0.0, least=0, is_finite=True, note="0 takes 1")
    correct: float = setting(0.0, least=0, most=1, note="0 mends nothing")
    rounds: int = setting(4, least=0)

    name: ClassVar[str] = "hyperschedule"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Writes each position by a noise schedule of its own, and may mend written ones."
    paper: ClassVar[Paper] = Paper(
        "Unifying Autoregressive and Diffusion-Based Sequence Generation",
        "Fathi et al.",
        2025,
        "2504.06416",
        55,
        "Its correcting sampler and attention masks, of which only the abstract was read.",
        "outpace train stories-mask-hybrid",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "width", "rate"):
            if getattr(self, name) and name not in _KNOWS[self.shape]:
                own = " and ".join(_KNOWS[self.shape]) or "no other setting"
                raise ConfigError(f"The shape {self.shape!r} has no {name}.", f"It has {own}.")
        if self.correct and self.end == "last":
            raise ConfigError(
                "end=last holds end tokens back, and correct may write them over others.", "Leave one out."
            )

    @property
    def rule(self) -> Hyper:
        """Every place at its time."""
        return Hyper(self.shape, self.steps, self.width or 4, self.rate or 1.0, self.correct, self.rounds)

    def start(self, context: Context) -> CanvasBatch:
        """Return the rows' canvases.

        Raises:
            ConfigError: mending under a constraint, which speaks of masks alone.
        """
        if self.correct and context.sampler.settings.canvas_constraint is not None:
            raise ConfigError("Under a constraint no written token can be replaced.", "Use correct=0.")
        return super().start(context)
