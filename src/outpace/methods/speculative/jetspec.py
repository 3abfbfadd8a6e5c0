"""A causal block drafter, and the best tree over its places; the target checks.

Paper: Hu et al. (2026), arXiv 2606.18394, JetSpec.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection (chains: budget=0).
Cost: at most 1 target forward per emitted token; per step one pass of the drafter over its block and the features of
    the new tokens; the drafter's weights, and a cache of its features.
Differences: drafts are coupled to the target's noise, so the tree is the best one under the noise too. The published
    code may run the drafter again with the path's tokens in place of masks; here the pass is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import Headed
from outpace.setting import setting

__all__ = ["JetSpec"]


@dataclass(frozen=True)
class JetSpec(Headed):
    """JetSpec; settings as of `Headed`."""

    draft_len: int = setting(8, least=1)
    budget: int = setting(16, least=0)

    name: ClassVar[str] = "jetspec"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = (
        "A causal block is drafted in one pass, then the best tree over its places; the target checks."
    )
    paper: ClassVar[Paper] = Paper(
        "JetSpec: Breaking the Scaling Ceiling of Speculative Decoding with Parallel Tree Drafting",
        "Hu et al.",
        2026,
        "2606.18394",
        left_out="Further passes of the drafter with the path's tokens in place of masks.",
    )
