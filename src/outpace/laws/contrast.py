"""What a model knows better than a weaker one, among the tokens that it finds plausible.

Paper: Li et al. (2022), "Contrastive Decoding", arXiv 2210.15097; in the form of O'Brien and Lewis (2023),
    arXiv 2309.09117: (1 + weight) log p - weight log p_amateur where p is at least `floor` times its largest.
Guarantee: that law exactly; drafts obey it. `weight=0` leaves the target's texts as they are, token for token.
Cost: a forward of the amateur beside each of the target, over the same places, and its share of the cache.
Differences: none but that any decoding may follow; the first paper searches with beams.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from outpace.laws.base import Control, Site
from outpace.laws.beside import Beside, against
from outpace.papers import Paper
from outpace.setting import setting
from outpace.types import Adapter
from outpace.zoo import drafter_of

__all__ = ["Contrast"]

PAPERS = (
    Paper(
        "Contrastive Decoding: Open-ended Text Generation as Optimization",
        "Li, Holtzman, Fried, Liang, Eisner, Hashimoto, Zettlemoyer, Lewis",
        2022,
        "2210.15097",
        command='outpace generate "Once upon a time" --law contrast:weight=0.5',
    ),
)


@dataclass(frozen=True)
class Contrast(Control):
    """The target against an amateur: by default the drafter that ships with it."""

    name: ClassVar[str] = "contrast"
    summary: ClassVar[str] = "what the model knows better than a weaker one"
    is_model: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ("amateur",)

    amateur: str = "auto"
    weight: float = setting(0.5, least=0, is_finite=True)
    floor: float = setting(0.1, least=0, most=1)

    def target(self, site: Site) -> Adapter:
        """Return the target beside the amateur."""
        if self.weight == 0:
            return site.target
        other = site.load(drafter_of(site.name) if self.amateur == "auto" else self.amateur)
        return Beside(site.target, other, partial(against, weight=self.weight, floor=self.floor))
