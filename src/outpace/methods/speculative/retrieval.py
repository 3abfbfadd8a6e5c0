"""Draft what followed the same words in a corpus of the user's own.

Paper: He et al. (2023), REST, arXiv 2311.08252, section 3.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token, `budget` positions each; a datastore of 6 bytes per corpus token
    (8 above 65,535 ids) that stays on disk, mapped; about 0.1 ms per step and row to look up; an index of the row's own
    text, of about 100 bytes per n-gram and `max_match` n-grams per token.
Differences: occurrences are counted in an evenly spread sample, where the paper's code takes the first ones in order;
    the row's own text is searched too and wins with a match at least as long; without `index` it is the only source,
    which then drafts a chain.
Longer than most: two sources of drafts, of which the longer match wins row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.draft.datastore import Datastore, open_datastore
from outpace.draft.ngram import NgramIndex
from outpace.draft.source import originals
from outpace.errors import ConfigError
from outpace.methods.base import Ids, Method, Paper, chain, trees
from outpace.setting import ordered, setting
from outpace.types import Context, Needs, Proposal, View

__all__ = ["Retrieval", "RetrievalState"]


@dataclass
class RetrievalState:
    """The datastore, shared by all rows, and an index of each row's own text."""

    store: Datastore | None
    history: list[NgramIndex]


@dataclass(frozen=True)
class Retrieval(Method):
    """Retrieval from a datastore.

    Attributes:
        index: the datastore's file, from `outpace index`; "" = only the row's own text.
        has_history: look in the row's own text too.
        draft_len: most tokens per continuation.
        budget: most nodes of the tree.
        max_match: longest ending of the text that is looked up.
        min_match: shortest.
        sample: most occurrences that are counted.

    Raises:
        ConfigError: a number out of range, nothing to retrieve from, or a file that is no sound datastore.
    """

    index: str = ""
    has_history: bool = True
    draft_len: int = setting(10, least=1)
    budget: int = setting(32, least=1)
    max_match: int = setting(16, least=1)
    min_match: int = setting(1, least=1)
    sample: int = setting(256, least=1)

    name: ClassVar[str] = "retrieval"
    family: ClassVar[str] = "speculative"
    reads: ClassVar[frozenset[str]] = frozenset()
    summary: ClassVar[str] = "Drafts a tree of what followed the same tokens in a corpus, or in the text itself."
    paper: ClassVar[Paper] = Paper(
        "REST: Retrieval-Based Speculative Decoding",
        "He et al.",
        2023,
        "2311.08252",
        command='outpace generate "Once upon a time" --method retrieval -o index=FILE',
    )

    def __post_init__(self) -> None:
        """Hold the settings to their ranges and order, and see that there is something to retrieve from."""
        super().__post_init__()
        ordered(self, "min_match", "max_match")
        if not self.index and not self.has_history:
            raise ConfigError(
                "There is nothing to retrieve from.", "Set index=FILE; outpace index CORPUS --out FILE makes one."
            )
        if self.index:
            open_datastore(self.index)

    @property
    def needs(self) -> Needs:
        """A causal target that can drop staged entries, and takes trees where there is a datastore."""
        if not self.index:
            return Needs(has_rollback=True, width=self.draft_len)
        return Needs(has_tree=True, has_rollback=True, width=max(self.budget, self.draft_len))

    def start(self, context: Context) -> RetrievalState:
        """Open the datastore and see that it speaks the target's vocabulary.

        Raises:
            ConfigError: it was made with another tokenizer.
        """
        store = open_datastore(self.index) if self.index else None
        if store is not None:
            store.check(context.target.capabilities.vocab_size, context.tokenizers.get("target"))
        sources = originals(context)
        return RetrievalState(store, [NgramIndex(self.min_match, self.max_match, source) for source in sources])

    def propose(self, view: View, state: RetrievalState) -> Proposal:
        """Draft the most frequent continuations of the longest match; a match as long in the row's own text wins."""
        rows = zip(view.texts, view.room, state.history, strict=True)
        own = [
            index.follow(text, max(0, min(self.draft_len, room - 1))) if self.has_history else ([], 0)
            for text, room, index in rows
        ]
        if state.store is None:
            return chain(view, [tokens for tokens, _ in own], self.name)
        whole = [index.whole(text) for index, text in zip(state.history, view.texts, strict=True)]
        found = zip(whole, view.room, own, strict=True)
        return trees(view, [self._longer(state.store, *one) for one in found], self.name)

    def _longer(self, store: Datastore, text: list[int], room: int, own: tuple[list[int], int]) -> tuple[Ids, Ids]:
        """Return the row's own continuation where its match is as long as any in the datastore, else the tree."""
        tokens, matched = own
        match = store.find(text, max(self.min_match, matched + 1), self.max_match)
        if match.length <= matched:
            return tokens, range(-1, len(tokens) - 1)
        found = store.follow(match, min(self.draft_len, room - 1), self.budget, self.sample)
        return found.tokens, found.parent
