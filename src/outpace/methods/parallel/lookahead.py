"""Guess ahead in a window and check the n-grams it found, both in one forward of the target.

Paper: Fu et al. (2024), Break the Sequential Dependency of LLM Inference Using Lookahead Decoding, arXiv 2402.02057,
    sections 3.1 to 3.3.
Guarantee: exact (sample and match, in place of the paper's verification, which when sampling keeps the law only).
Cost: at most 1 target forward per emitted token, of (window + guesses) * (ngram - 1) positions at most; a pool of
    `guesses` phrases per token seen.
Differences: candidates share beginnings as one tree; the window starts with tokens of the text picked by the row's own
    noise, and gives no phrases until the model has answered for each of its levels; its answers are always the
    likeliest tokens, as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.accept import sample_and_match
from outpace.draft.ahead import Ahead
from outpace.draft.source import originals
from outpace.draft.window import phrases_only
from outpace.methods.base import Method, Paper, nothing
from outpace.setting import setting
from outpace.types import Context, Decision, Needs, Outcome, Proposal, Scores, View

__all__ = ["Lookahead"]


@dataclass(frozen=True)
class Lookahead(Method):
    """Lookahead decoding.

    Attributes:
        window: columns of the window (W).
        ngram: tokens of an n-gram, its key included (N).
        guesses: phrases kept per key, and checked per step (G).
        has_history: put the n-grams of prompt and output into the pool too.

    Raises:
        ConfigError: a number is too small.
    """

    window: int = setting(5, least=1, note="jacobi has no pool")
    ngram: int = setting(4, least=3, note="its first token is the key")
    guesses: int = setting(5, least=1)
    has_history: bool = True

    name: ClassVar[str] = "lookahead"
    family: ClassVar[str] = "jacobi"
    summary: ClassVar[str] = (
        "A window of parallel guesses finds n-grams, and the target checks them in the same forward."
    )
    paper: ClassVar[Paper] = Paper(
        "Break the Sequential Dependency of LLM Inference Using Lookahead Decoding",
        "Fu et al.",
        2024,
        "2402.02057",
        326,
        "Lookahead parallelism over several devices, and its own FlashAttention kernel.",
    )

    @property
    def needs(self) -> Needs:
        """A causal target with tree attention."""
        return Needs(has_tree=True, has_rollback=True, width=(self.window + self.guesses) * (self.ngram - 1) - 1)

    def start(self, context: Context) -> Ahead:
        """Return made-up windows, and pools that hold what the sources say where the model has an encoder."""
        state = Ahead.begin(context, self.window, self.ngram, self.guesses)
        if self.has_history:
            state.hear(originals(context))
        return state

    def propose(self, view: View, state: Ahead) -> Proposal:
        """Propose the phrases after each row's last token, and its window."""
        if max(view.room) <= 1:
            return nothing(view)
        if self.has_history:
            state.read(view.texts)
        return state.propose(view, self.guesses, self.name)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Ahead) -> Decision:
        """Match the candidate phrases only: the window is no draft."""
        del state
        return sample_and_match(*phrases_only(proposal, scores), view)

    def observe(self, outcome: Outcome, view: View, state: Ahead) -> Ahead:
        """Move each window one place on, and put its n-grams into the pool."""
        return state.after(outcome, view)
