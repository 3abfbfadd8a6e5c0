"""One sequence being written: its tokens, where it may end, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from outpace.text import TextStream
from outpace.types import FinishReason

__all__ = ["Row", "Usage"]


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
        margins: how far each token was from being another one, when recorded.
        sources: per written token "draft", "recovered", "bonus" or "plain".
        source: an encoder-decoder's source tokens, else None.
        notes: what a user should know about this row.
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
    margins: list[float] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    source: list[int] | None = None
    notes: list[str] = field(default_factory=list)

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

    def push(self, token: int) -> bool:
        """Append one final token; return whether the row ends here."""
        if token < 0:  # the pick's sign for NaN or infinite logits; nothing is written
            self.finish = FinishReason.ERROR
            return True
        self.tokens.append(token)
        if token in self.end_tokens:
            self.finish = FinishReason.EOS
        elif self.text is not None and self.text.push(token):
            self.finish = FinishReason.STOP
        elif self.room <= 0:
            self.finish = FinishReason.LENGTH
        if self.finish is not None and self.text is not None:
            self.text.flush()
        return self.finish is not None
