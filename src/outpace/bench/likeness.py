"""How alike two sets of texts are: the area under the curve of their divergences, after MAUVE.

Source: Pillutla et al. (2021), MAUVE: Measuring the Gap Between Neural Text and Human Text using Divergence Frontiers,
arXiv 2102.01454. Texts are points, which clusters make two histograms of; of every mixture of both, the divergences of
each histogram to it give a point of a curve. Differences: a text's point is the mean of the last hidden states of one
of our models in its widest directions, not the last state of GPT-2 large: figures compare models, not papers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outpace.types import Adapter

from .held_out import text_states

__all__ = ["area", "clustered", "likeness", "points"]

_SCALE = 5.0  # of divergences, as published


def points(target: Adapter, texts: Sequence[Sequence[int]]) -> Tensor:
    """Return [N, hidden] the mean last hidden state of each text of two tokens or more, float64."""
    return torch.stack([text_states(target, text)[1].mean(0) for text in texts])


def clustered(found: Tensor, clusters: int, seed: int = 0, rounds: int = 50, directions: int = 16) -> Tensor:
    """Return [N] the cluster of each point [N, hidden], by k-means from points drawn far apart."""
    generator = torch.Generator().manual_seed(seed)
    centred = found - found.mean(0)
    _, scales, axes = torch.linalg.svd(centred, full_matrices=False)
    kept = min(directions, int((scales > 1e-9 * scales[0]).sum()))
    placed = centred @ axes[:kept].T
    chosen = [int(torch.randint(len(placed), (), generator=generator))]
    for _ in range(clusters - 1):
        apart = torch.cdist(placed, placed[chosen]).min(1).values.square()
        chosen.append(int(torch.multinomial(apart + 1e-12, 1, generator=generator)))
    centres = placed[chosen]
    for _ in range(rounds):
        nearest = torch.cdist(placed, centres).argmin(1)
        centres = torch.stack(
            [placed[nearest == at].mean(0) if bool((nearest == at).any()) else centres[at] for at in range(clusters)]
        )
    return torch.cdist(placed, centres).argmin(1)


def area(one: Tensor, other: Tensor, grid: int = 1000) -> float:
    """Return the area under the curve of divergences of two histograms [C] that sum to 1: 1 = they are equal."""
    share = torch.linspace(0, 1, grid + 1, dtype=torch.float64)[1:-1, None]
    mixed = share * one + (1 - share) * other
    first, second = (
        torch.where(law > 0, law * (law / mixed).log(), 0.0).sum(1).mul(-_SCALE).exp() for law in (one, other)
    )
    across = torch.cat([torch.ones(1).double(), second.sort().values.flip(0), torch.zeros(1).double()])
    up = torch.cat([torch.zeros(1).double(), first.sort().values, torch.ones(1).double()])
    return float(((across[:-1] - across[1:]) * (up[:-1] + up[1:]) / 2).sum())


def likeness(one: Tensor, other: Tensor, clusters: int, seed: int = 0) -> float:
    """Return how alike two sets of points [N, hidden] and [M, hidden] are, from near 0 to 1."""
    labels = clustered(torch.cat([one, other]), clusters, seed)
    counts = [torch.bincount(part, minlength=clusters).double() + 0.5 for part in labels.split([len(one), len(other)])]
    first, second = (count / count.sum() for count in counts)
    return area(first, second)
