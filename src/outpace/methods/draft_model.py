"""A small model drafts, the target checks.

Paper: Leviathan, Kalman, Matias (2023), arXiv 2211.17192, algorithm 1.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection (the paper's rule).
Cost: at most 1 target forward per emitted token; one draft forward per drafted token; the drafter's weights and cache.
Differences: drafts are coupled to the target's noise by default, which gives plain decoding's own text at any
    temperature; the draft length follows acceptance; a tree of the best branches can be drafted instead of a chain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.accept import rejection, sample_and_match
from outpace.cache import Cache
from outpace.draft.model import draft_chain, draft_tree
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, nothing
from outpace.schedule import next_length
from outpace.types import Adapter, Context, Decision, Guarantee, Needs, Outcome, Proposal, Scores, View

__all__ = ["DraftModel", "DraftState"]


@dataclass
class DraftState:
    """The drafter, its cache and each row's current draft length."""

    drafter: Adapter
    cache: Cache
    length: list[int]


@dataclass(frozen=True)
class DraftModel(Method):
    """Speculative decoding with a draft model.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        draft_len: most tokens drafted per step (levels of a tree).
        is_adaptive: let the length follow acceptance.
        min_confidence: stop drafting where no token is this likely (0 = never).
        tree_width: nodes per level; 1 = a chain.
        accept_rule: "match" or "rejection".

    Raises:
        ConfigError: a length or width below 1, an unknown rule, or a tree with the rejection rule.
    """

    draft: str = "auto"
    draft_len: int = 8
    is_adaptive: bool = True
    min_confidence: float = 0.0
    tree_width: int = 1
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
        if self.accept_rule not in ("match", "rejection"):
            raise ConfigError(f"accept_rule is {self.accept_rule!r}.", "Use 'match' or 'rejection'.")
        if self.accept_rule == "rejection" and self.tree_width > 1:
            raise ConfigError("The rejection rule takes chains, not trees.", "Use accept_rule=match for trees.")

    @property
    def needs(self) -> Needs:
        """A causal target, and a draft model of the same vocabulary."""
        is_tree = self.tree_width > 1
        return Needs(has_tree=is_tree, has_rollback=True, width=self.draft_len * self.tree_width, models=("draft",))

    @property
    def guarantee(self) -> Guarantee:
        """Exact by sample and match; the rejection rule keeps the law only."""
        return Guarantee.EXACT if self.accept_rule == "match" else Guarantee.DISTRIBUTION

    def start(self, context: Context) -> DraftState:
        """Give the drafter an empty cache for the joining rows."""
        first = max(1, self.draft_len // 2) if self.is_adaptive else self.draft_len
        return DraftState(context.models["draft"], context.cache_for("draft"), [first] * len(context.texts))

    def propose(self, view: View, state: DraftState) -> Proposal:
        """Let the drafter catch up and draft; rows with no room, or past the drafter's context, go on plainly."""
        most = min(self._drafter_room(view, state), max(view.room) - 1)
        lengths = [max(0, min(n, room - 1, most)) for n, room in zip(state.length, view.room, strict=True)]
        if max(lengths) == 0:
            return nothing(view)
        if self.tree_width > 1:
            return draft_tree(state.drafter, state.cache, view, max(lengths), self.tree_width, origin=self.name)
        return draft_chain(
            state.drafter,
            state.cache,
            view,
            lengths,
            origin=self.name,
            is_coupled=self.accept_rule == "match",
            min_confidence=self.min_confidence,
        )

    def _drafter_room(self, view: View, state: DraftState) -> int:
        return state.drafter.capabilities.max_positions - max(view.lengths)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: DraftState) -> Decision:
        """Apply the chosen rule."""
        del state
        rule = sample_and_match if self.accept_rule == "match" else rejection
        return rule(proposal, scores, view)

    def observe(self, outcome: Outcome, view: View, state: DraftState) -> DraftState:
        """Forget drafted entries that did not become text; let the length follow acceptance."""
        if outcome.proposal is None:
            return state
        emitted = zip(view.lengths, outcome.emitted, outcome.accepted, strict=True)
        state.cache.truncate([length - len(tokens) + accepted for length, tokens, accepted in emitted])
        if not self.is_adaptive:
            return state
        steps = zip(state.length, outcome.proposal.length, outcome.accepted, strict=True)
        lengths = [
            next_length(length, proposed // self.tree_width, accepted, self.draft_len)
            for length, proposed, accepted in steps
        ]
        return replace(state, length=lengths)
