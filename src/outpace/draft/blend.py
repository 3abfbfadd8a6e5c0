"""One tree from two sources: what the text itself offers, and a network, which is asked where the text offers little.

The text offers what followed its end the last time, with the chance that such offers have by the length of the match.
Where it is wrong, the next tokens are taken to follow the network's law: a node's chance is the text's chance of it,
and the network's times what the text leaves open. Source: none; matches as in SuffixDecoding (Oliaro et al. 2024, arXiv
2411.04975), chances by length of the context as in prediction by partial matching (Cleary, Witten 1984).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from outpace.draft.suffix import Draft, SuffixRule
from outpace.draft.suffix_history import SuffixHistory
from outpace.run.tree import TokenTree

__all__ = ["Branches", "Followed", "TextOffers", "blend", "extra", "listed"]

# What followed a match came true so often, greedily, in answers of SmolLM2 to the shipped prompts (code, questions,
# summaries, copies; 2,900 tokens): by length of the match, where it had been followed by one token alone.
_LONGER = (2, 3, 4, 6, 10)
_RATES = (0.42, 0.66, 0.77, 0.81, 0.87, 0.92)
_TORN = 0.35  # of a token's share, where several had followed
_PRIOR = 3.0  # drafts by which that is believed
_FADE = 0.95  # of what was counted, per draft of a length
_UNKNOWN, _WORTH = 1.0, 0.5  # tokens that a network's tree brings beyond its scoring: hoped at first, and after a rest
_SMOOTH, _RETRY = 0.2, 0.02
_MARGIN = 1.3  # the network is not asked for what it costs itself; laying out and walking its tree takes time too


@dataclass(slots=True)
class Followed:
    """How often what the text offered came true in a row, by the length of the match; the last entry: where torn.

    Attributes:
        kept, seen: drafts, discounted.
    """

    kept: list[float] = field(default_factory=lambda: [_PRIOR * rate for rate in (*_RATES, _TORN)])
    seen: list[float] = field(default_factory=lambda: [_PRIOR] * (len(_RATES) + 1))

    def chances(self, draft: Draft) -> list[float]:
        """Return the probability that the text reaches each token of a chain."""
        chance, found = 1.0, []
        for share, kind in _steps(draft):
            chance *= share * self.kept[kind] / self.seen[kind]
            found.append(min(1.0, chance))
        return found

    def learn(self, draft: Draft, written: Sequence[int]) -> None:
        """Compare a chain with what was written."""
        for (share, kind), drafted, token in zip(_steps(draft), draft.tokens, written, strict=False):
            # Of a token with a share s, s keeps are expected where all goes as counted.
            self.kept[kind] = _FADE * self.kept[kind] + (drafted == token)
            self.seen[kind] = _FADE * self.seen[kind] + share
            if drafted != token:
                return

    def copy(self) -> Followed:
        """Return an independent copy (a forked row)."""
        return Followed(list(self.kept), list(self.seen))


def _steps(draft: Draft) -> list[tuple[float, int]]:
    """Return each token's share of what followed the token before, and the entry of `Followed` that it counts for."""
    before, found = 1.0, []
    for depth, prob in enumerate(draft.probs):
        share = prob / before
        found.append((share, len(_RATES) if share < 1 else bisect_right(_LONGER, draft.match_len + depth)))
        before = prob
    return found


@dataclass(slots=True)
class TextOffers:
    """One row's text as a source of drafts, and what it is worth to ask the network beside it.

    Attributes:
        history: of the row; None = the text is not asked.
        followed: how often its offers came true.
        worth: tokens that the network's tree usually brings beyond what its scoring costs.
        draft, chances: what was offered last.
    """

    history: SuffixHistory | None
    followed: Followed = field(default_factory=Followed)
    worth: float = _UNKNOWN
    draft: Draft = field(default_factory=Draft)
    chances: list[float] = field(default_factory=list)

    def offer(self, text: Sequence[int], most: int) -> None:
        """Look what followed the text's end before, at most so many tokens."""
        self.draft = Draft()
        if self.history is not None:
            self.history.extend(text)
            if most > 0:
                self.draft = self.history.draft(SuffixRule(most, 4.0, 0.0, 0.1, False))
        self.chances = self.followed.chances(self.draft)

    @property
    def left(self) -> float:
        """The chance that the next token is none that the text offers."""
        return 1.0 - self.chances[0] if self.chances else 1.0

    def asks(self, price: float) -> bool:
        """Return whether the network is asked, which costs so many tokens; if not, it is some steps later."""
        if self.left * self.worth > _MARGIN * price:
            return True
        self.worth += _RETRY * (max(_WORTH, 2 * _MARGIN * price) - self.worth)
        return False

    def asked(self, brought: float) -> None:
        """Count what the network's tree brings."""
        self.worth += _SMOOTH * (brought - self.worth)

    def copy(self) -> TextOffers:
        """Return an independent copy (a forked row)."""
        history = None if self.history is None else self.history.copy()
        return TextOffers(history, self.followed.copy(), self.worth, self.draft, list(self.chances))


@dataclass(slots=True)
class Branches:
    """A row's tree as lists, parents before children.

    Attributes:
        tokens, parents: of the nodes; -1 = the text's end.
        chances: that the walk reaches each node; never rises along a path.
        hopes: the network's part of that before it is trusted or not, with the text's where both have the node; 0 =
            the network does not have it.
    """

    tokens: list[int]
    parents: list[int]
    chances: list[float]
    hopes: list[float]

    def keep(self, order: Sequence[int]) -> Branches:
        """Return some nodes in that order; the parent of each is among them, before it."""
        place = {node: i for i, node in enumerate(order)} | {-1: -1}
        columns = ([values[node] for node in order] for values in (self.tokens, self.parents, self.chances, self.hopes))
        tokens, parents, chances, hopes = columns
        return Branches(tokens, [place[parent] for parent in parents], chances, hopes)  # type: ignore[index,arg-type]

    def copy(self) -> Branches:
        """Return an independent copy (a forked row)."""
        return Branches(list(self.tokens), list(self.parents), list(self.chances), list(self.hopes))


def blend(
    chain: Sequence[int],
    chances: Sequence[float],
    tokens: Sequence[int],
    parents: Sequence[int],
    probs: Sequence[float],
    trust: float,
) -> Branches:
    """Return the union of a chain and a tree, its nodes weighed as the mixture of both.

    Args:
        chain, chances: the text's offer, and the probability of each of its tokens; these do not rise.
        tokens, parents: the network's tree, parents before children.
        probs: the network's probability of each node; never rises along a path.
        trust: the factor on them.
    """
    left = 1.0 - chances[0] if chances else 1.0
    found = Branches(list(chain), list(range(-1, len(chain) - 1)), list(chances), [0.0] * len(chain))
    place, at = {(node - 1, token): node for node, token in enumerate(chain)}, [-1] * len(tokens)
    for node, (token, parent, prob) in enumerate(zip(tokens, parents, probs, strict=True)):
        above = at[parent] if parent >= 0 else -1
        known = place.get((above, token))
        if known is None:
            known = place[above, token] = len(found.tokens)
            found.tokens.append(token)
            found.parents.append(above)
            found.chances.append(0.0)
            found.hopes.append(0.0)
        at[node] = known
        found.hopes[known] = found.chances[known] + left * prob
        found.chances[known] = min(1.0, found.chances[known] + left * trust * prob)
    return found


def listed(tree: TokenTree) -> tuple[list[list[int]], list[list[int]], list[list[float]]]:
    """Return the tokens, the parents and the probabilities of a tree's nodes, per row, without padding."""
    assert tree.score is not None
    columns = (tree.tokens.tolist(), tree.parent.tolist(), tree.score.exp().tolist())
    tokens, parents, probs = ([row[:n] for row, n in zip(rows, tree.length, strict=True)] for rows in columns)
    return tokens, parents, probs


def extra(chances: Sequence[float], seconds: Callable[[int], float], tokens: int) -> float:
    """Return how many tokens the nodes that pay bring beyond those that plain decoding writes in what they take longer.

    Args:
        chances: of a row's nodes.
        seconds: of a forward of so many tokens.
        tokens: in it without these nodes.
    """
    best, written, plain = 0.0, 0.0, seconds(tokens)
    for size, chance in enumerate(sorted(chances, reverse=True), 1):
        written += chance
        best = max(best, written - tokens * (seconds(tokens + size) / plain - 1))
    return best
