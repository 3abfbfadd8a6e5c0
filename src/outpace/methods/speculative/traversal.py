"""A small model draws a tree, which is searched from its leaves to its root for a path that may be kept whole.

Paper: Weng et al. (2025), arXiv 2505.12398.
Guarantee: distribution (exact at temperature 0).
Cost: at most 1 target forward per emitted token, over the whole tree; one draft forward per level; the rule looks at
    every node's law, where rules from the root down look at one per depth.
Differences: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.accept import traversal_verification
from outpace.draft.reading import Drafter
from outpace.draft.stochastic import Growth
from outpace.methods.base import Paper
from outpace.methods.speculative.sampled import BranchedTree
from outpace.types import Decision, Proposal, Scores, View

__all__ = ["Traversal"]


@dataclass(frozen=True)
class Traversal(BranchedTree):
    """Traversal verification.

    Attributes:
        has_replacement: draw siblings independently; False = without replacement, of which more are accepted.

    Raises:
        ConfigError: the branches have no level, a number below 1, or too many nodes.
    """

    has_replacement: bool = False

    name: ClassVar[str] = "traversal-verification"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A small model draws a tree; whole paths are tested, from the leaves to the root."
    paper: ClassVar[Paper] = Paper(
        "Traversal Verification for Speculative Tree Decoding",
        "Weng, Hu, Chen, Liu, Mei, Qiu, Tian, Shi",
        2025,
        "2505.12398",
        left_out="Trees whose shape follows the drawn tokens, to which the proof does not extend.",
    )

    @property
    def growth(self) -> Growth:
        """A tree of the given branches."""
        return Growth(self.branches, self.has_replacement)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Drafter) -> Decision:
        """Search the tree from its leaves."""
        del state
        return traversal_verification(proposal, scores, view)
