"""Guess a window of tokens, score it in parallel, and feed the target's own answers back as the next guess.

Paper: Santilli et al. (2023), arXiv 2305.10427: parallel Jacobi (mode=jacobi), parallel Gauss-Seidel-Jacobi
    (mode=block) and hybrid Gauss-Seidel-Jacobi decoding (mode=hybrid).
Guarantee: exact (sample and match; at a temperature the noise is a function of the position, so the fixed point is
    the plainly sampled text).
Cost: at most 1 target forward per emitted token, up to `window` further positions each; no extra memory.
Differences: tokens are written as soon as they are fixed, not when their block is, which takes no more iterations; in
    mode jacobi the window slides on after them. Guesses start as copies of the last token unless `filler` names
    another, as the paper's padding. Nothing is told about the length of the translation: every mode writes on until the
    end of the text. Mode hybrid also cuts a guess behind an end token that it holds, which saves positions, not
    iterations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from outpace.accept.match import picks, sample_and_match
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, as_device
from outpace.types import Context, Decision, Needs, Outcome, Proposal, Report, Scores, View

__all__ = ["Jacobi"]

_MODES = ("jacobi", "block", "hybrid")


@dataclass(frozen=True)
class Jacobi(Method):
    """Jacobi decoding.

    Attributes:
        window: positions guessed per step; in the modes block and hybrid the size of a block.
        mode: "jacobi" (the window slides), "block" (a block is iterated to its fixed point before the next begins) or
            "hybrid" (blocks, cut where a guess ends the text, and plain decoding after `parallel_len` tokens).
        parallel_len: written tokens after which mode hybrid goes on plainly; 0 = never.
        filler: token guessed where nothing is known yet, e.g. the id of padding; -1 = a copy of the last token.

    Raises:
        ConfigError: the window is below 1, the mode is unknown, parallel_len is negative or of another mode, or filler
            is below -1.
    """

    window: int = 4
    mode: str = "jacobi"
    parallel_len: int = 0
    filler: int = -1

    name: ClassVar[str] = "jacobi"
    family: ClassVar[str] = "jacobi"
    summary: ClassVar[str] = "Iterates a guessed window towards the target's own fixed point."
    paper: ClassVar[Paper] = Paper(
        "Accelerating Transformer Inference for Translation via Parallel Decoding",
        "Santilli et al.",
        2023,
        "2305.10427",
        125,
        "Splitting a block's positions over several devices.",
    )

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"window is {self.window}.", "window must be 1 or more.")
        if self.mode not in _MODES:
            raise ConfigError(f"mode is {self.mode!r}.", f"Use one of {', '.join(_MODES)}.")
        if self.parallel_len < 0 or (self.parallel_len and self.mode != "hybrid"):
            raise ConfigError(
                f"parallel_len is {self.parallel_len} in mode {self.mode!r}.", "Use 0, or more in mode hybrid."
            )

        if self.filler < -1:
            raise ConfigError(f"filler is {self.filler}.", "Use a token id, or -1 for copies of the last token.")

    @property
    def needs(self) -> Needs:
        """A causal target that can drop staged entries."""
        # The last position of a block is answered by the one before it, so it is never forwarded.
        return Needs(has_rollback=True, width=self.window if self.mode == "jacobi" else self.window - 1)

    def start(self, context: Context) -> Tensor:
        """Return the first guess: the filler or the last prompt token, `window` times."""
        return self._fresh(context.texts)

    def _fresh(self, texts: list[list[int]]) -> Tensor:
        first = [text[-1] if self.filler < 0 else self.filler for text in texts]
        return torch.tensor(first).unsqueeze(1).repeat(1, self.window)

    def propose(self, view: View, state: Tensor) -> Proposal:
        """Propose the current guess, as far as the mode looks ahead."""
        lengths = [min(self._ahead(view, state, row), max(0, room - 1)) for row, room in enumerate(view.room)]
        return Proposal(as_device(state[:, : max(lengths)], view), lengths, origin=self.name)

    def _ahead(self, view: View, state: Tensor, row: int) -> int:
        """Return how many guesses of a row are forwarded."""
        if self.mode == "jacobi":
            return self.window
        written = view.lengths[row] - view.prompts[row]
        left = self.window - written % self.window
        if self.mode == "block":
            return left - 1
        if self.parallel_len:
            left = max(1, min(left, self.parallel_len - written))
        ends = view.sampler.end_tokens[row]
        return next((at for at, token in enumerate(state[row, : left - 1].tolist()) if token in ends), left - 1)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Tensor) -> Decision:
        """Keep the prefix that is already a fixed point; carry the target's answers everywhere else."""
        del state
        decision = sample_and_match(proposal, scores, view)
        # Penalties see the true text only along the accepted path, so the next guess may ignore them: it is a guess.
        # (A walk, which leaves a path, draws nothing useful behind the place where a row stopped.)
        decision.carry = decision.tokens if decision.path is None else picks(proposal, scores, view)
        return decision

    def report(self, outcome: Outcome, view: View, state: Tensor) -> list[Report]:
        """Tell what the target answered, whether it was right or not."""
        told, proposal, decision = super().report(outcome, view, state), outcome.proposal, outcome.decision
        if proposal is None or decision is None or proposal.origin != self.name or decision.carry is None:
            return told
        rows = zip(told, decision.carry.tolist(), proposal.length, strict=True)
        return [replace(one, answers=answers[: length + 1]) for one, answers, length in rows]

    def observe(self, outcome: Outcome, view: View, state: Tensor) -> Tensor:
        """Shift the answers by what was emitted; new positions take the filler, or repeat the last answer."""
        if outcome.decision is None or outcome.proposal is None:
            return state
        carry = outcome.decision.carry
        if outcome.proposal.origin != self.name or carry is None:  # another method's step, which gave no answers
            return self._fresh(view.texts)
        answers: Tensor = carry.clamp(min=0).to(state.device)
        shift = torch.tensor([len(tokens) for tokens in outcome.emitted]).unsqueeze(1)
        last = torch.tensor(outcome.proposal.length).unsqueeze(1)
        place = shift + torch.arange(self.window)
        guess = answers.gather(1, torch.minimum(place, last))
        return guess if self.filler < 0 else guess.masked_fill(place > last, self.filler)
