"""A block drafter with a bigram between its places and a confidence per place; the target checks.

Paper: Cheng et al. (2026), DSpark (published with its code, DeepSpec).
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step one pass of the drafter over its block and the features of
    the new tokens, and a product of low rank per draft; the drafter's weights, and a cache of its features.
Differences: drafts are coupled to the target's noise; trees of every shape go over the same pass, each node with the
    bigram of its own parent. The confidence cuts chains (`min_kept`), in place of a schedule over a server's rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.draft.reading import Drafter
from outpace.heads.context import ContextDrafter
from outpace.methods.base import Paper
from outpace.methods.speculative.headed import Headed
from outpace.run.commit import fit
from outpace.setting import setting
from outpace.types import Proposal, View

__all__ = ["DSpark"]


@dataclass(frozen=True)
class DSpark(Headed):
    """DSpark; settings as of `Headed`, and one.

    Attributes:
        min_kept: a chain ends before the first draft that is kept with less than this chance, as the drafter's
            confidence sees it (0 = never).
    """

    draft_len: int = setting(8, least=1)
    min_kept: float = setting(0.0, least=0, most=1)

    name: ClassVar[str] = "dspark"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "A block is drafted in one pass, and a bigram joins its places; the target checks."
    paper: ClassVar[Paper] = Paper(
        "DSpark: Confidence-Scheduled Speculative Decoding with Semi-Autoregressive Generation",
        "Cheng et al.",
        2026,
        left_out="The schedule of checks over a server's rows, and the gated and recurrent forms of the bigram.",
    )

    def grow(self, view: View, drafter: Drafter, reach: list[int]) -> Proposal:
        """Draft, and cut chains where the confidence falls."""
        drafts = super().grow(view, drafter, reach)
        if self.is_tree or not self.min_kept or not drafts.tokens.shape[1]:
            return drafts
        kept = drafter.kept(drafts.tokens) if isinstance(drafter, ContextDrafter) else None
        if kept is None:
            return drafts
        sure = (kept >= self.min_kept).cumprod(-1).sum(-1).tolist()
        # Whether a draft stays hangs on the path before it alone, never on itself, so that no law is bent.
        length = [min(drafted, most) for drafted, most in zip(drafts.length, sure, strict=True)]
        return fit(replace(drafts, length=length), max(length), 0)
