"""A causal model that was taught to fill masks writes several of the next tokens per forward.

Paper: Gat et al. (2025), arXiv 2509.04185, Set Block Decoding (choice=entropy); Liu et al. (2025), arXiv 2509.24007,
    SDLM (choice=prefix).
Guarantee: approximate; exact with block=1, which is plain decoding.
Cost: one forward per step, over the tokens written since the last one and at most `block` masks and decided tokens.
Differences: what is decided in a block stands before its masks and attention stays causal, so that one training serves
    all rules; the papers' blocks see all of themselves, as do those of a model that was taught such blocks
    (Nemotron-Labs-Diffusion). Tokens at the front of a block are text as soon as they are
    decided: a later token never changes them. The text's cache entries are those of the causal model, never of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.open_places import OpenPlaces
from outpace.setting import setting

__all__ = ["SetBlock", "bounded"]

_COMMAND = "outpace train stories-sets"


@dataclass(frozen=True)
class SetBlock(OpenPlaces):
    """Writes sets of a block's tokens per forward; see `OpenPlaces` for `block`.

    Attributes:
        choice: "prefix" (the first place, and those behind it as long as the token of each is at least `threshold`
            likely; then a new block begins) or "entropy" (any places, while their summed entropy but for the largest
            is at most `gamma`).
        threshold: least probability of a further token of the prefix.
        gamma: entropy in nats that tokens decided together may have.
    """

    choice: str = setting("prefix", among=("entropy", "prefix"))
    threshold: float = setting(0.9, above=0, most=1)
    gamma: float = setting(0.1, least=0)

    name: ClassVar[str] = "set-block"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A causal model taught to fill masks writes several of the next tokens in one forward."
    paper: ClassVar[Paper] = Paper(
        "Set Block Decoding is a Language Model Inference Accelerator",
        "Gat et al.",
        2025,
        "2509.04185",
        145,
        "Training under attention in both directions within a block; a model that was so taught is decoded so.",
        _COMMAND,
    )
    papers: ClassVar[tuple[Paper, ...]] = (
        Paper(
            "Sequential Diffusion Language Models",
            "Liu et al.",
            2025,
            "2509.24007",
            157,
            "Training under attention in both directions within a block, and its checkpoints, which were not tried.",
            _COMMAND,
        ),
    )

    @property
    def is_ordered(self) -> bool:
        """The prefix is."""
        return self.choice == "prefix"

    def choose(self, at: Sequence[int], chance: Sequence[float], entropy: Sequence[float]) -> Sequence[int]:
        """Return the confident prefix, or the largest set within the bound."""
        if self.is_ordered:
            return at[: next((k for k in range(1, len(at)) if not chance[k] >= self.threshold), len(at))]
        return [at[k] for k in bounded(entropy, self.gamma)]


def bounded(entropy: Sequence[float], gamma: float) -> list[int]:
    """Return the most places whose entropies, but for the largest, sum to at most `gamma`; one at least.

    Source: Ben-Hamu et al. (2025), arXiv 2505.24857, which Set Block Decoding takes it from.
    """
    ranked = sorted(range(len(entropy)), key=lambda k: entropy[k])
    count, below = 1, 0.0
    while count < len(ranked) and (below := below + entropy[ranked[count - 1]]) <= gamma:
        count += 1
    return ranked[:count]
