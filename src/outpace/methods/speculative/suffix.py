"""Draft what followed the longest matching end of the text before, by counts, and more of it the longer the match.

Paper: Oliaro et al. (2024), arXiv 2411.04975, SuffixDecoding: length limited by the match, score by counts, chain or
    tree, own text and earlier outputs.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token; an index of about 500 bytes per token of the text.
Differences: a suffix automaton in place of a suffix tree; among the ends of the text that match, the longest is tried
    first and shorter ones only while they can still do better; the end of the text counts as no continuation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.draft.memory import claim
from outpace.draft.source import originals
from outpace.draft.suffix import Draft, SuffixRule
from outpace.draft.suffix_history import SuffixHistory, SuffixMemory
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, chain, trees
from outpace.setting import setting
from outpace.types import Context, Needs, Outcome, Proposal, View

__all__ = ["Suffix"]


@dataclass(frozen=True)
class Suffix(Method):
    """Suffix decoding. `Request.memory` may be a `SuffixMemory`: outputs of earlier calls are then drafted from too.

    Attributes:
        nodes: most tokens drafted per step.
        max_match: longest end of the text that is matched.
        factor: most tokens drafted per matched token.
        offset: tokens drafted beyond that.
        min_prob: a token is drafted only where counts give the path to it this probability.
        is_tree: draft the likeliest continuations as a tree; else one chain.

    Raises:
        ConfigError: a length below 1, a limit that allows no token, or a probability outside [0, 1].
    """

    nodes: int = setting(16, least=1)
    max_match: int = setting(32, least=1)
    factor: float = setting(4.0, least=0)
    offset: float = 0.0
    min_prob: float = setting(0.1, least=0, most=1)
    is_tree: bool = False

    name: ClassVar[str] = "suffix"
    family: ClassVar[str] = "speculative"
    reads: ClassVar[frozenset[str]] = frozenset()
    summary: ClassVar[str] = "Drafts from counts of what followed the longest matching end of the text."
    paper: ClassVar[Paper] = Paper(
        "SuffixDecoding: Extreme Speculative Decoding for Emerging AI Applications",
        "Oliaro et al.",
        2024,
        "2411.04975",
        None,
        "The hybrid that falls back to a draft model where the score is low.",
    )

    def __post_init__(self) -> None:
        """Hold the settings to their ranges, and the limit to one token or more."""
        super().__post_init__()
        if self.factor * self.max_match + self.offset < 1:
            raise ConfigError(
                f"factor {self.factor} and offset {self.offset} allow no draft.",
                "factor * max_match + offset must be 1 or more.",
            )

    @property
    def needs(self) -> Needs:
        """A causal target that can drop staged entries."""
        return Needs(has_tree=self.is_tree, has_rollback=True, width=self.nodes)

    def start(self, context: Context) -> list[SuffixHistory]:
        """Return a history per row, which begins with its source where the model has an encoder."""
        memory = claim(context, self.name, SuffixMemory)
        rows = zip(context.texts, originals(context), strict=True)
        return [SuffixHistory(self.max_match, len(text), memory, source) for text, source in rows]

    def propose(self, view: View, state: list[SuffixHistory]) -> Proposal:
        """Draft for each row what its counts call likeliest."""
        drafts = []
        for text, room, history in zip(view.texts, view.room, state, strict=True):
            history.extend(text)
            budget = self.nodes if self.is_tree else min(self.nodes, room - 1)
            rule = SuffixRule(budget, self.factor, self.offset, self.min_prob, self.is_tree)
            drafts.append(history.draft(rule) if room > 1 else Draft())
        if self.is_tree:
            return trees(view, [(draft.tokens, draft.parents) for draft in drafts], self.name)
        return chain(view, [draft.tokens for draft in drafts], self.name)

    def observe(self, outcome: Outcome, view: View, state: list[SuffixHistory]) -> list[SuffixHistory]:
        """Take in what was written (the last step's too, which no draft follows, for the memory)."""
        del outcome
        for text, history in zip(view.texts, state, strict=True):
            history.extend(text)
        return state
