"""What rules over graphs share: they choose a path through a lattice, and its places' laws are the text's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from outpace.methods.whole.base import WholeMethod
from outpace.models.nar.model import NarModel, outputs_of
from outpace.types import Context

__all__ = ["GraphMethod"]


@dataclass(frozen=True)
class GraphMethod(WholeMethod):
    """Base of rules that choose a path; a subclass gives `paths`.

    Attributes:
        drops_repeats: leave out a place that says the token of the place before it.
    """

    drops_repeats: bool = False

    kinds: ClassVar[tuple[str, ...]] = ("dag",)

    @abstractmethod
    def paths(self, said: Tensor, links: Tensor, is_place: Tensor) -> list[list[int]]:
        """Return per row the places of its tokens, of log-probabilities [B, L, V] and links [B, L, M]."""

    def choose(self, model: NarModel, context: Context) -> Sequence[Tensor]:
        """Return the laws of each row's path."""
        assert context.cache is not None
        is_place, (said, links, *_) = outputs_of(context.cache)
        paths = self.paths(said, links, is_place)
        return [model.ended(self._laws(row[path])) for row, path in zip(said, paths, strict=True)]

    def _laws(self, laws: Tensor) -> Tensor:
        tokens = laws.argmax(-1)
        is_new = (tokens != tokens.roll(1)).index_fill(0, tokens.new_zeros(min(1, len(tokens))), True)
        return laws[is_new] if self.drops_repeats else laws
