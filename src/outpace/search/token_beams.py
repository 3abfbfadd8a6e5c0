"""Beams over tokens for searches that look at them: the rules of `beam-search`, with a merit beside the likelihood.

Every step writes one token of each beam, which tells the likeliest tokens there; another of them in its place costs
nothing, as the last token of a text has no entry yet. What the merit adds decides which texts go on and which of those
that ended are best; a text's log-probability is never changed by it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.methods.base import Method
from outpace.methods.registry import load_method
from outpace.search.base import Found, Search
from outpace.search.table import Leaf, Table
from outpace.setting import setting

__all__ = ["Beam", "Merits", "TokenBeams"]

Merits = Generator[None, None, list[float]]
_NEVER = float("-inf")


@dataclass(slots=True, eq=False)
class Beam:
    """A text, its log-probability as beams see it, and what the search makes of it."""

    leaf: Leaf
    total: float
    worth: float = 0.0


@dataclass(frozen=True)
class TokenBeams(Search):
    """Beam search whose beams are looked at; without a merit it is `beam-search`.

    Attributes:
        beams: texts that go on.
        length_penalty: a text's log-probability is divided by its number of tokens to this power.
        width: candidates of a step that are looked at, the likeliest; at least as many as beam search needs.

    Raises:
        ConfigError: a number out of range.
    """

    takes_likeliest: ClassVar[bool] = True
    beams: int = setting(4, least=1)
    length_penalty: float = setting(1.0, is_finite=True)
    width: int = setting(0, least=0)

    @property
    def num_rows(self) -> int:
        """All candidates of a step, and the beams that they come from."""
        return self.num_choices + 2 * self.beams

    @property
    def num_choices(self) -> int:
        """As many as beams may need where some of them end, or are looked at."""
        return max(4 * self.beams, self.width)

    def reference(self) -> Method:
        """Return beam search."""
        return load_method("beam-search").from_settings({"beams": self.beams, "length_penalty": self.length_penalty})

    def merits(self, table: Table, leaves: Sequence[Leaf]) -> Merits:
        """Return what is added to the likelihood of some texts per token; -inf = it may not go on, nor be found."""
        yield from ()
        del table
        return [0.0] * len(leaves)

    def search(self, table: Table) -> Found:
        """Search as `beam-search` does, for as long as a text that goes on may become better than those that ended."""
        beams, ended, refused = [Beam(table.sample(0), 0.0)], list[Beam](), list[Beam]()
        while beams:
            last = beams[0]
            candidates = yield from self._candidates(table, beams)
            merits = yield from self.merits(table, [one.leaf for one in candidates])
            for one, merit in zip(candidates, merits, strict=True):
                one.worth = one.total / len(one.leaf.written) ** self.length_penalty + merit
            alive = [one for one in candidates if one.worth > _NEVER]
            refused += [one for one in candidates[: self.beams] if one.leaf.is_over and one.worth == _NEVER]
            if any(merits):  # where nothing is added, the order is that of the likelihoods, to the last bit
                alive.sort(key=lambda one: -one.worth)
            fresh = [one for one in alive[: self.beams] if one.leaf.is_over]
            ended = sorted([*ended, *fresh], key=lambda one: -one.worth)[: self.beams]
            beams = [one for one in alive if not one.leaf.is_over][: self.beams]
            if len(ended) == self.beams and beams and beams[0].worth <= ended[-1].worth:
                break
        if ended:
            return table.best([one.leaf for one in ended], [one.worth for one in ended], 1)
        table.notes.append(
            f"The search {self.name} found no text that may be returned: this is the best of the others."
        )
        if not refused:
            return (yield from table.write([last.leaf]))
        worth = [one.total / len(one.leaf.written) ** self.length_penalty for one in refused]
        return table.best([one.leaf for one in refused], worth, 1)

    def _candidates(self, table: Table, beams: Sequence[Beam]) -> Generator[None, None, list[Beam]]:
        """Return the likeliest texts of one token more."""
        leaves = yield from table.write([beam.leaf for beam in beams], tokens=1)
        found = list[tuple[float, int, int]]()
        for at, (beam, leaf) in enumerate(zip(beams, leaves, strict=True)):
            found += [(beam.total + law, at, token) for token, law, _ in (leaf.row.choices or [[]])[-1]]
        found.sort(key=lambda one: -one[0])
        count = max(self.width, self.beams * max(2, 1 + len(leaves[0].row.end_tokens)))
        return [Beam(table.instead(beams[at].leaf, leaves[at], token), sum_) for sum_, at, token in found[:count]]

    def reduced(self) -> Search:
        """Return the search as it is: `beam-search`."""
        return replace(self)
