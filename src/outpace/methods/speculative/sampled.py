"""What methods with a draft model, a sampled tree and a rule of their own have in common."""

from __future__ import annotations

from dataclasses import dataclass

from outpace.draft.reading import Drafter
from outpace.draft.stochastic import Growth, draft_sampled
from outpace.errors import ConfigError
from outpace.methods.speculative.drafted import Drafted
from outpace.setting import setting
from outpace.types import Guarantee, Proposal, View

__all__ = ["LARGEST", "BranchedTree", "SampledTree"]

LARGEST = 1024  # nodes of a tree


@dataclass(frozen=True)
class SampledTree(Drafted):
    """Drafts a tree of samples from a small model; subclasses give its growth and accept by their rule."""

    def __post_init__(self) -> None:
        """Hold the settings to their ranges, and the tree to a reasonable size.

        Raises:
            ConfigError: a setting outside its range, or more than 1024 nodes.
        """
        super().__post_init__()
        if self.width > LARGEST:
            raise ConfigError(f"The drafts make a tree of {self.width} nodes.", f"Use at most {LARGEST}.")

    @property
    def growth(self) -> Growth:
        """How the tree grows."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Nodes of the tree."""
        return self.growth.width

    @property
    def is_tree(self) -> bool:
        """Whether a node may have siblings."""
        return not self.growth.is_chain

    @property
    def guarantee(self) -> Guarantee:
        """The law is kept, not the tokens."""
        return Guarantee.DISTRIBUTION

    def levels(self, view: View, drafter: Drafter) -> int:
        """Return how many levels fit the drafter's cache."""
        return self.growth.levels_within(drafter.cache.capacity - max(view.lengths))

    def grow(self, view: View, drafter: Drafter, reach: list[int]) -> Proposal:
        """Draw the tree."""
        return draft_sampled(drafter, view, reach, self.growth, origin=self.name)


@dataclass(frozen=True)
class BranchedTree(SampledTree):
    """Every node of a level has as many children.

    Attributes:
        branches: children per node, level by level.
    """

    branches: tuple[int, ...] = setting((3, 1, 1, 1), least=1)

    def __post_init__(self) -> None:
        """As `SampledTree`.

        Raises:
            ConfigError: a setting outside its range, no level, or too many nodes.
        """
        if not self.branches:
            raise ConfigError("branches names no level.", "Give children per node, level by level, such as 3,1,1.")
        super().__post_init__()

    @property
    def growth(self) -> Growth:
        """A tree of the given branches, without repeated siblings."""
        return Growth(self.branches, has_replacement=False)
