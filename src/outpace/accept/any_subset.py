"""Drafts of many places at once, verified by one pass in an order: any-subset speculation, and bursts by rejection.

Sources: Guo and Ermon (2025), ASSD, arXiv 2504.20456: drafts drawn side by side are kept by the ratio rule, and what
is rejected is drawn from the residual, so the text has the law of drawing in that order one by one. Pannatier et al.
(2024), sigma-GPT, arXiv 2404.09562: a burst is cut at the first rejection, and nothing is drawn in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from outpace.errors import ConfigError

__all__ = ["Burst", "Chance", "Laws", "keep_drafts", "write_places"]

Law = Sequence[float]
Laws = Callable[[list[int], list[int], int], list[Law]]
"""Laws [T - known] of the open places in an order: of texts by place, the order, and how many places are known."""


class Chance(Protocol):
    """Where randomness comes from."""

    def __call__(self, probs: Law) -> int:
        """Return an index, drawn with these probabilities (they sum to 1)."""
        ...


@dataclass(slots=True)
class Burst:
    """A written text.

    Attributes:
        tokens: [T], by place.
        calls: passes of the network: with `exact` never more than places written, else at most twice as many.
    """

    tokens: list[int]
    calls: int


def write_places(
    tokens: Sequence[int],
    order: list[int],
    known: int,
    side: Laws,
    joint: Laws,
    chance: Chance,
    *,
    exact: bool = True,
    most: int = 0,
) -> Burst:
    """Write all open places of a text.

    Args:
        tokens: [T], by place; anything at the open ones.
        order: a permutation of the places, known ones first.
        known: how many are known.
        side: laws of the open places as if each came next.
        joint: laws of the open places in the order, each knowing those before it.
        chance: draws.
        exact: draw what is rejected from the residual (ASSD); else leave it to the next burst (sigma-GPT), whose text
            has another law wherever the drafts' law differs.
        most: places in a burst; 1 = ordinary sampling, 0 = all that are open.

    Raises:
        ConfigError: a burst of fewer than 0 places.
    """
    if most < 0:
        raise ConfigError(f"most is {most}.", "Give places in a burst, or 0 for all that are open.")
    text, calls, size = list(tokens), 0, len(order)
    while known < size:
        drafts = side(text, order, known)
        calls += 1
        stop = min(size, known + most) if most else size
        drafts = drafts[: stop - known]
        for place, law in zip(order[known:stop], drafts, strict=True):
            text[place] = chance(law)
        known += 1  # the first draft's law is the target's
        if known == stop:
            continue
        targets = joint(text, order, known - 1)[1 : stop - known + 1]
        calls += 1
        tested = order[known:stop]
        kept = keep_drafts(
            [text[place] for place in tested],
            targets,
            drafts[1:],
            lambda _, keep: chance([1 - keep, keep]) == 1,
            (lambda _, law: chance(law)) if exact else None,
        )
        for place, token in zip(tested, kept, strict=False):
            text[place] = token
        known += len(kept)
    return Burst(text, calls)


def keep_drafts(
    tokens: Sequence[int],
    targets: Sequence[Law],
    drafts: Sequence[Law],
    is_kept: Callable[[int, float], bool],
    redraw: Callable[[int, Law], int] | None,
) -> list[int]:
    """Return the tokens that stand after the ratio rule: drafts up to the first rejection, and what is drawn for it.

    Args:
        tokens: [N] drafts in the order.
        targets: [N] laws given all before them.
        drafts: [N] laws that they were drawn from.
        is_kept: says with a probability whether draft i stays.
        redraw: draws a token in place of draft i; None = nothing is drawn.
    """
    kept = list[int]()
    for at, (token, target, draft) in enumerate(zip(tokens, targets, drafts, strict=True)):
        if not is_kept(at, min(1.0, target[token] / draft[token])):
            return kept if redraw is None else [*kept, redraw(at, _residual(target, draft))]
        kept.append(token)
    return kept


def _residual(target: Law, draft: Law) -> list[float]:
    left = [max(0.0, a - b) for a, b in zip(target, draft, strict=True)]
    total = sum(left)
    return [part / total for part in left] if total > 0 else list(target)
