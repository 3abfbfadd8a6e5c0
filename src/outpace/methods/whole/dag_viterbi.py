"""Find the likeliest path through a graph, with its tokens or without, its length taken into account.

Paper: Shao et al. (2022), arXiv 2210.05193, Viterbi and joint Viterbi decoding.
Guarantee: approximate: another text than that of the likeliest links.
Cost: 1 pass of the network; a program of as many steps as there are places, over all links.
Differences: a path of n tokens counts n + 1 links, so that its score is divided by (n + 1) to the power of the penalty,
    also where it says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from outpace.methods.whole.graph import GraphMethod
from outpace.models.nar.paths import likeliest_paths
from outpace.setting import setting

__all__ = ["DagViterbi"]


@dataclass(frozen=True)
class DagViterbi(GraphMethod):
    """Viterbi decoding of a graph.

    Attributes:
        joint: count what the places say, not the links alone.
        length_penalty: what the score is divided by: the length to this power; 0 = short texts, 1 = the mean.
    """

    joint: bool = True
    length_penalty: float = setting(1.0, least=0)

    name: ClassVar[str] = "dag-viterbi"
    summary: ClassVar[str] = "Finds the likeliest path through a graph, its length taken into account."

    def paths(self, said: Tensor, links: Tensor, is_place: Tensor) -> list[list[int]]:
        """Return the best path of any length."""
        best = said.amax(-1)
        gains = best if self.joint else torch.zeros_like(best)
        return likeliest_paths(links, gains, is_place.sum(1), self.length_penalty)
