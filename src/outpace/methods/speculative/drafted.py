"""What methods with a drafter have in common: its role, its beginning and rollback, how far it drafts, who checks.

Longer than most: it holds four bases, each of which serves several methods.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from outpace.accept import rejection, sample_and_match
from outpace.draft.reading import Drafter
from outpace.methods.base import Method, nothing
from outpace.schedule import DraftLengths
from outpace.setting import setting
from outpace.types import Context, Decision, Guarantee, Needs, Outcome, Proposal, Scores, View

__all__ = ["AdaptiveDraft", "BudgetTree", "Drafted", "Paced", "RuledDraft"]


@dataclass(frozen=True)
class Drafted(Method):
    """Drafts with a small model of the same vocabulary; subclasses give `width`, `levels` and `grow`.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
    """

    draft: str = "auto"

    @property
    def width(self) -> int:
        """Most nodes that are drafted at once."""
        raise NotImplementedError

    @property
    def is_tree(self) -> bool:
        """Whether a node may have siblings."""
        return True

    @property
    def needs(self) -> Needs:
        """A causal target, which scores trees where the drafts are trees, and a draft model."""
        return Needs(has_tree=self.is_tree, has_rollback=True, width=self.width, models=("draft",))

    def start(self, context: Context) -> Any:
        """Give the drafter an empty cache for the joining rows."""
        return Drafter.begin(context)

    def propose(self, view: View, state: Any) -> Proposal:
        """Let the drafter catch up and draft; rows with no room, or past the drafter's context, go on plainly."""
        reach = state.reach(view, self.levels(view, state))
        return self.grow(view, state, reach) if max(reach) else nothing(view)

    def levels(self, view: View, drafter: Drafter) -> int:
        """Return how far a row may draft."""
        raise NotImplementedError

    def grow(self, view: View, drafter: Drafter, reach: list[int]) -> Proposal:
        """Return the drafts, of `reach` levels at most per row."""
        raise NotImplementedError

    def observe(self, outcome: Outcome, view: View, state: Any) -> Any:
        """Forget drafted entries that did not become text."""
        state.observe(outcome, view)
        return state


@dataclass(frozen=True)
class BudgetTree(Drafted):
    """Drafts the best tree of a size, whatever its shape.

    Attributes:
        budget: most nodes of the tree.
        max_depth: most levels.
    """

    budget: int = setting(16, least=1)
    max_depth: int = setting(8, least=1)

    @property
    def width(self) -> int:
        """The tree's budget."""
        return self.budget

    def levels(self, view: View, drafter: Drafter) -> int:
        """Return the depth limit."""
        del view, drafter
        return self.max_depth


@dataclass
class Paced:
    """The state of a method whose draft length follows acceptance: its drafter, and each row's length."""

    drafter: Any
    lengths: DraftLengths


@dataclass(frozen=True)
class AdaptiveDraft(Method):
    """Drafts as far as drafts were accepted; subclasses give `begin` and `grow`.

    Attributes:
        draft_len: most tokens drafted per step.
        is_adaptive: let the length follow acceptance.
    """

    draft_len: int = setting(8, least=1)
    is_adaptive: bool = True

    def begin(self, context: Context) -> Any:
        """Return the drafter of the joining rows; its `reach` says how far each row may draft."""
        raise NotImplementedError

    def grow(self, view: View, drafter: Any, reach: list[int]) -> Proposal:
        """Return the drafts, of `reach` levels at most per row."""
        raise NotImplementedError

    def start(self, context: Context) -> Paced:
        """Return the drafter of the joining rows and their first lengths."""
        lengths = DraftLengths.begin(len(context.texts), self.draft_len, self.is_adaptive)
        return Paced(self.begin(context), lengths)

    def propose(self, view: View, state: Paced) -> Proposal:
        """Let the drafter draft; rows with no room, or past the drafter's context, go on plainly."""
        reach = state.drafter.reach(view, state.lengths.now)
        return self.grow(view, state.drafter, reach) if max(reach) else nothing(view)

    def observe(self, outcome: Outcome, view: View, state: Paced) -> Paced:
        """Let the lengths follow acceptance."""
        del view
        return replace(state, lengths=state.lengths.after_step(outcome, self.name))


@dataclass(frozen=True)
class RuledDraft(AdaptiveDraft):
    """Drafts chains that are matched, or tested against the drafter's law.

    Attributes:
        accept_rule: "match" (exact) or "rejection" (keeps the law only).
    """

    accept_rule: str = setting("match", among=("match", "rejection"))

    @property
    def is_matched(self) -> bool:
        """Whether drafts are matched; else the rejection rule tests them."""
        return self.accept_rule == "match"

    @property
    def guarantee(self) -> Guarantee:
        """Exact by sample and match; the rejection rule keeps the law only."""
        return Guarantee.EXACT if self.is_matched else Guarantee.DISTRIBUTION

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Paced) -> Decision:
        """Apply the chosen rule."""
        del state
        return (sample_and_match if self.is_matched else rejection)(proposal, scores, view)
