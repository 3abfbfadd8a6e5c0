"""Draft a tree by searching a tri-gram law that is updated with every token written.

Paper: Liu et al. (2024), arXiv 2407.12021: tri-gram matrix, draft maker, self-improvement.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token, `nodes` positions each; a table of about 350 bytes per new tri-gram.
Differences: the law starts from the prompt, and from a corpus only where the caller's memory holds one; each occurrence
    counts once; a simulation passes over what is drafted already, so that 24 of them find 24 nodes (the paper's code
    runs 150); a simulation is worth the probability of its walk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.draft.memory import claim
from outpace.draft.source import originals
from outpace.draft.trigram import TrigramMemory, TrigramTable, search
from outpace.methods.base import Method, Paper, trees
from outpace.setting import setting
from outpace.types import Context, Needs, Outcome, Proposal, View

__all__ = ["Aded"]


@dataclass(frozen=True)
class Aded(Method):
    """Adaptive draft-verification. `Request.memory` may be a `TrigramMemory`, of a corpus or of earlier outputs.

    Attributes:
        nodes: most nodes of the tree.
        depth: most levels.
        branch: most children per node.
        exploration: how much the search prefers what it has seldom visited.

    Raises:
        ConfigError: a number below 1, or an exploration that is not positive.
    """

    nodes: int = setting(24, least=1)
    depth: int = setting(6, least=1)
    branch: int = setting(12, least=1)
    exploration: float = setting(1.25, above=0, below=float("inf"))

    name: ClassVar[str] = "aded"
    family: ClassVar[str] = "speculative"
    reads: ClassVar[frozenset[str]] = frozenset()
    summary: ClassVar[str] = "Searches a tri-gram law, updated as text is written, for a tree of drafts."
    paper: ClassVar[Paper] = Paper(
        "Adaptive Draft-Verification for Efficient Large Language Model Decoding",
        "Liu et al.",
        2024,
        "2407.12021",
        137,
        "A corpus counted beforehand comes with the caller's memory only.",
    )

    @property
    def needs(self) -> Needs:
        """A causal target with tree attention that can drop staged entries."""
        return Needs(has_tree=True, has_rollback=True, width=self.nodes)

    def start(self, context: Context) -> list[TrigramTable]:
        """Return a table per row."""
        memory = claim(context, self.name, TrigramMemory)
        rows = zip(context.texts, originals(context), strict=True)
        return [TrigramTable(self.branch, len(text), memory, source) for text, source in rows]

    def propose(self, view: View, state: list[TrigramTable]) -> Proposal:
        """Search each row's law from its last two tokens."""
        drafts = []
        for text, room, table in zip(view.texts, view.room, state, strict=True):
            table.extend(text)
            depth = min(self.depth, room - 1) if len(text) > 1 else 0
            before = text[-2] if depth > 0 else -1
            drafts.append(search(table.law, before, text[-1], self.nodes, depth, self.exploration))
        return trees(view, drafts, self.name)

    def observe(self, outcome: Outcome, view: View, state: list[TrigramTable]) -> list[TrigramTable]:
        """Count what was written."""
        del outcome
        for text, table in zip(view.texts, state, strict=True):
            table.extend(text)
        return state
