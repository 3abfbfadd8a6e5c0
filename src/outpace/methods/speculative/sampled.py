"""What methods with a draft model, a sampled tree and a rule of their own have in common."""

from __future__ import annotations

from dataclasses import dataclass

from outpace.draft.reading import Drafter
from outpace.draft.stochastic import Shape, draft_sampled
from outpace.errors import ConfigError
from outpace.methods.base import Method, nothing
from outpace.types import Context, Guarantee, Needs, Proposal, View

__all__ = ["LARGEST", "SampledTree", "check_branches"]

LARGEST = 1024  # nodes of a tree


@dataclass(frozen=True)
class SampledTree(Method):
    """Drafts a tree of samples from a small model; subclasses give its shape and accept by their rule.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
    """

    draft: str = "auto"

    @property
    def shape(self) -> Shape:
        """How the tree grows."""
        raise NotImplementedError

    @property
    def needs(self) -> Needs:
        """A causal target, and a draft model of the same vocabulary."""
        shape = self.shape
        return Needs(has_tree=not shape.is_chain, has_rollback=True, width=shape.width, models=("draft",))

    @property
    def guarantee(self) -> Guarantee:
        """The law is kept, not the tokens."""
        return Guarantee.DISTRIBUTION

    def start(self, context: Context) -> Drafter:
        """Give the drafter an empty cache for the joining rows."""
        return Drafter(context.models["draft"], context.cache_for("draft"))

    def propose(self, view: View, state: Drafter) -> Proposal:
        """Let the drafter catch up and draw a tree; rows with no room, or past the drafter's context, go on plainly."""
        reach = state.reach(view, self.shape.levels_within(state.cache.capacity - max(view.lengths)))
        if max(reach) == 0:
            return nothing(view)
        return draft_sampled(state.adapter, state.cache, view, reach, self.shape, origin=self.name)


def check_branches(branches: tuple[int, ...]) -> None:
    """Raise unless children per node and level make a tree of reasonable size.

    Raises:
        ConfigError: there is no level, a number below 1, or more than 1024 nodes.
    """
    if not branches or min(branches) < 1:
        raise ConfigError(f"branches is {branches}.", "Give children per node, level by level, such as 3,1,1.")
    if Shape(branches).width > LARGEST:
        raise ConfigError(f"branches {branches} makes {Shape(branches).width} nodes.", f"Use at most {LARGEST}.")
