"""A nested drafter with exits: each draft comes from the first exit that is sure of it; the target checks.

Paper: Kavehzadeh et al. (2024), arXiv 2407.01955, S2D: Sorted Speculative Decoding.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per drafted token the layers of the drafter up to its exit, and those
    that tokens before it had left out; the drafter's weights, and a cache per exit of which each holds its own layers.
Differences: drafts are coupled to the target's noise. The drafter is an ordinary model of the target's vocabulary and
    serves every such target; its exits are named in its config.json (`exit_layers`) or by `exits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.draft.exits import ExitDrafter
from outpace.draft.model import draft_chain
from outpace.errors import ConfigError
from outpace.methods.base import Paper
from outpace.methods.speculative.drafted import Paced, RuledDraft
from outpace.setting import setting
from outpace.types import Context, Needs, Outcome, Outputs, Proposal, View

__all__ = ["SortedDraft"]


@dataclass(frozen=True)
class SortedDraft(RuledDraft):
    """Sorted speculative decoding.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        exits: layers passed at each exit but the last, ascending; empty = those that its files name, else half.
        confidence: an exit is taken where its likeliest token is at least this likely; above 1 = the last one always.
    """

    draft: str = "auto"
    exits: tuple[int, ...] = setting((), least=1)
    confidence: float = setting(0.5, least=0)

    name: ClassVar[str] = "s2d"
    family: ClassVar[str] = "speculative"
    reads: ClassVar[frozenset[str]] = frozenset({"law"})
    summary: ClassVar[str] = "A nested drafter with exits drafts each token at the first exit that is sure of it."
    paper: ClassVar[Paper] = Paper(
        "S2D: Sorted Speculative Decoding For More Efficient Deployment of Nested Large Language Models",
        "Kavehzadeh et al.",
        2024,
        "2407.01955",
        223,
    )

    @property
    def needs(self) -> Needs:
        """A causal target, and a draft model whose layers can be left out."""
        return Needs(has_rollback=True, width=self.draft_len, models=("draft",))

    def begin(self, context: Context) -> ExitDrafter:
        """Give the drafter empty caches for the joining rows.

        Raises:
            ConfigError: exits that are not ascending, or that the drafter has not.
            CapabilityError: its layers cannot be left out.
        """
        model = context.models["draft"]
        layers = model.capabilities.num_layers
        model.check(Outputs((0,)), (0,))
        exits = self.exits or model.exits or ((layers + 1) // 2,)
        exits = tuple(layer for layer in exits if layer != layers)
        if list(exits) != sorted({*exits}) or any(not 0 < layer < layers for layer in exits):
            raise ConfigError(
                f"The exits {', '.join(map(str, exits))} do not rise within the drafter's {layers} layers.",
                "Give ascending numbers of layers, such as 1,2.",
            )
        return ExitDrafter.begin_with(model, context, (*exits, layers), self.confidence)

    def grow(self, view: View, drafter: ExitDrafter, reach: list[int]) -> Proposal:
        """Draft a chain."""
        return draft_chain(drafter, view, reach, origin=self.name, is_coupled=self.is_matched)

    def observe(self, outcome: Outcome, view: View, state: Paced) -> Paced:
        """Forget what did not become text; the length follows acceptance."""
        state.drafter.observe(outcome, view)
        return super().observe(outcome, view, state)
