"""Heads that read the path drafted so far: each law follows from the target's state and the drafted tokens.

Paper: Ankner et al. (2024), arXiv 2402.05109, Hydra (sections 3 and 4).
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step and level one pass of a head over the level's nodes; with
    the layer over the text's states, one pass of it over what the last step wrote.
Differences: drafts are coupled to the target's noise; the tree is the best of its size under the heads' laws, made anew
    in every step, or a fixed one (`branches`); heads may share the target's output matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import Headed

__all__ = ["Hydra"]


@dataclass(frozen=True)
class Hydra(Headed):
    """Hydra, and with `prefix` in its training Hydra++; settings as of `Headed`."""

    name: ClassVar[str] = "hydra"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "Heads on the target's hidden state that read the drafted path; the target checks."
    paper: ClassVar[Paper] = Paper(
        "Hydra: Sequentially-Dependent Draft Heads for Medusa Decoding",
        "Ankner et al.",
        2024,
        "2402.05109",
        217,
        "Noise on the embeddings while training, and the paper's fixed trees found by search.",
    )
