"""Draft what followed the same words before, in the source, the prompt or the output.

Paper: Saxena (2023), Prompt Lookup Decoding (a repository, no paper).
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token; an index of about 100 bytes per n-gram of the text.
Differences: the longest match wins and the most recent of those; the original takes the first from the left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.draft.ngram import NgramIndex
from outpace.draft.source import originals
from outpace.methods.base import Method, Paper, chain
from outpace.setting import ordered, setting
from outpace.types import Context, Needs, Outcome, Proposal, View

__all__ = ["PromptLookup"]


@dataclass(frozen=True)
class PromptLookup(Method):
    """Prompt lookup.

    Attributes:
        draft_len: most tokens drafted per step.
        max_ngram: longest ending of the text that is looked up.
        min_ngram: shortest.

    Raises:
        ConfigError: a length is below 1, or min_ngram exceeds max_ngram.
    """

    draft_len: int = setting(10, least=1)
    max_ngram: int = setting(4, least=1)
    min_ngram: int = setting(1, least=1)

    name: ClassVar[str] = "prompt-lookup"
    family: ClassVar[str] = "speculative"
    reads: ClassVar[frozenset[str]] = frozenset()
    summary: ClassVar[str] = "Drafts what followed the same tokens earlier in prompt or output."
    paper: ClassVar[Paper] = Paper("Prompt Lookup Decoding", "Saxena", 2023)

    def __post_init__(self) -> None:
        """Hold the settings to their ranges and order."""
        super().__post_init__()
        ordered(self, "min_ngram", "max_ngram")

    @property
    def needs(self) -> Needs:
        """A causal target that can drop staged entries."""
        return Needs(has_rollback=True, width=self.draft_len)

    def start(self, context: Context) -> list[NgramIndex]:
        """Return an index per row, which holds its source where the model has an encoder."""
        return [NgramIndex(self.min_ngram, self.max_ngram, source) for source in originals(context)]

    def propose(self, view: View, state: list[NgramIndex]) -> Proposal:
        """Draft the tokens after the longest, most recent match."""
        drafts = []
        for text, room, index in zip(view.texts, view.room, state, strict=True):
            whole = index.whole(text)
            index.extend(whole)
            at = index.lookup(whole)
            drafts.append([] if at is None else whole[at : at + min(self.draft_len, room - 1)])
        return chain(view, drafts, self.name)

    def observe(self, outcome: Outcome, view: View, state: list[NgramIndex]) -> list[NgramIndex]:
        """Index what is final: the prompt before the first step, then what was written."""
        del outcome
        for text, index in zip(view.texts, state, strict=True):
            index.extend(index.whole(text))
        return state
