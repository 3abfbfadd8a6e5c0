"""What every rule over a whole text is: it decides the text when a row joins, and the loop takes it as it stands.

A rule gets what a pass of the network gave (`outputs_of`), may run the network again, and returns the laws of another
text, which become those of the model's cache. Where it says that it `runs_alone`, the loop runs no pass before. All
else is `one-pass`: penalties, stops and streaming see laws.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from outpace.methods.whole.taken import TakenWhole
from outpace.models.nar.files import KINDS
from outpace.models.nar.model import NarModel, replace_laws
from outpace.models.one_pass import whole_laws
from outpace.types import Context, Guarantee, Needs

__all__ = ["WholeMethod"]


@dataclass(frozen=True)
class WholeMethod(TakenWhole):
    """Base of the rules; a subclass gives `choose`, and names the kinds of networks that it fits."""

    kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of networks (`NarNet.kind`) that the rule fits; empty = all."""
    runs_alone: ClassVar[bool] = False
    """The rule makes all passes itself; it then finds nothing in the cache."""

    @property
    def needs(self) -> Needs:
        """A one-pass network of ours, of a kind that the rule fits."""
        return replace(super().needs, kinds=self.kinds or tuple(KINDS), has_own_pass=self.runs_alone)

    @property
    def guarantee(self) -> Guarantee:
        """Another text than the one of the model's likeliest places."""
        return Guarantee.APPROXIMATE

    @abstractmethod
    def choose(self, model: NarModel, context: Context) -> Sequence[Tensor]:
        """Return per joining row the logits [N, V] of its text, the end's last (`NarModel.ended`).

        Runs of the network are counted: `context.cache.counter.add(positions, forwards)`.
        """

    @torch.no_grad()
    def start(self, context: Context) -> list[Tensor]:
        """Choose the rows' texts, and return their laws.

        Raises:
            ConfigError: a source is empty or too long.
        """
        model, cache = cast("NarModel", context.target), context.cache  # as `needs` asks
        assert cache is not None
        model.check_sources(context.sources)
        replace_laws(cache, self.choose(model, context))
        return whole_laws(cache)
