"""From a whole text to what an insertion network sees of it, and what it should add there: no network, exact.

A *state* is a text with some tokens left out; slot s lies before its token s, the last slot behind all. What should be
added is a list of (slot, token, weight); the token V, "nothing", closes a slot.

Sources: stages by house robber: Zhang et al. (2020), arXiv 2005.00558 (POINTER), section 3.1; stages that grow
from given tokens: Hsieh, Lee, Lim (2021), arXiv 2103.09548 (ENCONTER), section 4; targets around a slot's middle: Stern
et al. (2019), arXiv 1902.03249 (Insertion Transformer), equation 14; labels of edits: Gu, Wang, Zhao (2019), arXiv
1905.11006 (Levenshtein Transformer), section 3.1.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

__all__ = ["Label", "droppable", "edits", "grown", "insertions", "matched", "spans", "spread", "stages"]

Label = tuple[int, int, float]  # slot, token, weight


def droppable(weights: Sequence[float], is_fixed: Sequence[bool]) -> list[bool]:
    """Return the set of places of the largest sum of weights that holds no two neighbours and nothing fixed.

    Args:
        weights: how gladly each token is left out, above 0.
        is_fixed: never left out.
    """
    # best[i] = (sum without place i - 1, sum with it), over the first i places: house robber.
    best = [(0.0, -math.inf)]
    for weight, fixed in zip(weights, is_fixed, strict=True):
        without, taken = best[-1]
        best.append((max(without, taken), -math.inf if fixed else without + weight))
    found, at = [False] * len(weights), len(weights)
    while at:
        without, taken = best[at]
        found[at - 1] = taken > without
        at -= 1
        if found[at] and at:
            at -= 1  # its neighbour stays
    return found


def stages(importance: Sequence[float], is_fixed: Sequence[bool], least: int = 0) -> list[list[int]]:
    """Return the places kept at each stage, the whole text first.

    From stage to stage no two neighbours are left out, the least important first, until nothing but fixed tokens, or no
    more than `least` tokens, are left. So each stage follows from the next one by one token at most in each slot.
    """
    kept, found = list(range(len(importance))), [list(range(len(importance)))]
    most = max(importance, default=0.0)
    while len(kept) > least and not all(is_fixed[at] for at in kept):
        # A unit each: of two sets of nearly equal importance the larger one goes.
        gone = droppable([1.0 + most - importance[at] for at in kept], [is_fixed[at] for at in kept])
        kept = [at for at, drops in zip(kept, gone, strict=True) if not drops]
        found.append(kept)
    return found


def grown(importance: Sequence[float], given: Sequence[int]) -> list[list[int]]:
    """Return the places of each stage that grows from given ones, the whole text first, as `stages` does.

    From stage to stage every slot where something is missing gets its most important token, so that a slot is left
    empty only where nothing is missing: a network that learns it seldom says "nothing" too early.
    """
    kept, found = sorted(given), [sorted(given)]
    while len(kept) < len(importance):
        added = (max(span, key=lambda at: importance[at]) for span in spans(kept, len(importance)) if span)
        kept = sorted([*kept, *added])
        found.append(kept)
    return found[::-1]


def spans(kept: Sequence[int], length: int) -> list[range]:
    """Return per slot of a state which places of the text are missing there."""
    borders = [-1, *kept, length]
    return [range(a + 1, b) for a, b in itertools.pairwise(borders)]


def insertions(text: Sequence[int], kept: Sequence[int], wanted: Sequence[int], nothing: int) -> list[Label]:
    """Return what leads from a state to a fuller one, which has one more token at most in each slot.

    Args:
        text: the whole text.
        kept, wanted: places of the state and of the fuller one.
        nothing: V.
    """
    added = {bisect.bisect_left(kept, at): text[at] for at in set(wanted) - set(kept)}
    return [(slot, added.get(slot, nothing), 1.0) for slot in range(len(kept) + 1)]


def spread(text: Sequence[int], kept: Sequence[int], nothing: int, temperature: float = 1.0) -> list[Label]:
    """Return the missing tokens of each slot, those around its middle the most; "nothing" where none is missing."""
    found: list[Label] = []
    for slot, missing in enumerate(spans(kept, len(text))):
        if not missing:
            found.append((slot, nothing, 1.0))
            continue
        middle = (missing[0] + missing[-1]) / 2
        weights = [math.exp(-abs(middle - at) / temperature) for at in missing]
        found += [(slot, text[at], weight / sum(weights)) for at, weight in zip(missing, weights, strict=True)]
    return found


def matched(phrases: Sequence[Sequence[int]], text: Sequence[int]) -> list[int] | None:
    """Return the places where phrases stand in a text, in order and each in one piece, leftmost; None = they do not."""
    found, at = list[int](), 0
    for phrase in phrases:
        size = len(phrase)
        starts = (place for place in range(at, len(text) - size + 1) if list(text[place : place + size]) == [*phrase])
        start = next(starts, None)
        if start is None:
            return None
        found += range(start, start + size)
        at = start + size
    return found


def edits(state: Sequence[int], text: Sequence[int], is_given: Sequence[bool]) -> tuple[list[bool], list[list[int]]]:
    """Return the fewest deletions and insertions that turn a state into a text, where given tokens stay.

    Returns:
        Whether each token of the state stays, and per slot of what stays the tokens that are missing there. Where the
        given tokens cannot all stay, none of the state's other tokens does, and the text comes behind them.
    """
    rows, size = len(state), len(text)
    # most[i][j]: tokens that can stay of state[i:] when text[j:] is to come; -inf = a given one would go.
    most = [[0.0] * (size + 1) for _ in range(rows + 1)]
    for i in range(rows - 1, -1, -1):
        for j in range(size, -1, -1):
            drops = -math.inf if is_given[i] else most[i + 1][j]
            skips = most[i][j + 1] if j < size else -math.inf
            keeps = 1 + most[i + 1][j + 1] if j < size and state[i] == text[j] else -math.inf
            most[i][j] = max(drops, skips, keeps)
    if most[0][0] == -math.inf:
        return list(is_given), [*([] for given in is_given if given), list(text)]
    stays, missing, i, j = [False] * rows, [list[int]()], 0, 0
    while i < rows or j < size:
        if i < rows and j < size and state[i] == text[j] and most[i][j] == 1 + most[i + 1][j + 1]:
            stays[i] = True
            missing.append([])
            i, j = i + 1, j + 1
        elif i < rows and not is_given[i] and most[i][j] == most[i + 1][j]:
            i += 1
        else:
            missing[-1].append(text[j])
            j += 1
    return stays, missing
