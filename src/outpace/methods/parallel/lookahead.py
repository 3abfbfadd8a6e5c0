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

from outpace.accept.match import sample_and_match
from outpace.draft.phrases import PhrasePool
from outpace.draft.window import Branches, Window, answers, branches, candidates, first_windows, learn
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, nothing
from outpace.types import Context, Decision, Needs, Outcome, Proposal, Scores, View

__all__ = ["Lookahead", "LookaheadState"]


@dataclass
class LookaheadState:
    """Each row's window and pool."""

    window: list[Window | None]
    pool: list[PhrasePool]


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

    window: int = 5
    ngram: int = 4
    guesses: int = 5
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

    def __post_init__(self) -> None:
        if self.window < 1 or self.guesses < 1:
            raise ConfigError(
                f"window is {self.window} and guesses {self.guesses}.", "Both must be 1 or more; jacobi has no pool."
            )
        if self.ngram < 3:
            raise ConfigError(f"ngram is {self.ngram}.", "ngram must be 3 or more, its first token being the key.")

    @property
    def needs(self) -> Needs:
        """A causal target with tree attention."""
        return Needs(has_tree=True, has_rollback=True, width=(self.window + self.guesses) * (self.ngram - 1) - 1)

    def start(self, context: Context) -> LookaheadState:
        """Return made-up windows and empty pools."""
        windows = first_windows(context.texts, context.sampler, self.window, self.ngram)
        return LookaheadState(windows, [PhrasePool(self.ngram - 1, self.guesses) for _ in context.texts])

    def propose(self, view: View, state: LookaheadState) -> Proposal:
        """Propose the phrases after each row's last token, and its window."""
        if max(view.room) <= 1:
            return nothing(view)
        phrases = []
        for text, room, pool in zip(view.texts, view.room, state.pool, strict=True):
            if self.has_history:
                pool.read(text)
            phrases.append([phrase[: room - 1] for phrase in pool.find(text[-1], self.guesses)] if room > 1 else [])
        windows = [window if room > 1 else None for window, room in zip(state.window, view.room, strict=True)]
        return branches(phrases, windows, view.cache, self.name)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: LookaheadState) -> Decision:
        """Match the candidate phrases only: the window is no draft."""
        del state
        if isinstance(proposal.carry, Branches):
            proposal, scores = candidates(proposal, scores)
        return sample_and_match(proposal, scores, view)

    def observe(self, outcome: Outcome, view: View, state: LookaheadState) -> LookaheadState:
        """Move each window one place on, and put its n-grams into the pool."""
        proposal, scores = outcome.proposal, outcome.scores
        if proposal is None or scores is None or not isinstance(proposal.carry, Branches):
            return state
        lasts = [text[-len(tokens) - 1] for text, tokens in zip(view.texts, outcome.emitted, strict=True)]
        return LookaheadState(learn(state.window, state.pool, lasts, answers(proposal, scores)), state.pool)
