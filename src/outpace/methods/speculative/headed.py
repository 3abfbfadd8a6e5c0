"""What methods with a trained drafter have in common: chains and trees of every shape, over whatever its kind says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul

from outpace.draft.grow import draft_best, draft_shape
from outpace.draft.model import draft_chain
from outpace.draft.reading import Drafter
from outpace.errors import ConfigError
from outpace.methods.base import nothing
from outpace.methods.speculative.drafted import Paced, RuledDraft
from outpace.schedule.tree_size import RankTree
from outpace.setting import setting
from outpace.types import Adapter, Context, Needs, Outcome, Proposal, View

__all__ = ["Headed", "HeadedTree"]

_LARGEST = 1024  # nodes of a fixed tree


@dataclass(frozen=True)
class Headed(RuledDraft):
    """Drafts with a trained drafter that reads the target; subclasses name its kind.

    Attributes:
        draft: the drafter: a directory, or the name of one that ships; "auto" = the one known for the target.
        draft_len: most tokens drafted per step (levels of a tree).
        budget: nodes of the best tree; 0 = a chain.
        branches: a fixed tree instead: children of each node, level by level; empty = none.
        min_gain: the best tree stops growing after a level that adds no more than this to the expected drafts kept.
        spread: scale of the drafter's error (`branch_scores`).
        min_confidence: a chain stops where no token is this likely (0 = never).
    """

    draft: str = "auto"
    draft_len: int = setting(4, least=1)
    budget: int = setting(0, least=0)
    branches: tuple[int, ...] = setting((), least=1)
    min_gain: float = setting(0.05, least=0)
    spread: float = setting(0.8, above=0)
    min_confidence: float = setting(0.0, least=0, most=1)

    def __post_init__(self) -> None:
        """Hold the settings to their ranges, and to one kind of tree that the rule takes.

        Raises:
            ConfigError: a setting outside its range, two kinds of tree, one too large, or one with rejection.
        """
        super().__post_init__()
        if self.width > _LARGEST:
            raise ConfigError(f"A tree of {self.width} nodes was asked for.", f"Use at most {_LARGEST} nodes.")
        if self.branches and self.budget > 0:
            raise ConfigError("Both branches and budget ask for a tree.", "Set one of them.")
        if not self.is_matched and self.is_tree:
            raise ConfigError("The rejection rule takes chains, not trees.", "Use accept_rule=match for trees.")

    @property
    def kind(self) -> str:
        """The kind of drafter, as `outpace train drafter --kind` names it; most methods are called as theirs."""
        return self.name

    @property
    def num_nodes(self) -> int:
        """Nodes of the best tree; 0 = a chain, or a fixed tree."""
        return self.budget

    @property
    def is_tree(self) -> bool:
        """Whether a node may have siblings."""
        return bool(self.num_nodes or self.branches)

    @property
    def width(self) -> int:
        """Most nodes that are drafted at once."""
        return sum(accumulate(self.branches, mul)) if self.branches else self.num_nodes or self.draft_len

    @property
    def needs(self) -> Needs:
        """A causal target that gives hidden states, and a drafter of the method's kind."""
        return Needs(has_tree=self.is_tree, has_rollback=True, width=self.width, models=("draft",), head=self.kind)

    def begin(self, context: Context) -> Drafter:
        """Return the drafter of the joining rows.

        Raises:
            ConfigError: the model is of another kind.
        """
        self.check_kind(context.models["draft"])
        return Drafter.begin(context)

    def check_kind(self, model: Adapter) -> None:
        """Refuse a model of another kind.

        Raises:
            ConfigError: it is.
        """
        kind = getattr(model, "kind", "")
        if kind != self.kind:
            what = f"of the kind {kind!r}" if kind else "a model, not a trained drafter"
            raise ConfigError(f"The drafter is {what}; {self.name} needs {self.kind!r}.", "Name another with draft=...")

    def propose(self, view: View, state: Paced) -> Proposal:
        """Draft; a tree has the depth of its shape."""
        if not self.is_tree:
            return super().propose(view, state)
        reach = state.drafter.reach(view, len(self.branches) or self.draft_len)
        return self.grow(view, state.drafter, reach) if max(reach) else nothing(view)

    def grow(self, view: View, drafter: Drafter, reach: list[int]) -> Proposal:
        """Draft a chain, the best tree of a size, or a fixed one."""
        if self.branches:
            shape = RankTree.stack([RankTree.regular(self.branches)] * len(reach), drafter.device)
            return draft_shape(drafter, view, reach, *shape)[0].proposal(self.name)
        if self.num_nodes:
            tree = draft_best(drafter, view, reach, self.num_nodes, min_gain=self.min_gain, spread=self.spread)
            return tree.proposal(self.name)
        sure, is_coupled = self.min_confidence, self.is_matched
        return draft_chain(drafter, view, reach, origin=self.name, is_coupled=is_coupled, min_confidence=sure)

    def observe(self, outcome: Outcome, view: View, state: Paced) -> Paced:
        """Let the drafter read what the target's forward told, and the length follow acceptance."""
        state.drafter.observe(outcome, view)
        if outcome.proposal is None:
            return state
        return replace(state, lengths=state.lengths.after_step(outcome, self.name))


@dataclass(frozen=True)
class HeadedTree(Headed):
    """As `Headed`; drafts the best tree unless something else is asked for.

    Attributes:
        draft_len: most levels of the tree, or tokens of a chain.
        budget: nodes of the best tree; 0 = a chain; -1 = 16, or 0 where a fixed tree or the rejection rule is chosen.
    """

    draft_len: int = setting(6, least=1)
    budget: int = setting(-1, least=-1, note="-1 = 16 nodes, or a chain under the rejection rule")

    @property
    def num_nodes(self) -> int:
        """Nodes of the best tree; 0 = a chain, or a fixed tree."""
        if self.budget >= 0:
            return self.budget
        return 16 if self.is_matched and not self.branches else 0
