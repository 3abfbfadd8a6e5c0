"""A small model drafts, the target checks.

Paper: Leviathan, Kalman, Matias (2023), arXiv 2211.17192, algorithm 1.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection (the paper's rule).
Cost: at most 1 target forward per emitted token; one draft forward per drafted token; the drafter's weights and cache.
Differences: drafts are coupled to the target's noise by default, which gives plain decoding's own text at any
    temperature; the draft length follows acceptance; a tree of the best branches, or one of a fixed shape, can be
    drafted instead of a chain.
Longer than most: the reference drafter offers a chain, a tree of a width and a tree of a fixed shape.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from typing import ClassVar

from outpace.draft.grow import draft_shape
from outpace.draft.model import draft_chain, draft_tree
from outpace.draft.reading import Drafter
from outpace.errors import ConfigError
from outpace.methods.base import Paper, nothing
from outpace.methods.speculative.drafted import Paced, RuledDraft
from outpace.schedule.tree_size import RankTree
from outpace.setting import setting
from outpace.types import Context, Needs, Outcome, Proposal, View

__all__ = ["DraftModel"]

_LARGEST = 1024  # nodes of a fixed tree


@dataclass(frozen=True)
class DraftModel(RuledDraft):
    """Speculative decoding with a draft model.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        draft_len: most tokens drafted per step (levels of a tree).
        min_confidence: stop drafting where no token is this likely (0 = never).
        tree_width: nodes per level, the likeliest ones; 1 = a chain.
        branches: a fixed tree instead: children of each node, level by level; empty = none.

    Raises:
        ConfigError: a length, width or branch below 1, a confidence outside [0, 1], two kinds of tree, an unknown rule,
            or a tree with rejection.
    """

    draft: str = "auto"
    min_confidence: float = setting(0.0, least=0, most=1)
    tree_width: int = setting(1, least=1)
    branches: tuple[int, ...] = setting((), least=1)

    name: ClassVar[str] = "draft-model"
    family: ClassVar[str] = "speculative"
    reads: ClassVar[frozenset[str]] = frozenset({"law"})
    summary: ClassVar[str] = "A small model of the same vocabulary drafts a chain or a tree; the target checks it."
    paper: ClassVar[Paper] = Paper(
        "Fast Inference from Transformers via Speculative Decoding",
        "Leviathan, Kalman, Matias",
        2023,
        "2211.17192",
        91,
        "Lenience (it changes the output).",
    )

    def __post_init__(self) -> None:
        """Hold the settings to their ranges, and to one kind of tree that the rule takes.

        Raises:
            ConfigError: a setting outside its range, two kinds of tree, one too large, or one with rejection.
        """
        super().__post_init__()
        if self.width > _LARGEST:
            raise ConfigError(f"branches is {self.branches}.", f"Use numbers from 1, for at most {_LARGEST} nodes.")
        if self.branches and self.tree_width > 1:
            raise ConfigError("Both branches and tree_width ask for a tree.", "Set one of them.")
        if not self.is_matched and self.is_tree:
            raise ConfigError("The rejection rule takes chains, not trees.", "Use accept_rule=match for trees.")

    @property
    def is_tree(self) -> bool:
        """Whether a node may have siblings."""
        return self.tree_width > 1 or bool(self.branches)

    @property
    def width(self) -> int:
        """Most nodes that are drafted at once."""
        return sum(accumulate(self.branches, mul)) if self.branches else self.draft_len * self.tree_width

    @property
    def needs(self) -> Needs:
        """A causal target, and a draft model of the same vocabulary."""
        return Needs(has_tree=self.is_tree, has_rollback=True, width=self.width, models=("draft",))

    def begin(self, context: Context) -> Drafter:
        """Give the drafter an empty cache for the joining rows."""
        return Drafter.begin(context)

    def propose(self, view: View, state: Paced) -> Proposal:
        """Let the drafter catch up and draft; a tree of a fixed shape has its own depth."""
        if not self.branches:
            return super().propose(view, state)
        reach = state.drafter.reach(view, len(self.branches))
        if max(reach) == 0:
            return nothing(view)
        shape = RankTree.stack([RankTree.regular(self.branches)] * len(reach), state.drafter.device)
        return draft_shape(state.drafter, view, reach, *shape)[0].proposal(self.name)

    def grow(self, view: View, drafter: Drafter, reach: list[int]) -> Proposal:
        """Draft a chain, or the best tree of a width."""
        if self.tree_width > 1:
            return draft_tree(drafter, view, reach, self.tree_width, origin=self.name)
        return draft_chain(
            drafter,
            view,
            reach,
            origin=self.name,
            is_coupled=self.is_matched,
            min_confidence=self.min_confidence,
        )

    def observe(self, outcome: Outcome, view: View, state: Paced) -> Paced:
        """Forget drafted entries that did not become text; let the length follow acceptance."""
        state.drafter.observe(outcome, view)
        return replace(state, lengths=state.lengths.after_step(outcome, self.name, self.tree_width))
