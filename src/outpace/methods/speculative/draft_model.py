"""A small model drafts, the target checks.

Paper: Leviathan, Kalman, Matias (2023), arXiv 2211.17192, algorithm 1.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection (the paper's rule).
Cost: at most 1 target forward per emitted token; one draft forward per drafted token; the drafter's weights and cache.
Differences: drafts are coupled to the target's noise by default, which gives plain decoding's own text at any
    temperature; the draft length follows acceptance; a tree of the best branches, or one of a fixed shape, can be
    drafted instead of a chain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from typing import ClassVar

from outpace.accept import rejection, sample_and_match
from outpace.draft.grow import draft_shape
from outpace.draft.model import draft_chain, draft_tree
from outpace.draft.reading import Drafter
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, nothing
from outpace.schedule import next_length
from outpace.schedule.tree_size import Shape
from outpace.types import Context, Decision, Guarantee, Needs, Outcome, Proposal, Scores, View

__all__ = ["DraftModel", "DraftState"]

_LARGEST = 1024  # nodes of a fixed tree


@dataclass
class DraftState:
    """The drafter with its cache, and each row's current draft length."""

    drafter: Drafter
    length: list[int]


@dataclass(frozen=True)
class DraftModel(Method):
    """Speculative decoding with a draft model.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        draft_len: most tokens drafted per step (levels of a tree).
        is_adaptive: let the length follow acceptance.
        min_confidence: stop drafting where no token is this likely (0 = never).
        tree_width: nodes per level, the likeliest ones; 1 = a chain.
        branches: a fixed tree instead: children of each node, level by level; empty = none.
        accept_rule: "match" or "rejection".

    Raises:
        ConfigError: a length, width or branch below 1, a confidence outside [0, 1], two kinds of tree, an unknown rule,
            or a tree with rejection.
    """

    draft: str = "auto"
    draft_len: int = 8
    is_adaptive: bool = True
    min_confidence: float = 0.0
    tree_width: int = 1
    branches: tuple[int, ...] = ()
    accept_rule: str = "match"

    name: ClassVar[str] = "draft-model"
    family: ClassVar[str] = "speculative"
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
        if self.draft_len < 1 or self.tree_width < 1:
            raise ConfigError(
                f"draft_len is {self.draft_len} and tree_width {self.tree_width}.", "Both must be 1 or more."
            )
        if not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"min_confidence is {self.min_confidence}.", "min_confidence must be from 0 to 1.")
        if any(count < 1 for count in self.branches) or sum(accumulate(self.branches, mul)) > _LARGEST:
            raise ConfigError(f"branches is {self.branches}.", f"Use numbers from 1, for at most {_LARGEST} nodes.")
        if self.branches and self.tree_width > 1:
            raise ConfigError("Both branches and tree_width ask for a tree.", "Set one of them.")
        if self.accept_rule not in ("match", "rejection"):
            raise ConfigError(f"accept_rule is {self.accept_rule!r}.", "Use 'match' or 'rejection'.")
        if self.accept_rule == "rejection" and self._is_tree:
            raise ConfigError("The rejection rule takes chains, not trees.", "Use accept_rule=match for trees.")

    @property
    def _is_tree(self) -> bool:
        return self.tree_width > 1 or bool(self.branches)

    @property
    def needs(self) -> Needs:
        """A causal target, and a draft model of the same vocabulary."""
        width = sum(accumulate(self.branches, mul)) if self.branches else self.draft_len * self.tree_width
        return Needs(has_tree=self._is_tree, has_rollback=True, width=width, models=("draft",))

    @property
    def guarantee(self) -> Guarantee:
        """Exact by sample and match; the rejection rule keeps the law only."""
        return Guarantee.EXACT if self.accept_rule == "match" else Guarantee.DISTRIBUTION

    def start(self, context: Context) -> DraftState:
        """Give the drafter an empty cache for the joining rows."""
        first = max(1, self.draft_len // 2) if self.is_adaptive else self.draft_len
        return DraftState(Drafter(context.models["draft"], context.cache_for("draft")), [first] * len(context.texts))

    def propose(self, view: View, state: DraftState) -> Proposal:
        """Let the drafter catch up and draft; rows with no room, or past the drafter's context, go on plainly."""
        adapter, cache = state.drafter.adapter, state.drafter.cache
        reach = state.drafter.reach(view, len(self.branches) or state.length)
        if max(reach) == 0:
            return nothing(view)
        if self.branches:
            shape = Shape.regular(self.branches)
            parent, rank, length = Shape.stack([shape] * len(reach), cache.device)
            return draft_shape(adapter, cache, view, reach, parent, rank, length)[0].proposal(self.name)
        if self.tree_width > 1:
            return draft_tree(adapter, cache, view, reach, self.tree_width, origin=self.name)
        return draft_chain(
            adapter,
            cache,
            view,
            reach,
            origin=self.name,
            is_coupled=self.accept_rule == "match",
            min_confidence=self.min_confidence,
        )

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: DraftState) -> Decision:
        """Apply the chosen rule."""
        del state
        rule = sample_and_match if self.accept_rule == "match" else rejection
        return rule(proposal, scores, view)

    def observe(self, outcome: Outcome, view: View, state: DraftState) -> DraftState:
        """Forget drafted entries that did not become text; let the length follow acceptance."""
        if outcome.proposal is None:
            return state
        state.drafter.forget(outcome, view)
        if not self.is_adaptive or outcome.proposal.origin != self.name:
            return state
        steps = zip(state.length, outcome.proposal.length, outcome.accepted, strict=True)
        lengths = [
            next_length(length, proposed // self.tree_width, accepted, self.draft_len)
            for length, proposed, accepted in steps
        ]
        return replace(state, length=lengths)
