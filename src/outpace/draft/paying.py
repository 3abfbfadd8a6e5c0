"""How much of a drafted tree is worth its scoring: by what its drafter thinks of every node, and by what was kept.

Source: Wang et al. (2024), OPT-Tree, arXiv 2406.17276: the sum of the nodes' probabilities is the expected number of
accepted drafts; Chen et al. (2024), Sequoia, arXiv 2402.12374, section 3.3: its size follows what a forward costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from outpace.run.tree import TokenTree

__all__ = ["Trust", "paying"]

_PRIOR = 2.0  # drafts that are taken to have been kept as was hoped
_KEPT = 0.95  # of what was counted, per step
_LEAST, _MOST = 0.05, 1.5


@dataclass(frozen=True, slots=True)
class Trust:
    """What a drafter's hopes for one row have proven to be worth.

    Attributes:
        kept, hoped: drafts that were kept, and that were hoped to be, discounted.
    """

    kept: float = 0.0
    hoped: float = 0.0

    @property
    def value(self) -> float:
        """The factor on the probabilities that the drafter names."""
        return min(_MOST, max(_LEAST, (self.kept + _PRIOR) / (self.hoped + _PRIOR)))

    def after(self, kept: int, hoped: float) -> Trust:
        """Return what is known after a step; one without drafts lets it fade, so that a row is tried again."""
        return Trust(_KEPT * self.kept + kept, _KEPT * self.hoped + hoped)

    def copy(self) -> Trust:
        """Return an independent copy (a forked row)."""
        return replace(self)


def paying(
    tree: TokenTree, trust: Sequence[float], seconds: Callable[[int], float], beside: int = 0
) -> tuple[TokenTree, list[list[float]]]:
    """Return the nodes that bring the most tokens per time, the likeliest first, and the drafter's chance of each.

    All rows share the forward, so nodes of all of them are weighed against each other. Scores do not rise along a path:
    the likeliest nodes of a row are a tree, and so are the first of those.

    Args:
        tree: with scores.
        trust: per row, the factor on its probabilities.
        seconds: of a forward of so many tokens, all rows together.
        beside: rows of others in the same forward.
    """
    assert tree.score is not None
    rows, width = tree.tokens.shape
    is_node = np.arange(width) < np.array(tree.length)[:, None]
    chance = np.where(is_node, np.exp(tree.score.double().cpu().numpy()), 0.0)
    # 1 Of the nodes of all rows, from the likeliest on, as many as raise the tokens per second of the step.
    worth = (chance * np.array(trust)[:, None]).ravel()
    best = np.argsort(-worth, kind="stable")[: int((worth > 0).sum())]
    written = rows + beside + np.concatenate([[0.0], worth[best].cumsum()])
    rates = [tokens / seconds(rows + beside + count) for count, tokens in enumerate(written)]
    chosen = best[: int(np.argmax(rates))]
    length = np.bincount(chosen // max(1, width), minlength=rows).tolist()
    # 2 In order of their chance: what is cut off behind any of them is the least likely.
    order = np.argsort(-chance, axis=1, kind="stable")
    place = np.argsort(order, axis=1, kind="stable")
    parent = tree.parent.cpu().numpy()
    above = np.where(parent < 0, -1, np.take_along_axis(place, np.maximum(parent, 0), 1))
    most, device = max(length, default=0), tree.tokens.device
    order = order[:, :most]
    at = torch.from_numpy(order).to(device)
    chances = np.take_along_axis(chance, order, 1)
    kept = TokenTree(
        tree.tokens.gather(1, at),
        torch.from_numpy(np.take_along_axis(above, order, 1)).to(device),
        length,
        tree.score.gather(1, at),
    )
    return kept, [row[:count].tolist() for row, count in zip(chances, length, strict=True)]
