"""One sequence being written: its tokens, where it may end, and what it cost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from outpace.errors import ConfigError
from outpace.sampling import Sampling, fork_key
from outpace.text.stream import TextStream
from outpace.types import FinishReason, Wanted

if TYPE_CHECKING:
    from outpace.constrain.protocol import Constraint, ConstraintState

__all__ = ["BROKEN", "DEAD_END", "DISOBEYED", "FORBIDDEN", "NO_MORE", "RULED_OUT", "Row", "Usage", "follow", "forked"]

# Why a row ended with an error.
BROKEN = "The model produced NaN or infinite logits; the text ends before them."
DEAD_END = "The constraint allows no token here, although the text is not complete."
FORBIDDEN = "Every token that the constraint allows here is forbidden by a law or setting, or its logit is no number."
RULED_OUT = "The law that was asked for leaves no token here, or the model's logits are no numbers."
NO_MORE = "The search found fewer texts than were asked for."
DISOBEYED = "The method wrote a token that the constraint forbids; the text ends before it."


@dataclass(slots=True)
class Usage:
    """What a row, or a run, has cost.

    Attributes:
        num_prompt: prompt tokens.
        num_emitted: tokens made final, recovered and bonus tokens included.
        num_proposed: draft nodes proposed.
        num_accepted: drafts that were emitted (counted after the cut at the end of the text).
        num_recovered: emitted tokens that replaced a rejected draft.
        num_bonus: emitted tokens after full acceptance of at least one draft.
        num_steps: steps this row took part in.
        target_nfe: target forwards this row took part in, prefill included.
        draft_nfe: forwards of drafting models this row took part in.
        positions_scored: target positions forwarded for this row, padding included.
    """

    num_prompt: int = 0
    num_emitted: int = 0
    num_proposed: int = 0
    num_accepted: int = 0
    num_recovered: int = 0
    num_bonus: int = 0
    num_steps: int = 0
    target_nfe: int = 0
    draft_nfe: int = 0
    positions_scored: int = 0


@dataclass(slots=True, eq=False)
class Row:
    """A sequence that a run writes; it may leave one run and join another.

    Attributes:
        tokens: final tokens, prompt included.
        num_prompt: leading tokens that are prompt.
        key: noise key.
        max_tokens: most tokens to write.
        end_tokens: ids that end the text; the one written stays in `tokens`.
        text: the text stream, when stop strings or streaming ask for one.
        finish: why the row ended, None while it runs.
        stopped_inside: the row's end fell inside an accepted run (tokens behind it were dropped).
        log_probs: natural log-probability of each written token under the model's own law, when recorded.
        top_log_probs: before each written token, the likeliest ones under the model's own law, when recorded: pairs of
            id and natural log-probability, likeliest first.
        margins: how far each token was from being another one, when recorded.
        sources: per written token "draft", "recovered", "bonus" or "plain".
        source: an encoder-decoder's source tokens, else None.
        canvas: what follows the prompt: given tokens, -1 where one is to be filled in; empty = nothing is given.
        notes: what a user should know about this row.
        constraint: what the written text must look like, None = anything; set by the run that the row joins.
        state: where the text stands in it.
        stop_tokens: ids that end the text as a stop string does; the one written stays in `tokens`.
        inputs: soft embeddings [P, hidden] in place of the text's first tokens (images, speech, prompt tuning), whose
            ids may then be any; None = there are none.
        group: rows of one number may continue each other's texts: they have one prompt, one greatest length and one
            way to end, and join a run together. None = this row is alone.
        place: its number among the rows of its group, by which they are ordered.
        aside: a text of its group that has ended, laid beside the row while the group goes on; None = there is none.
        score: how good the method thinks the row is; None = it does not say.
        settings: how its tokens are drawn; None = as the run's.
        wanted: the method that writes it, in a run whose method serves several; None = as the run's.
        record, num_top: as of a `Run`; None = as the run's.
        drafters: per written token, who drafted it; "" where it is no draft.
        has_law: laws change its logits, so that there may be no token although the model's are sound.
        cached: pages that hold the first entries of its text, and how many these are, where the run's caches lie on
            pages: read when it joins.
        steps: drafts and accepted ones of each step; None = not kept.
        covered: tokens that spell the end of the prompt where not the prompt's tokens but the first one written writes
            it; empty = the prompt's tokens are all of it.
        pause: asked after each token behind which the text goes on; True = the row leaves the run here for now, and
            `is_paused` says so. None = nobody wants to look at it before its end.
        entropies: in nats, of the model's own law before each written token, when recorded.
        choices: before each written token, the likeliest ones as beams see them: id, log-probability behind penalties
            and bans (whose sum they leave below 1), and under the model's own law.
        num_choices: how many of them are noted.
    """

    tokens: list[int]
    num_prompt: int
    key: int
    max_tokens: int
    end_tokens: Sequence[int] = ()
    text: TextStream | None = None
    finish: FinishReason | None = None
    stopped_inside: bool = False
    usage: Usage = field(default_factory=Usage)
    log_probs: list[float] = field(default_factory=list)
    top_log_probs: list[list[tuple[int, float]]] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    source: list[int] | None = None
    canvas: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    constraint: Constraint | None = None
    state: ConstraintState | None = None
    stop_tokens: Sequence[int] = ()
    inputs: Tensor | None = None
    group: int | None = None
    place: int = 0
    aside: Row | None = None
    score: float | None = None
    settings: Sampling | None = None
    wanted: Wanted | None = None
    record: Sequence[str] | None = None
    num_top: int | None = None
    drafters: list[str] = field(default_factory=list)
    steps: list[tuple[int, int]] | None = None
    has_law: bool = False
    cached: tuple[Iterable[int], int] | None = None
    covered: Sequence[int] = ()
    pause: Callable[[Row], bool] | None = None
    is_paused: bool = False
    entropies: list[float] = field(default_factory=list)
    choices: list[list[tuple[int, float, float]]] = field(default_factory=list)
    num_choices: int = 0

    def __post_init__(self) -> None:
        self.usage.num_prompt = self.num_prompt

    @property
    def written(self) -> list[int]:
        """Tokens written after the prompt."""
        return self.tokens[self.num_prompt :]

    @property
    def room(self) -> int:
        """Tokens this row may still write."""
        return self.max_tokens - (len(self.tokens) - self.num_prompt)

    def cancel(self) -> None:
        """End the row here, keeping what is written."""
        self.finish = FinishReason.CANCELLED
        if self.text is not None:
            self.text.flush()

    def obey(self, constraint: Constraint | None) -> None:
        """Take on a constraint on the written text, prompt apart; a row that has it already goes on where it stands.

        Raises:
            ConfigError: what is written breaks it.
        """
        if constraint is self.constraint:
            return
        self.constraint, self.state = constraint, None if constraint is None else constraint.start()
        if self.state is not None and not all(self.state.push(token) for token in self.written):
            raise ConfigError("What a row has written breaks the constraint.", "Begin a new row with it as the prompt.")

    def push(self, token: int) -> bool:
        """Append one final token; return whether the row ends here, or leaves for now."""
        # -1 is the pick's sign for a law that is none; nothing is written.
        if token < 0 or (self.state is not None and not self._may_write(self.state, token)):
            self._stick(token)
        else:
            self.tokens.append(token)
            if token in self.end_tokens:
                self.finish = FinishReason.EOS
            elif token in self.stop_tokens:
                self.finish = FinishReason.STOP
            elif self.text is not None and self.text.push(token):
                self.finish = FinishReason.STOP
            elif self.state is not None and self.state.is_final:
                self.finish = FinishReason.EOS
            elif self.room <= 0:
                self.finish = FinishReason.LENGTH
        if self.finish is not None and self.text is not None:
            self.text.flush()
        self.is_paused = self.finish is None and self.pause is not None and self.pause(self)
        return self.finish is not None or self.is_paused

    def would_end(self, tokens: Sequence[int]) -> bool:
        """Return whether the text would end with the last of some tokens behind it, its greatest length apart."""
        if tokens[-1] in self.end_tokens or tokens[-1] in self.stop_tokens:
            return True
        if self.text is not None and self.text.has_stops:
            stream = self.text.fork()
            if any([stream.push(token) for token in tokens]):
                return True
        if self.state is None:
            return False
        state = self.state.fork()
        return all(state.push(token) for token in tokens) and state.is_final

    def _may_write(self, state: ConstraintState, token: int) -> bool:
        """Advance the constraint's state by a token; return whether it is allowed."""
        return state.is_complete if token in self.end_tokens else state.push(token)

    def _stick(self, token: int) -> None:
        """End the row because no token can be written."""
        state, why = self.state, RULED_OUT if self.has_law else BROKEN
        if state is not None:
            is_open = bool(state.allowed().any())
            if state.is_complete and not is_open:
                self.finish = FinishReason.EOS
                return
            why = DEAD_END if not is_open else FORBIDDEN if token < 0 else DISOBEYED
        self.finish = FinishReason.ERROR
        self.notes.append(why)


# What a row takes over with a text: all that tells of the text, not what the caller asked of the row.
_TOLD = (
    *("tokens", "usage", "log_probs", "top_log_probs", "margins", "sources", "drafters", "steps", "notes"),
    *("text", "state", "entropies", "choices"),
)


def follow(rows: Sequence[Row], source: Sequence[int]) -> None:
    """Let row i continue the text of row `source[i]`, as all of them are now.

    A text takes its noise along, so that it reads on as it would have; where several rows continue one, all but one
    (itself, if it goes on) get noise of their own. Which one that is depends on keys only, never on batch slots.

    Raises:
        ConfigError: a row continues one of another group.
    """
    keys = [row.key for row in rows]
    heirs = {at: [row for row, old in enumerate(source) if old == at] for at in source}
    taken: list[tuple[Row, dict[str, Any]]] = []
    for index, at in enumerate(source):
        if at == index:
            continue
        row, other = rows[index], rows[at]
        if row.group is None or row.group != other.group:
            raise ConfigError("A method let a row continue the text of another group.", "Fork within `view.groups`.")
        heir = at if at in heirs[at] else min(heirs[at], key=lambda one: keys[one])
        told = forked(other)
        taken.append((row, told | {"key": keys[at] if index == heir else fork_key(keys[at], keys[index])}))
    for row, told in taken:  # only now, since rows may swap
        for name, value in told.items():
            setattr(row, name, value)


def forked(row: Row) -> dict[str, Any]:
    """Return copies of all that tells of a row's text, by the name of the field."""
    return {name: _copied(getattr(row, name)) for name in _TOLD}


def _copied(value: Any) -> Any:
    return value.fork() if hasattr(value, "fork") else copy.copy(value)
