"""Every substring of a growing text with its count, and drafts that continue the text's end as it went on before.

The structure is a suffix automaton: one state per set of substrings that end at the same places, at most two states per
token, and amortised constant time per token appended, whatever the length of the text. Counts are kept for substrings
of up to `depth` tokens, which bounds the work per token on text that repeats itself.

Source: Blumer et al. (1985), The Smallest Automaton Recognizing the Subwords of a Text; the drafting rule is that of
SuffixDecoding (Oliaro et al. 2024, arXiv 2411.04975).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Draft", "Place", "SuffixCounts", "SuffixRule", "Tip"]

_ROOT = 0  # the empty substring


@dataclass(slots=True)
class Draft:
    """Drafted tokens, likeliest first, parents before children.

    Attributes:
        tokens: of the nodes.
        parents: index of each node's parent, -1 = the end of the text.
        probs: estimated probability that the text reaches each node.
        match_len: tokens of context that the estimate rests on.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    probs: list[float] = field(default_factory=list)
    match_len: int = 0

    @property
    def score(self) -> float:
        """Expected number of drafts that come true."""
        return sum(self.probs)


@dataclass(frozen=True, slots=True)
class SuffixRule:
    """How much is drafted.

    Attributes:
        budget: most nodes.
        factor, offset: at most `factor * match length + offset` nodes.
        min_prob: least estimated probability of the path to a node.
        is_tree: the likeliest nodes as a tree; else the likeliest token at each step as a chain.
    """

    budget: int
    factor: float
    offset: float
    min_prob: float
    is_tree: bool

    def limit(self, match_len: int) -> int:
        """Return the most nodes drafted after a match of that length."""
        return int(min(self.budget, self.factor * match_len + self.offset + 1e-6))


@dataclass(slots=True)
class Place:
    """A substring in an automaton: the state it belongs to and its length."""

    state: int = _ROOT
    length: int = 0

    def copy(self) -> Place:
        """Return an independent copy."""
        return Place(self.state, self.length)


@dataclass(slots=True)
class Tip:
    """The end of a sequence in an automaton: its state, and its longest suffix that is counted."""

    last: int = _ROOT
    counted: Place = field(default_factory=Place)

    def copy(self) -> Tip:
        """Return an independent copy."""
        return Tip(self.last, self.counted.copy())


class SuffixCounts:
    """Substrings of one or more sequences, with counts of those of up to `depth` tokens.

    Args:
        depth: longest substring counted, and longest match.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.num_tokens = 0
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self._count = [0]

    def append(self, tip: Tip, token: int) -> None:
        """Append a token to the sequence that ends at `tip`, and move the tip."""
        tip.last = self._extend(tip.last, token)
        counted = tip.counted
        state = self._next[self._settle(counted)][token]
        counted.state, counted.length = state, min(counted.length + 1, self.depth)
        state = self._settle(counted)
        link, count = self._link, self._count
        while state >= 0:  # every suffix occurs once more
            count[state] += 1
            state = link[state]
        self.num_tokens += 1

    def advance(self, place: Place, token: int) -> None:
        """Move to the longest known substring that ends with the place's own substring and the token."""
        follows, link = self._next, self._link
        state = self._settle(place)
        while token not in follows[state]:
            state = link[state]
            if state < 0:
                place.state, place.length = _ROOT, 0
                return
        length = place.length if state == place.state else self._length[state]
        place.state, place.length = follows[state][token], min(length + 1, self.depth)
        self._settle(place)

    def count(self, tokens: Sequence[int]) -> int:
        """Return how often a substring of at most `depth` tokens occurs."""
        state: int | None = _ROOT
        for token in tokens:
            state = self._next[state].get(token) if state is not None else None
        return 0 if state is None else self._count[state]

    def draft(self, place: Place, rule: SuffixRule, best: Draft) -> Draft:
        """Return the draft with the highest score over all suffixes of a place, or `best` if none is better."""
        state, length = self._settle(place), place.length
        while state > _ROOT:
            limit = rule.limit(length)
            if best.score >= limit:  # shorter matches may draft less, and no node counts for more than one
                break
            found = self._tree(state, length, limit, rule) if rule.is_tree else self._chain(state, length, limit, rule)
            if found.score > best.score:
                best = found
            state = self._link[state]
            length = self._length[state]
        return best

    def copy(self) -> SuffixCounts:
        """Return an independent copy (a forked row)."""
        other = SuffixCounts(self.depth)
        other.num_tokens = self.num_tokens
        other._next = [dict(follows) for follows in self._next]
        other._link, other._length, other._count = list(self._link), list(self._length), list(self._count)
        return other

    def _extend(self, last: int, token: int) -> int:
        """Return the state of the sequence that ends in state `last`, longer by a token."""
        follows, link, length = self._next, self._link, self._length
        found = follows[last].get(token)
        if found is not None:  # another sequence went the same way
            return found if length[found] == length[last] + 1 else self._split(found, last, token)
        state = self._add({}, length[last] + 1, -1, 0)
        at = last
        while at >= 0 and token not in follows[at]:
            follows[at][token] = state
            at = link[at]
        if at < 0:
            link[state] = _ROOT
        else:
            found = follows[at][token]
            link[state] = found if length[found] == length[at] + 1 else self._split(found, at, token)
        return state

    def _split(self, state: int, at: int, token: int) -> int:
        """Give the shorter substrings of a state, which are about to end elsewhere too, a state of their own."""
        follows, link = self._next, self._link
        short = self._add(dict(follows[state]), self._length[at] + 1, link[state], self._count[state])
        link[state] = short
        while at >= 0 and follows[at].get(token) == state:
            follows[at][token] = short
            at = link[at]
        return short

    def _add(self, follows: dict[int, int], length: int, link: int, count: int) -> int:
        self._next.append(follows)
        self._link.append(link)
        self._length.append(length)
        self._count.append(count)
        return len(self._link) - 1

    def _settle(self, place: Place) -> int:
        """Return the state of a place's substring, which a split or a cut to `depth` may have moved to a link."""
        state, length, lengths, link = place.state, place.length, self._length, self._link
        while state > _ROOT and lengths[link[state]] >= length:
            state = link[state]
        place.state = state
        return state

    def _chain(self, state: int, length: int, limit: int, rule: SuffixRule) -> Draft:
        """Follow the most frequent token while the path is likely enough."""
        follows, count, step = self._next, self._count, self._step
        draft, prob = Draft(match_len=length), 1.0
        for parent in range(-1, limit - 1):
            if not follows[state]:
                break
            if len(follows[state]) == 1:
                [(token, after)] = follows[state].items()
                state, length = step(after, length)
            else:
                steps = [(token, *step(after, length)) for token, after in follows[state].items()]
                token, state, length = max(steps, key=lambda one: count[one[1]])
                prob *= count[state] / sum(count[after] for _, after, _ in steps)
            if prob < rule.min_prob:
                break
            draft.tokens.append(token)
            draft.parents.append(parent)
            draft.probs.append(prob)
        return draft

    def _tree(self, state: int, length: int, limit: int, rule: SuffixRule) -> Draft:
        """Take the likeliest paths, best first."""
        draft = Draft(match_len=length)
        tokens, parents, probs, least = draft.tokens, draft.parents, draft.probs, rule.min_prob
        heap: list[tuple[float, int, int, int, int, int]] = []
        prob, parent, serial = 1.0, -1, 0
        follows, count, step = self._next, self._count, self._step
        while True:
            while len(follows[state]) == 1 and len(tokens) < limit:  # the path stays as likely as it is: no queue
                [(token, after)] = follows[state].items()
                state, length = step(after, length)
                tokens.append(token)
                parents.append(parent)
                probs.append(prob)
                parent = len(tokens) - 1
            if len(tokens) >= limit:
                return draft
            if follows[state]:
                steps = [(token, *step(after, length)) for token, after in follows[state].items()]
                share = prob / sum(count[after] for _, after, _ in steps)
                for token, after, size in steps:
                    likely = share * count[after]
                    if likely >= least:
                        heapq.heappush(heap, (-likely, serial, token, parent, after, size))
                        serial += 1
            if not heap:
                return draft
            negative, _, token, above, state, length = heapq.heappop(heap)
            prob = -negative
            tokens.append(token)
            parents.append(above)
            probs.append(prob)
            parent = len(tokens) - 1

    def _step(self, after: int, length: int) -> tuple[int, int]:
        """Return state and length of a context that grew into state `after`, cut to its last `depth` tokens."""
        if length < self.depth:
            return after, length + 1
        link = self._link[after]
        return (link if self._length[link] >= self.depth else after), self.depth
