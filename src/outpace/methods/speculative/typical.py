"""A small model drafts a tree, and the target keeps what it finds likely enough.

Paper: Cai et al. (2024), arXiv 2401.10774, section 2.3.1 (typical acceptance).
Guarantee: approximate: the text leans towards the drafter and towards likely tokens. Plain decoding's own text at
    temperature 0.
Cost: at most 1 target forward per emitted token, over the whole tree; one draft forward per level.
Differences: a draft model in place of Medusa's heads; the token behind the accepted path is drawn from the target's law
    instead of being its likeliest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.accept import typical_acceptance
from outpace.draft.reading import Drafter
from outpace.methods.base import Paper
from outpace.methods.speculative.sampled import BranchedTree
from outpace.setting import setting
from outpace.types import Decision, Guarantee, Proposal, Scores, View

__all__ = ["Typical"]


@dataclass(frozen=True)
class Typical(BranchedTree):
    """Typical acceptance.

    Attributes:
        epsilon: a token this likely always passes.
        delta: share of exp(-entropy) that passes where the target is unsure.

    Raises:
        ConfigError: the branches have no level, a number below 1, or too many nodes; a threshold is not from 0 to 1.
    """

    epsilon: float = setting(0.09, least=0, most=1)
    delta: float = setting(0.3, least=0, most=1)

    name: ClassVar[str] = "typical-acceptance"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "Drafts stay if the target finds them likely enough; the text may change."
    paper: ClassVar[Paper] = Paper(
        "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
        "Cai, Li, Geng, Peng, Lee, Chen, Dao",
        2024,
        "2401.10774",
        left_out="The decoding heads and their training; this is the acceptance rule alone.",
    )

    @property
    def guarantee(self) -> Guarantee:
        """Neither the text nor the law is kept."""
        return Guarantee.APPROXIMATE

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Drafter) -> Decision:
        """Keep the longest path of likely drafts."""
        del state
        return typical_acceptance(proposal, scores, view, self.epsilon, self.delta)
