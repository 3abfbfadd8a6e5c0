"""An ask as the engine's thread holds it: its rows, and what of them has been handed over."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outpace.api.result import Result
from outpace.api.running import Plan
from outpace.engine.face import Ask, Piece, Token
from outpace.run.row import Row
from outpace.types import Guarantee, Outcome

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = ["Entry", "Scored", "Sink", "step_of"]

Scored = list[tuple[float | None, list[tuple[int, float]]]]


class Sink:
    """Where an ask's answers go; here, nowhere. Called in the engine's thread, but for `taken` and `refused`."""

    def taken(self, prompt_tokens: Sequence[int]) -> None:
        """Hear that the ask is in the queue."""

    def refused(self, error: Exception) -> None:
        """Hear that it cannot be taken in; nothing follows."""

    def put(self, piece: Piece) -> None:
        """Take what became final."""

    def end(self, results: list[Result] | None, error: Exception | None = None) -> None:
        """Take the results of all samples, or why the ask has failed as a whole; nothing follows."""


@dataclass(slots=True, eq=False)
class Entry:
    """An ask that was taken.

    Attributes:
        ask, lm, plan, sink: what was asked, what writes it (the engine's model, or what a law of the ask puts in its
            place), what was made of it, and where answers go.
        arrival: its number among all asks.
        arrived: when, in seconds of the engine's clock.
        seen: rows that the engine had begun by then.
        waiting: rows that no run writes now, in order.
        running, left: how many rows are being written, and how many of all have not ended.
        reading: reads the prompt for its log-probabilities, a chunk each time; None = nothing is to be read any more.
        begun, first: when its first row was begun, and when its first token was final; None = not yet.
        last: per row, when its last token was final.
        handed: per row, how many written tokens the caller has.
        cached_tokens: prompt tokens found in the cache when its first row was begun.
        scored: the prompt's log-probabilities, once they are known.
        seconds: of the run that writes it when its first row was begun.
        is_cancelled: the caller wants no more.
        may_share: its rows are written in one run with those of others.
        is_kept: what was read of its prompt is in the cache for others.
        has_forks, width, may_wait: of its method or search, asked once: rows continue each other; window nodes, the
            root among them; and a text may be taken up again from what is written.
        key: whose entries it may begin with; None = nobody's.
    """

    ask: Ask
    lm: LanguageModel
    plan: Plan
    sink: Sink
    arrival: int
    arrived: float
    seen: int = 0
    waiting: list[Row] = field(default_factory=list)
    running: int = 0
    left: int = 0
    reading: Generator[None, None, Scored] | None = None
    begun: float | None = None
    first: float | None = None
    last: dict[Row, float] = field(default_factory=dict)
    handed: dict[Row, int] = field(default_factory=dict)
    cached_tokens: int = 0
    scored: Scored = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    is_cancelled: bool = False
    may_share: bool = False
    is_kept: bool = False
    has_forks: bool = False
    width: int = 1
    may_wait: bool = True
    key: Hashable = None

    def __post_init__(self) -> None:
        self.waiting, self.left = list(self.plan.rows), len(self.plan.rows)
        self.handed = dict.fromkeys(self.plan.rows, 0)
        needs, is_exact = self.plan.method.needs, self.plan.method.guarantee is Guarantee.EXACT
        self.has_forks, self.width = needs.has_forks or self.plan.search is not None, needs.width + 1
        self.may_wait = is_exact and not self.has_forks
        self.key = ("", self.ask.salt) if is_exact else None  # the name of an adapter, once rows may have one
        for row in self.plan.rows:
            row.group, row.steps = self.arrival if needs.has_forks else None, []

    def most(self, row: Row) -> int:
        """Return how many entries there has to be room for: now, or ever, where a row cannot wait for more."""
        return (len(row.tokens) if self.may_wait else row.num_prompt + row.max_tokens) + self.width

    def piece(self, row: Row, step: dict[str, Any] | None = None) -> Piece | None:
        """Return what is new of a row since the last time; None = nothing.

        Args:
            row: one of the plan's.
            step: what its step did, where the ask is traced.
        """
        first, written, is_final = self.handed[row], len(row.tokens) - row.num_prompt, row.finish is not None
        if row.place >= self.plan.num_texts:
            return None  # it was written for others of its group
        if not is_final and ((first == written and step is None) or self.has_forks):
            return None  # another's text may replace that of a row that forks
        places = range(first, written)
        texts = [""] * len(places) if row.text is None else row.text.release_each(places, is_final)
        self.handed[row] = written
        tokens = [self._token(row, at, text) for at, text in zip(places, texts, strict=True)]
        rest = row.text.release(is_final=True) if is_final and not tokens and row.text is not None else ""
        sample, finish = self.plan.rows.index(row), None if row.finish is None else row.finish.value
        return Piece(sample, tokens, finish, step, rest)

    def _token(self, row: Row, at: int, text: str) -> Token:
        return Token(
            row.tokens[row.num_prompt + at],
            text,
            row.sources[at],
            row.drafters[at],
            row.log_probs[at] if at < len(row.log_probs) else None,
            row.top_log_probs[at] if at < len(row.top_log_probs) else [],
        )


def step_of(outcome: Outcome, index: int) -> dict[str, Any]:
    """Return what a step did to a row, as `Piece.step` tells it."""
    proposal = outcome.proposal
    assert proposal is not None  # it was no prefill chunk
    length, origin = proposal.length[index], proposal.origin
    parent = list(range(-1, length - 1)) if proposal.parent is None else proposal.parent[index, :length].tolist()
    return {
        "proposed": length,
        "accepted": outcome.accepted[index],
        "drafter": (origin if isinstance(origin, str) else origin[index]) if length else "",
        "tokens": proposal.tokens[index, :length].tolist(),
        "parents": parent,
    }
