"""Looking ahead: a window of guesses finds phrases, and the same forward checks those found before.

Source: Fu et al. (2024), Lookahead Decoding, arXiv 2402.02057, sections 3.1 to 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from outpace.draft.phrases import PhrasePool
from outpace.draft.window import Branches, GuessWindow, answers, branches, first_windows, learn, phrases_only
from outpace.types import Context, Decision, Needs, Outcome, Proposal, Scores, View

__all__ = ["Ahead", "LookAhead"]

Rule = Callable[[Proposal, Scores, View], Decision]


@dataclass
class Ahead:
    """Each row's window, None = phrases only, and its pool of phrases."""

    window: list[GuessWindow | None]
    pool: list[PhrasePool]

    @staticmethod
    def begin(context: Context, width: int, ngram: int, guesses: int) -> Ahead:
        """Return made-up windows of `width` columns, 0 = none, and empty pools for the joining rows."""
        windows = first_windows(context.texts, context.sampler, width, ngram)
        return Ahead(windows, [PhrasePool(ngram - 1, guesses) for _ in windows])

    def read(self, texts: Sequence[Sequence[int]]) -> None:
        """Put what is new in the rows' texts into their pools."""
        for text, pool in zip(texts, self.pool, strict=True):
            pool.read(text)

    def hear(self, sources: Sequence[Sequence[int]]) -> None:
        """Put what the rows' sources say into their pools."""
        for source, pool in zip(sources, self.pool, strict=True):
            pool.add_all(source)

    def propose(self, view: View, guesses: int, origin: str, least: int = 2) -> Proposal:
        """Return the phrases after each row's last token, and its window where a row has room for `least` tokens."""
        phrases = [
            [phrase[: room - 1] for phrase in pool.find(text[-1], guesses)] if room > 1 else []
            for text, room, pool in zip(view.texts, view.room, self.pool, strict=True)
        ]
        windows = [window if room >= least else None for window, room in zip(self.window, view.room, strict=True)]
        return branches(phrases, windows, view.cache, origin)

    def after(self, outcome: Outcome, view: View) -> Ahead:
        """Return the windows one place on, their n-grams in the pools."""
        proposal, scores = outcome.proposal, outcome.scores
        if proposal is None or scores is None or not isinstance(proposal.carry, Branches):
            return self
        lasts = [text[len(text) - len(tokens) - 1] for text, tokens in zip(view.texts, outcome.emitted, strict=True)]
        return Ahead(learn(self.window, self.pool, lasts, answers(proposal, scores)), self.pool)


@dataclass(frozen=True, slots=True)
class LookAhead:
    """How a drafting model is decoded that looks ahead itself: the method of a nested run.

    Attributes:
        width: columns of the window; 0 = phrases only.
        ngram: tokens of an n-gram, its key included.
        guesses: phrases kept per key, and checked per forward.
        rule: how the drafter accepts phrases: it writes what it would write token by token.
    """

    width: int
    ngram: int
    guesses: int
    rule: Rule

    needs = Needs()

    def start(self, context: Context) -> Ahead:
        """Return windows and pools of the joining rows."""
        return Ahead.begin(context, self.width, self.ngram, self.guesses)

    def propose(self, view: View, state: Ahead) -> Proposal:
        """Propose phrases and windows; rows that wait have none."""
        return state.propose(view, self.guesses, "", least=1)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Ahead) -> Decision:
        """Match the phrases."""
        del state
        return self.rule(*phrases_only(proposal, scores), view)

    def observe(self, outcome: Outcome, view: View, state: Ahead) -> Ahead:
        """Move the windows on."""
        return state.after(outcome, view)
