"""The target's first layers draft, and all of them check: for checkpoints that were trained to exit early.

Paper: Elhoushi et al. (2024), arXiv 2404.16710, LayerSkip (section 3.3, self-speculative decoding).
Guarantee: exact (sample and match).
Cost: at most 1 full target forward per emitted token; one forward of `exit_layer` layers per drafted token; no extra
    memory, since the drafts use the scratch slots of the target's own cache.
Differences: the check runs all layers again, where the paper keeps what the first ones have computed; drafts are
    coupled to the target's noise, and their number follows acceptance. LayerSkip checkpoints are ordinary Llama files
    and load as such; any other model works too, and is accepted as often as its early layers happen to be right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.draft.layers import own_reach
from outpace.draft.model import draft_chain
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, nothing
from outpace.schedule import next_length
from outpace.types import Adapter, Context, Counter, Needs, Outcome, Proposal, View

__all__ = ["EarlyExit", "EarlyExitState"]


@dataclass
class EarlyExitState:
    """The target, the layers behind the exit, where drafting is counted, and each row's draft length."""

    target: Adapter
    skip: tuple[int, ...]
    counter: Counter
    length: list[int]


@dataclass(frozen=True)
class EarlyExit(Method):
    """Self-speculative decoding with an early exit.

    Attributes:
        exit_layer: layers that draft, the final norm and the head behind them; 0 = half of them, rounded up.
        draft_len: most tokens drafted per step.
        is_adaptive: let the length follow acceptance.
        min_confidence: stop drafting where no token is this likely (0 = never).

    Raises:
        ConfigError: a draft length below 1, a confidence outside [0, 1], or a negative exit layer.
    """

    exit_layer: int = 0
    draft_len: int = 6
    is_adaptive: bool = True
    min_confidence: float = 0.0

    name: ClassVar[str] = "early-exit"
    family: ClassVar[str] = "self-speculative"
    summary: ClassVar[str] = "The target's first layers draft; meant for checkpoints trained for early exit."
    paper: ClassVar[Paper] = Paper(
        "LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding",
        "Elhoushi et al.",
        2024,
        "2404.16710",
        None,
        "The training recipe, and keeping the first layers' results for the check.",
    )

    def __post_init__(self) -> None:
        if self.draft_len < 1:
            raise ConfigError(f"draft_len is {self.draft_len}.", "draft_len must be 1 or more.")
        if not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"min_confidence is {self.min_confidence}.", "min_confidence must be from 0 to 1.")
        if self.exit_layer < 0:
            raise ConfigError(f"exit_layer is {self.exit_layer}.", "exit_layer must be 0 or more.")

    @property
    def needs(self) -> Needs:
        """A causal target whose layers can be skipped."""
        return Needs(has_rollback=True, has_skip=True, width=self.draft_len)

    def start(self, context: Context) -> EarlyExitState:
        """Place the exit.

        Raises:
            ConfigError: the model has no layer behind it.
        """
        layers = context.target.capabilities.num_layers
        if self.exit_layer >= layers:
            raise ConfigError(f"exit_layer is {self.exit_layer}, but the model has {layers} layers.", "Exit earlier.")
        skip = tuple(range(self.exit_layer or (layers + 1) // 2, layers))
        first = max(1, self.draft_len // 2) if self.is_adaptive else self.draft_len
        return EarlyExitState(context.target, skip, context.counters["draft"], [first] * len(context.texts))

    def propose(self, view: View, state: EarlyExitState) -> Proposal:
        """Draft on a fork of the target's cache."""
        lengths = own_reach(state.target, view, state.length)
        if max(lengths) == 0:
            return nothing(view)
        return draft_chain(
            state.target,
            view.cache.fork(state.counter),
            view,
            lengths,
            origin=self.name,
            skip=state.skip,
            min_confidence=self.min_confidence,
        )

    def observe(self, outcome: Outcome, view: View, state: EarlyExitState) -> EarlyExitState:
        """Let the length follow acceptance."""
        del view
        if not self.is_adaptive or outcome.proposal is None or outcome.proposal.origin != self.name:
            return state
        steps = zip(state.length, outcome.proposal.length, outcome.accepted, strict=True)
        return replace(state, length=[next_length(n, some, kept, self.draft_len) for n, some, kept in steps])
