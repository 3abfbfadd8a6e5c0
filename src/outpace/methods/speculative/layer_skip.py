"""The target drafts for itself with some of its layers left out.

Paper: Zhang et al. (2023), arXiv 2309.08168, Draft & Verify; Elhoushi et al. (2024), arXiv 2404.16710, LayerSkip.
Guarantee: exact (sample and match).
Cost: at most 1 full target forward per emitted token; one partial forward per drafted token; no extra memory, since the
    drafts use the scratch slots of the target's own cache.
Differences: which layers are skipped is a setting; the method swift searches for them, and early-exit leaves out the
    last ones, which LayerSkip trains a model for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.draft.layers import own_reach, spread_layers
from outpace.draft.model import draft_chain
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, nothing
from outpace.schedule import next_length
from outpace.types import Adapter, Context, Counter, Needs, Outcome, Proposal, View

__all__ = ["LayerSkip", "LayerSkipState"]


@dataclass
class LayerSkipState:
    """The target, the layers it skips while drafting, where drafting is counted, and each row's draft length."""

    target: Adapter
    skip: tuple[int, ...]
    counter: Counter
    length: list[int]


@dataclass(frozen=True)
class LayerSkip(Method):
    """Self-speculative decoding by skipping layers.

    Attributes:
        skip: layers left out while drafting; empty with `fraction` 0 = none.
        fraction: share of layers left out when `skip` is empty, spread over the middle of the stack.
        draft_len: most tokens drafted per step.
        is_adaptive: let the length follow acceptance.
        min_confidence: stop drafting where no token is this likely (0 = never).

    Raises:
        ConfigError: a draft length below 1, or a fraction or confidence out of range.
    """

    skip: tuple[int, ...] = ()
    fraction: float = 0.34
    draft_len: int = 4
    is_adaptive: bool = True
    min_confidence: float = 0.0

    name: ClassVar[str] = "layer-skip"
    family: ClassVar[str] = "self-speculative"
    summary: ClassVar[str] = "The target drafts with some of its own layers skipped."
    paper: ClassVar[Paper] = Paper(
        "Draft & Verify: Lossless Large Language Model Acceleration via Self-Speculative Decoding",
        "Zhang et al.",
        2023,
        "2309.08168",
        None,
        "The search for the best layers.",
    )

    def __post_init__(self) -> None:
        if self.draft_len < 1:
            raise ConfigError(f"draft_len is {self.draft_len}.", "draft_len must be 1 or more.")
        if not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"min_confidence is {self.min_confidence}.", "min_confidence must be from 0 to 1.")
        if not 0 <= self.fraction < 1:
            raise ConfigError(f"fraction is {self.fraction}.", "fraction must be from 0 to below 1.")

    @property
    def needs(self) -> Needs:
        """A causal target whose layers can be skipped."""
        return Needs(has_rollback=True, has_skip=True, width=self.draft_len)

    def start(self, context: Context) -> LayerSkipState:
        """Choose the layers."""
        layers = context.target.capabilities.num_layers
        if any(not 0 <= layer < layers for layer in self.skip):
            raise ConfigError(f"skip names layers outside 0 to {layers - 1}.", "Name layers that the model has.")
        first = max(1, self.draft_len // 2) if self.is_adaptive else self.draft_len
        skip = self.skip or spread_layers(layers, round(layers * self.fraction))
        return LayerSkipState(context.target, skip, context.counters["draft"], [first] * len(context.texts))

    def propose(self, view: View, state: LayerSkipState) -> Proposal:
        """Draft on a fork of the target's cache."""
        lengths = own_reach(state.target, view, state.length)
        if max(lengths) == 0:
            return nothing(view)
        fork = view.cache.fork(state.counter)
        return draft_chain(
            state.target,
            fork,
            view,
            lengths,
            origin=self.name,
            skip=state.skip,
            min_confidence=self.min_confidence,
        )

    def observe(self, outcome: Outcome, view: View, state: LayerSkipState) -> LayerSkipState:
        """Let the length follow acceptance."""
        del view
        if self.is_adaptive and outcome.proposal is not None and outcome.proposal.origin == self.name:
            steps = zip(state.length, outcome.proposal.length, outcome.accepted, strict=True)
            lengths = [next_length(length, n, accepted, self.draft_len) for length, n, accepted in steps]
            return LayerSkipState(state.target, state.skip, state.counter, lengths)
        return state
