"""Guess a window of tokens, score it in parallel, and feed the target's own answers back as the next guess.

Paper: Santilli et al. (2023), arXiv 2305.10427, algorithms 1 and 2 (Jacobi and block Gauss-Seidel-Jacobi decoding).
Guarantee: exact (sample and match; at a temperature the noise is a function of the position, so the fixed point is
    the plainly sampled text).
Cost: at most 1 target forward per emitted token, `window` positions each; no extra memory.
Differences: the window slides after every accepted token instead of waiting for a whole block; guesses start as copies
    of the last token rather than padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from outpace.accept.match import picks, sample_and_match
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, as_device
from outpace.types import Context, Decision, Needs, Outcome, Proposal, Scores, View

__all__ = ["Jacobi"]


@dataclass(frozen=True)
class Jacobi(Method):
    """Jacobi decoding.

    Attributes:
        window: positions guessed per step.

    Raises:
        ConfigError: the window is below 1.
    """

    window: int = 4

    name: ClassVar[str] = "jacobi"
    family: ClassVar[str] = "jacobi"
    summary: ClassVar[str] = "Iterates a guessed window towards the target's own fixed point."
    paper: ClassVar[Paper] = Paper(
        "Accelerating Transformer Inference for Translation via Parallel Decoding",
        "Santilli et al.",
        2023,
        "2305.10427",
        125,
        "The dependency trace, blocks that wait for their fixed point, and the hybrid rule for end of text.",
    )

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"window is {self.window}.", "window must be 1 or more.")

    @property
    def needs(self) -> Needs:
        """A causal target that can drop staged entries."""
        return Needs(has_rollback=True, width=self.window)

    def start(self, context: Context) -> Tensor:
        """Return the first guess: the last prompt token, `window` times."""
        last = torch.tensor([text[-1] for text in context.texts])
        return last.unsqueeze(1).repeat(1, self.window)

    def propose(self, view: View, state: Tensor) -> Proposal:
        """Propose the current guess."""
        return Proposal(as_device(state, view), [self.window] * len(view.texts), origin=self.name)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Tensor) -> Decision:
        """Keep the prefix that is already a fixed point; carry the target's answers everywhere else."""
        del state
        decision = sample_and_match(proposal, scores, view)
        # Penalties see the true text only along the accepted path, so the next guess may ignore them: it is a guess.
        # (A walk, which leaves a path, draws nothing useful behind the place where a row stopped.)
        decision.carry = decision.tokens if decision.path is None else picks(proposal, scores, view)
        return decision

    def observe(self, outcome: Outcome, view: View, state: Tensor) -> Tensor:
        """Shift the answers by what was emitted; new positions repeat the last answer."""
        if outcome.decision is None:
            return state
        answers: Tensor = outcome.decision.carry.clamp(min=0).to(state.device)
        shift = torch.tensor([len(tokens) for tokens in outcome.emitted]).unsqueeze(1)
        place = (shift + torch.arange(self.window)).clamp_(max=answers.shape[1] - 1)
        return answers.gather(1, place)
