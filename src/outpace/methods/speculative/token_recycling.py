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

import numpy as np
import numpy.typing as npt
from torch import Tensor

from outpace.draft.likeliest import likeliest
from outpace.draft.memory import claim
from outpace.draft.recycling import RecyclingMemory, RecyclingTable, tree_shape
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, trees
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

    nodes: int = 32
    candidates: int = 8
    depth: int = 6
    has_prompt: bool = True

    name: ClassVar[str] = "token-recycling"
    family: ClassVar[str] = "speculative"
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

    def __post_init__(self) -> None:
        if min(self.nodes, self.candidates, self.depth) < 1:
            raise ConfigError(
                f"nodes is {self.nodes}, candidates {self.candidates} and depth {self.depth}.",
                "All three must be 1 or more.",
            )

    @property
    def needs(self) -> Needs:
        """A causal target with tree attention that can drop staged entries."""
        return Needs(has_tree=True, has_rollback=True, width=self.nodes, has_prefill_logits=self.has_prompt)

    def start(self, context: Context) -> list[RecyclingTable]:
        """Return a table per row: the caller's, or an empty one."""
        vocab = context.target.capabilities.vocab_size
        width = min(self.candidates, vocab)
        memory = claim(context, self.name, RecyclingMemory)
        shared = None if memory is None else memory.table(width)
        return [shared or RecyclingTable(vocab, width) for _ in context.texts]

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
        ids = self._candidates(outcome.scores.logits, state[0].ids.shape[1])
        for row, (text, table) in enumerate(zip(view.texts, state, strict=True)):
            table.learn(_places(outcome, row, text), ids[row])
        return state

    def _candidates(self, logits: Tensor, width: int) -> npt.NDArray[np.integer]:
        rows, asked, vocab = logits.shape
        ids: npt.NDArray[np.integer] = (
            likeliest(logits.reshape(-1, vocab), width).view(rows, asked, width).cpu().numpy()
        )
        return ids


def _places(outcome: Outcome, row: int, text: list[int]) -> dict[int, int]:
    """Return where each token was scored; among equal ones the text's own count, then those nearest the root."""
    if outcome.proposal is None:
        chunk = outcome.chunk[row]
        return {token: place for place, token in enumerate(text[chunk.start : chunk.stop])}
    drafts = outcome.proposal.tokens[row, : outcome.proposal.length[row]].tolist()
    tokens = [text[-len(outcome.emitted[row]) - 1], *drafts]
    places = dict(zip(reversed(tokens), range(len(tokens) - 1, -1, -1), strict=True))
    for node in outcome.path[row]:
        if node >= 0:
            places[drafts[node]] = node + 1
    return places
