"""Go from place to place of a graph by the link and by how surely the next place says something.

Paper: Huang et al. (2022), arXiv 2205.07459, lookahead decoding.
Guarantee: approximate: another text than that of the likeliest links.
Cost: 1 pass of the network, as one-pass.
Differences: the weight is that of the token, as in the authors' code; their text puts it at the link.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from outpace.methods.whole.graph import GraphMethod
from outpace.models.nar.dag import next_places, walk
from outpace.setting import setting

__all__ = ["DagLookahead"]


@dataclass(frozen=True)
class DagLookahead(GraphMethod):
    """Lookahead decoding of a graph.

    Attributes:
        weight: of the log-probability of the next place's likeliest token; 0 = greedy decoding.
    """

    weight: float = setting(1.0, least=0)

    name: ClassVar[str] = "dag-lookahead"
    summary: ClassVar[str] = "Goes through a graph by its links and by what the next place would say."

    def paths(self, said: Tensor, links: Tensor, is_place: Tensor) -> list[list[int]]:
        """Follow the best next place from the first one on."""
        ahead, is_link = next_places(is_place, links.shape[2])
        taken = ahead.clamp(max=links.shape[1] - 1).expand(links.shape)
        gains = said.amax(-1)[:, None].expand(-1, links.shape[1], -1).gather(2, taken)
        scores = (links + self.weight * gains).masked_fill(~is_link, float("-inf"))
        following = taken.gather(2, scores.argmax(-1)[..., None])[..., 0]
        sizes = is_place.sum(1).tolist()
        return [walk(row, size) for row, size in zip(following.tolist(), sizes, strict=True)]
