"""Draft what followed the same words in a corpus of the user's own.

Paper: He et al. (2023), REST, arXiv 2311.08252, section 3.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token, `budget` positions each; a datastore of 6 bytes per corpus token
    (8 above 65,535 ids) that stays on disk, mapped; about 0.1 ms per step and row to look up; an index of the row's own
    text, of about 100 bytes per n-gram and `max_match` n-grams per token.
Differences: occurrences are counted in an evenly spread sample, where the paper's code takes the first ones in order;
    the row's own text is searched too and wins with a match at least as long; without `index` it is the only source,
    which then drafts a chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from outpace.draft.datastore import Continuations, Datastore, fingerprint, open_datastore
from outpace.draft.ngram import NgramIndex
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, as_device, chain, nothing
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
    draft_len: int = 10
    budget: int = 32
    max_match: int = 16
    min_match: int = 1
    sample: int = 256

    name: ClassVar[str] = "retrieval"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "Drafts a tree of what followed the same tokens in a corpus, or in the text itself."
    paper: ClassVar[Paper] = Paper(
        "REST: Retrieval-Based Speculative Decoding",
        "He et al.",
        2023,
        "2311.08252",
        command='outpace generate "Once upon a time" --method retrieval -o index=FILE',
    )

    def __post_init__(self) -> None:
        if min(self.draft_len, self.budget, self.sample) < 1:
            raise ConfigError(
                f"draft_len is {self.draft_len}, budget {self.budget} and sample {self.sample}.",
                "All three must be 1 or more.",
            )
        if not 1 <= self.min_match <= self.max_match:
            raise ConfigError(
                f"min_match is {self.min_match} and max_match {self.max_match}.", "Use 1 <= min_match <= max_match."
            )
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
            _check_vocabulary(store, context)
        return RetrievalState(store, [NgramIndex(self.min_match, self.max_match) for _ in context.texts])

    def propose(self, view: View, state: RetrievalState) -> Proposal:
        """Draft the most frequent continuations of the longest match."""
        rows = zip(view.texts, view.room, state.history, strict=True)
        found = [self._own(text, min(self.draft_len, room - 1), index) for text, room, index in rows]
        if state.store is None:
            return chain(view, [drafts for drafts, _ in found], self.name)
        trees = [
            self._retrieved(state.store, text, min(self.draft_len, room - 1), *own)
            for text, room, own in zip(view.texts, view.room, found, strict=True)
        ]
        return _side_by_side(view, trees, self.name)

    def _own(self, text: list[int], depth: int, index: NgramIndex) -> tuple[list[int], int]:
        """Return what followed the longest, most recent match in the row's own text, and how long the match is."""
        if not self.has_history:
            return [], 0
        index.extend(text)
        at = index.lookup(text)
        if at is None:
            return [], 0
        length = self.min_match
        while length < self.max_match and length < at and text[at - length - 1] == text[-length - 1]:
            length += 1
        return text[at : at + max(0, depth)], length

    def _retrieved(self, store: Datastore, text: list[int], depth: int, own: list[int], matched: int) -> Continuations:
        """Return the row's own continuation where its match is as long as any in the datastore, else the tree."""
        match = store.find(text, max(self.min_match, matched + 1), self.max_match)
        if match.length <= matched:
            size = len(own)
            return Continuations(np.array(own, np.int64), np.arange(-1, size - 1), np.ones(size, np.int64))
        return store.follow(match, depth, self.budget, self.sample)


def _check_vocabulary(store: Datastore, context: Context) -> None:
    tokenizer = context.tokenizers.get("target")
    is_other = tokenizer is not None and any(store.fingerprint) and store.fingerprint != fingerprint(tokenizer)
    if is_other or store.vocab_size > context.target.capabilities.vocab_size:
        raise ConfigError(
            f"The datastore {store.path!r} was made with another tokenizer than this model's.",
            "Make one for this model with outpace index CORPUS --model MODEL --out FILE.",
        )


def _side_by_side(view: View, trees: list[Continuations], origin: str) -> Proposal:
    """Return one tree per row, padded to the largest."""
    length = [len(tree.tokens) for tree in trees]
    if max(length) == 0:
        return nothing(view)
    tokens, parent = np.zeros((2, len(trees), max(length)), np.int64)
    for row, tree in enumerate(trees):
        tokens[row, : length[row]], parent[row, : length[row]] = tree.tokens, tree.parent
    both = as_device(torch.from_numpy(tokens), view), as_device(torch.from_numpy(parent), view)
    return Proposal(both[0], length, both[1], origin=origin)
