"""A one-pass model writes several likely texts at once; the target copies, in a tree, what it would write itself.

Paper: none of its own; Ge et al. (2022), arXiv 2205.10350, generalised aggressive decoding, with a tree for its chain.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token, up to `nodes` positions each; one pass of the drafter, and a beam
    through its lattice.
Differences: a drafter without a lattice gives one text, and this is `generalised-aggressive`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from outpace.draft.lattice import Versions, VersionsOf, likely_texts
from outpace.draft.source import passed_tokens
from outpace.methods.base import trees
from outpace.methods.speculative.copied_whole import CopiedWhole
from outpace.setting import setting
from outpace.types import Context, Needs, Proposal, View

__all__ = ["LatticeDrafts"]


@dataclass(frozen=True)
class LatticeDrafts(CopiedWhole):
    """Drafts of a lattice.

    Attributes:
        draft_len: most levels of the tree.
        texts: most texts of the drafter that are copied side by side.
        nodes: most nodes of the tree.
    """

    draft_len: int = setting(12, least=1)
    texts: int = setting(8, least=1)
    nodes: int = setting(24, least=1)

    name: ClassVar[str] = "lattice-drafts"
    summary: ClassVar[str] = "A graph or CTC writes several texts at once; the target copies from all, in a tree."

    @property
    def needs(self) -> Needs:
        """A target that scores trees, and a drafter, of the same vocabulary unless read as text."""
        return replace(super().needs, has_tree=True, width=max(self.nodes, self.draft_len))

    def begin(self, context: Context) -> Any:
        """Take the texts of a one-pass model; begin a run of any other."""
        if not context.models["draft"].capabilities.is_one_pass:
            return super().begin(context)
        passed, every = passed_tokens(context), likely_texts(context, self.texts)
        versions = [Versions([text[: self.most] for text in texts], self.max_match, passed) for texts in every]
        return VersionsOf(versions, [min(1, len(text)) for text in context.texts])

    def grow(self, view: View, drafter: Any, reach: list[int]) -> Proposal:
        """Copy on, from all texts of a row."""
        if not isinstance(drafter, VersionsOf):
            return super().grow(view, drafter, reach)
        return trees(view, drafter.trees(view, reach, self.nodes), self.name)
