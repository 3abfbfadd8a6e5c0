"""Texts of the model are drawn again by an energy of whole texts, so that both laws count (importance resampling).

Paper: Deng, Bakhtin, Ott, Szlam, Ranzato (2020), arXiv 2004.11714, Residual Energy-Based Models for Text Generation.
Guarantee: approximate: with more candidates the law of the text approaches p(text) exp(reward) / Z; one candidate is
    plain decoding, token for token.
Cost: that of best of n: n texts side by side, and the energy of each once, a forward of a network that reads both ways.
Differences: beside a trained energy, any function of texts will do; the reward is minus their energy, in nats.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.models.energy import read_energy
from outpace.papers import Paper
from outpace.search.base import Found, Search
from outpace.search.rewards import NONE, Reward
from outpace.search.table import Table
from outpace.setting import setting

__all__ = ["PAPERS", "ResidualEnergy"]

RESIDUAL = Paper(
    "Residual Energy-Based Models for Text Generation",
    "Deng, Bakhtin, Ott, Szlam, Ranzato",
    2020,
    "2004.11714",
    154,
    "Its data sets, and bodies of 100 million parameters and more.",
    "outpace train stories-energy",
)
PAPERS = (RESIDUAL,)


@dataclass(frozen=True)
class ResidualEnergy(Search):
    """Importance resampling of whole texts.

    Attributes:
        n: candidates.
        energy: a directory that `outpace train stories-energy` wrote; "" = 0 for all.
        reward: minus a further energy of a text, in nats; "" = 0 for all.

    Raises:
        ConfigError: a number out of range, or a reward that cannot be read.
        ModelError: the directory holds no energy.
    """

    n: int = setting(8, least=1)
    energy: str = setting("", note="a directory of outpace train stories-energy")
    reward: Reward = NONE

    name: ClassVar[str] = "residual-energy"
    summary: ClassVar[str] = "Draws one of n texts by an energy of whole texts: the product of both laws, for many n."
    paper: ClassVar[Paper] = RESIDUAL

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.energy:
            read_energy(self.energy)  # a mistake there is told before anything is written

    @property
    def draws(self) -> bool:
        """All texts are one without noise."""
        return self.n > 1

    @property
    def num_rows(self) -> int:
        """All texts."""
        return self.n

    def reduced(self) -> Search:
        """Return the search of one text."""
        return replace(self, n=1)

    def search(self, table: Table) -> Found:
        """Write all candidates to their end, and draw one."""
        leaves = yield from table.write([table.sample(number) for number in range(self.n)])
        values = table.score(leaves, self.reward) if self.reward else [0.0] * self.n
        if self.energy:
            energies = read_energy(self.energy)([leaf.row.tokens for leaf in leaves])
            values = [value - energy for value, energy in zip(values, energies, strict=True)]
        at = table.drawn(table.sample(0), values)
        leaves[at].row.score = values[at]
        return [leaves[at]]
