"""Drafts from a lattice: several likely texts of a one-pass model, and a tree of what follows in them.

Source: Ge et al. (2022), arXiv 2205.10350, whose drafter gives one text; here a graph or CTC gives several. They mostly
differ in a word or two, so that their continuations share most of their nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outpace.draft.copying import Copy
from outpace.draft.whole import spelled
from outpace.models.nar.model import NarModel, outputs_of
from outpace.models.one_pass import whole_laws
from outpace.types import Context, View

__all__ = ["Versions", "VersionsOf", "likely_texts", "merged"]


def likely_texts(context: Context, count: int, role: str = "draft") -> list[list[list[int]]]:
    """Return per joining row up to `count` texts that a one-pass model finds likely, ends included, likeliest first.

    The network runs once for all rows, which is counted as one draft forward. A model without a lattice gives one text.
    """
    context, ours = spelled(context, role)
    model, cache = context.models[role], context.cache_for(role)
    cache.counter.add(sum(map(len, context.sources)), 1)
    first = [law.argmax(-1).tolist() for law in whole_laws(cache)]
    if not isinstance(model, NarModel) or count == 1:
        return [[ours(text)] for text in first]
    is_place, outputs = outputs_of(cache)
    rows = zip(first, model.net.texts(outputs, is_place, count), strict=True)
    return [_distinct([ours(text), *(ours([*other, model.end]) for other in others)])[:count] for text, others in rows]


def _distinct(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    return [list(text) for text in dict.fromkeys(map(tuple, texts))]


class Versions:
    """Texts of one row, each copied by itself: those whose place is known come first in the tree.

    Args:
        texts: of the drafter, likeliest first.
        largest: tokens of the longest ending that is looked up in them.
        passed: tokens that stand before a text, not in it.
    """

    def __init__(self, texts: Sequence[Sequence[int]], largest: int, passed: frozenset[int]) -> None:
        self.copies = [Copy(text, largest, passed=passed) for text in texts]

    def write(self, tokens: Sequence[int]) -> None:
        """Take in tokens that were written."""
        for copy in self.copies:
            copy.write(tokens)

    def tree(self, depth: int, nodes: int) -> tuple[list[int], list[int]]:
        """Return what follows in the texts, `depth` tokens at most, as tokens and parents (-1 = the last final one)."""
        ranked = sorted(self.copies, key=lambda copy: copy.num_lost)
        return merged([copy.ahead(depth) for copy in ranked], nodes)

    def copy(self) -> Versions:
        """Return an independent copy (a forked row)."""
        other = Versions([], 1, frozenset())
        other.copies = [copy.copy() for copy in self.copies]
        return other


def merged(chains: Sequence[Sequence[int]], nodes: int) -> tuple[list[int], list[int]]:
    """Merge chains into a tree of at most `nodes` nodes, the first chain whole before the next one's branches."""
    tokens, parents = list[int](), list[int]()
    known: dict[tuple[int, int], int] = {}
    for chain in chains:
        at = -1
        for token in chain:
            if (at, token) not in known:
                if len(tokens) == nodes:
                    break
                known[at, token] = len(tokens)
                tokens.append(token)
                parents.append(at)
            at = known[at, token]
    return tokens, parents


@dataclass
class VersionsOf:
    """What each row of a run copies.

    Attributes:
        versions: per row.
        seen: tokens of each row's text that were taken in.
    """

    versions: list[Versions]
    seen: list[int]

    def reach(self, view: View, most: Sequence[int]) -> list[int]:
        """Return how many tokens ahead each row may draft."""
        return [max(0, min(limit, room - 1)) for limit, room in zip(most, view.room, strict=True)]

    def trees(self, view: View, reach: Sequence[int], nodes: int) -> list[tuple[list[int], list[int]]]:
        """Take in what was written, and return each row's tree."""
        for row, (versions, text) in enumerate(zip(self.versions, view.texts, strict=True)):
            versions.write(text[self.seen[row] :])
            self.seen[row] = len(text)
        return [versions.tree(depth, nodes) for versions, depth in zip(self.versions, reach, strict=True)]
