"""Draft from the candidates that were scored after the same token the last time it was seen.

Paper: Luo et al. (2024), arXiv 2408.08696, sections 3.1 to 3.3.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token, `nodes` positions each; a table of 4 * candidates bytes per id (1 MB
    for 32,000 ids); logits at every prompt position, unless has_prompt=False; a top-k at every scored node.
Differences: 32 nodes by default instead of 80, in a tree shaped by how often each rank came true in our own runs; the
    table starts empty unless the caller keeps a memory, and what is not known yet is left out of the tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.draft.harvest import scored_tokens
from outpace.draft.memory import claim
from outpace.draft.recycling import RecyclingMemory, RecyclingTable, likeliest_ids, tables, tree_shape
from outpace.methods.base import Method, Paper, trees
from outpace.setting import setting
from outpace.types import Context, Needs, Outcome, Proposal, View

__all__ = ["TokenRecycling"]


@dataclass(frozen=True)
class TokenRecycling(Method):
    """Token recycling. `Request.memory` may be a `RecyclingMemory`: calls then share one table.

    Attributes:
        nodes: most nodes of the tree.
        candidates: tokens kept per token, and most children per node.
        depth: most levels of the tree.
        has_prompt: fill the table from the prompt too, which asks for logits at every prompt position.

    Raises:
        ConfigError: a number below 1.
    """

    nodes: int = setting(32, least=1)
    candidates: int = setting(8, least=1)
    depth: int = setting(6, least=1)
    has_prompt: bool = True

    name: ClassVar[str] = "token-recycling"
    family: ClassVar[str] = "speculative"
    reads: ClassVar[frozenset[str]] = frozenset({"scores"})
    harvests: ClassVar[bool] = True
    summary: ClassVar[str] = "Drafts a tree of the candidates last scored after each token."
    paper: ClassVar[Paper] = Paper(
        "Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling",
        "Luo et al.",
        2024,
        "2408.08696",
        196,
        "Nothing.",
    )

    @property
    def needs(self) -> Needs:
        """A causal target with tree attention that can drop staged entries."""
        return Needs(has_tree=True, has_rollback=True, width=self.nodes, has_prefill_logits=self.has_prompt)

    def start(self, context: Context) -> list[RecyclingTable]:
        """Return a table per row: the caller's, or an empty one."""
        memory = claim(context, self.name, RecyclingMemory)
        return tables(len(context.texts), context.target.capabilities.vocab_size, self.candidates, memory)

    def propose(self, view: View, state: list[RecyclingTable]) -> Proposal:
        """Fill the tree from each row's table."""
        shape = tree_shape(self.nodes, state[0].ids.shape[1], self.depth)
        rows = zip(view.texts, view.room, state, strict=True)
        drafts = [table.grow(text[-1], shape, min(self.depth, room - 1)) for text, room, table in rows]
        return trees(view, drafts, self.name)

    def observe(self, outcome: Outcome, view: View, state: list[RecyclingTable]) -> list[RecyclingTable]:
        """Keep the likeliest successors of every token that was scored: the prompt's, drafts kept, drafts dropped."""
        if outcome.scores is None or outcome.scores.logits.shape[1] == 0:
            return state
        ids = likeliest_ids(outcome.scores.logits, state[0].ids.shape[1])
        for row, (text, table) in enumerate(zip(view.texts, state, strict=True)):
            table.learn(scored_tokens(outcome, row, text), ids[row])
        return state
