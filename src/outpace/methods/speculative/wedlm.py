"""A window of masks slides along a causal model's text: whatever is sure is decided, and its front is text at once.

Paper: Liu et al. (2025), arXiv 2512.22737, WeDLM: topological reordering and streaming parallel decoding.
Guarantee: approximate; exact with block=1, which is plain decoding.
Cost: one forward per step, over the tokens that became text in the last one and the window's other places.
Differences: a mask stands one position before its place, where a causal model speaks of it; the paper's stand at it.
    Here the text's own output says the first place as long as nothing behind it is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.open_places import OpenPlaces
from outpace.setting import setting

__all__ = ["WeDlm"]


@dataclass(frozen=True)
class WeDlm(OpenPlaces):
    """Streaming decoding; see `OpenPlaces` for `block`, the window.

    Attributes:
        threshold: entropy in nats below which a place is decided; where none is, the one of least entropy.
        penalty: nats added per place behind the first one, so that the front is decided sooner.
    """

    threshold: float = setting(0.4, least=0)
    penalty: float = setting(0.02, least=0)

    slides: ClassVar[bool] = True
    name: ClassVar[str] = "wedlm"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A window of masks slides along a causal text; what is sure at its front is text at once."
    paper: ClassVar[Paper] = Paper(
        "WeDLM: Reconciling Diffusion Language Models with Standard Causal Attention for Fast Inference",
        "Liu et al.",
        2025,
        "2512.22737",
        292,
        "Its checkpoints, which were not tried.",
        "outpace train stories-sets",
    )

    def choose(self, at: Sequence[int], chance: Sequence[float], entropy: Sequence[float]) -> Sequence[int]:
        """Return the places below the threshold, or the one that is nearest to it."""
        del chance
        weight = [own + self.penalty * place for own, place in zip(entropy, at, strict=True)]
        sure = [place for place, own in zip(at, weight, strict=True) if own < self.threshold]
        return sure or [at[min(range(len(at)), key=weight.__getitem__)]]
