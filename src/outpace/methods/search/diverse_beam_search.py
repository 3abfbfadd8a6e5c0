"""Beams in groups that keep apart: a group pays for tokens that earlier groups write at the same place.

Paper: Vijayakumar, Cogswell, Selvaraju, Sun, Lee, Crandall, Batra (2018), arXiv 1610.02424, algorithm 1.
Guarantee: exact: with drafts as without, the texts and scores of the search that writes one token per step; with one
    group, those of beam search.
Cost: that of beam search with as many beams.
Differences: the penalty stays in the score, as in transformers' group beams, where the paper weighs each step's choice
    alone. The dissimilarity is the Hamming one, the paper's best; its n-gram and embedding ones are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.accept.beams import BeamRules
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper
from outpace.methods.search.searched import Searched
from outpace.setting import setting

__all__ = ["DiverseBeamSearch"]


@dataclass(frozen=True)
class DiverseBeamSearch(Searched):
    """Diverse beam search.

    Attributes:
        groups: of beams; it divides their number.
        diversity: subtracted from a token's log-probability for each beam of an earlier group that takes it too.

    Raises:
        ConfigError: a number out of range, or beams that do not fall into equal groups.
    """

    groups: int = setting(2, least=1)
    diversity: float = setting(1.0, least=0, is_finite=True)

    name: ClassVar[str] = "diverse-beam-search"
    summary: ClassVar[str] = "Beam search in groups, each of which pays for tokens that others write at the same place."
    paper: ClassVar[Paper] = Paper(
        "Diverse Beam Search: Decoding Diverse Solutions from Neural Sequence Models",
        "Vijayakumar, Cogswell, Selvaraju, Sun, Lee, Crandall, Batra",
        2018,
        "1610.02424",
        229,
        "Dissimilarities other than the Hamming one; image captioning and visual question generation.",
    )

    def __post_init__(self) -> None:
        """Hold the settings to their ranges, and groups to a divisor of the beams."""
        super().__post_init__()
        if self.beams % self.groups:
            raise ConfigError(
                f"{self.beams} beams do not fall into {self.groups} equal groups.", "Let groups divide beams."
            )

    def to_certify(self) -> Method:
        """Return the search with drafts, and two groups of one beam."""
        if self.drafter:
            return self
        return replace(self, beams=2, groups=2, n_best=min(self.n_best, 2), drafter="token-recycling")

    @property
    def rules(self) -> BeamRules:
        """What the search is after."""
        return replace(super().rules, num_groups=self.groups, diversity=self.diversity)
