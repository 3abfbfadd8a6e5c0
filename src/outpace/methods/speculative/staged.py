"""A small model drafts a tree, and is itself decoded speculatively, with drafts from an n-gram table.

Paper: Spector, Re (2023), arXiv 2308.04623.
Guarantee: exact (sample and match, on both stages: the drafter's drafts are what it would draft alone).
Cost: at most 1 target forward per emitted token; at most one draft forward per level of the tree, fewer where the table
    guesses right; the drafter's weights and cache, and the table (about 100 bytes per context).
Differences: the table holds what the drafter said last after each few tokens, and the text, and is filled as the run
    goes (and kept, where the caller gives a `BackoffTable` as memory), where the paper samples 120 million tokens of
    the drafter beforehand; the tree is the drafter's chain with the
    next likeliest tokens beside each of its tokens, where the paper's tree branches by probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.accept import sample_and_match
from outpace.draft.backoff import BackoffTable
from outpace.draft.memory import claim
from outpace.draft.nested import NestedRun
from outpace.draft.trunk import TableGuesses, comb
from outpace.methods.base import Paper, chain, nothing
from outpace.methods.speculative.drafted import Drafted
from outpace.setting import setting
from outpace.types import Context, Outcome, Proposal, View

__all__ = ["Staged", "StagedState"]

_LARGEST = 1024  # tokens that one forward of the drafter may guess


@dataclass
class StagedState:
    """The drafter in a run of its own, its table, and how much of each row's text the table has seen."""

    drafter: NestedRun
    table: BackoffTable
    num_seen: list[int]


@dataclass(frozen=True)
class Staged(Drafted):
    """Staged speculative decoding.

    Attributes:
        draft_len: levels of the tree.
        branches: further tokens tried at each level, beside the drafter's own.
        ngram_len: most tokens per draft forward that the table guesses; 0 = the drafter drafts token by token.
        order: tokens of the table's longest context.

    Raises:
        ConfigError: a draft length or order below 1, or another number below 0.
    """

    draft_len: int = setting(5, least=1)
    branches: int = setting(2, least=0)
    ngram_len: int = setting(4, least=0, most=_LARGEST)
    order: int = setting(3, least=1)

    name: ClassVar[str] = "staged"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A small model, itself sped up by an n-gram table, drafts a tree that the target checks."
    paper: ClassVar[Paper] = Paper(
        "Accelerating LLM Inference with Staged Speculative Decoding",
        "Spector, Re",
        2023,
        "2308.04623",
        334,
        "Sampling the n-gram model from the drafter beforehand.",
    )

    @property
    def width(self) -> int:
        """Nodes of the tree."""
        return self.draft_len * (1 + self.branches)

    @property
    def is_tree(self) -> bool:
        """Whether a node may have siblings."""
        return self.branches > 0

    def start(self, context: Context) -> StagedState:
        """Begin a run of the drafter, and a table: the caller's, or an empty one."""
        table = claim(context, self.name, BackoffTable) or BackoffTable(self.order)
        method = TableGuesses(self.ngram_len, self.branches, sample_and_match)
        drafter = NestedRun.begin(context, method, memory=table)
        return StagedState(drafter, table, [0] * len(context.texts))

    def propose(self, view: View, state: StagedState) -> Proposal:
        """Draft the trunk in as few forwards as the table allows, and put branches beside it."""
        reach = state.drafter.reach(view, self.draft_len)
        if max(reach) == 0:
            return nothing(view)
        for row, (text, seen) in enumerate(zip(view.texts, state.num_seen, strict=True)):
            state.table.learn(text, seen)
            state.num_seen[row] = len(text)
        drafts = state.drafter.write(view, reach)
        if self.branches == 0 or not any(drafts):
            return chain(view, drafts, self.name)
        return comb(drafts, state.drafter.state.take(max(reach)), self.branches).proposal(self.name)

    def observe(self, outcome: Outcome, view: View, state: StagedState) -> StagedState:
        """Do nothing: drafts that did not become text are withdrawn when the next ones are asked for."""
        del outcome, view
        return state
