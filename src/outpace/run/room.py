"""What a step may stage where pages are few: drafts only as far as pages are left, tokens of the texts in any case."""

from __future__ import annotations

from collections.abc import Sequence

from outpace.cache import PagedCache
from outpace.errors import NoPages

__all__ = ["affordable", "check_room"]


def check_room(cache: PagedCache, texts: Sequence[Sequence[int]], pieces: Sequence[Sequence[int]]) -> None:
    """See that the next tokens of all rows have pages; what nobody needs is evicted for them.

    Args:
        cache: of all rows.
        texts: of the rows that decode, the first ones.
        pieces: of prompts, that are read for the others.

    Raises:
        NoPages: they have not; nothing has changed.
    """
    pending = [len(text) - held for text, held in zip(texts, cache.lengths, strict=False)]
    sizes = [*pending, *(len(piece) for piece in pieces)]
    if not _has_room(cache, sizes):
        raise NoPages(cache.needed(sizes), cache.pages.num_free)


def affordable(cache: PagedCache, pending: Sequence[int], drafts: Sequence[int], limit: int) -> int:
    """Return how many nodes of each row's window have pages, `limit` at most.

    Args:
        cache: of all rows.
        pending: tokens per row that are forwarded in any case.
        drafts: per row that has any, its nodes.
        limit: most nodes of a row.
    """
    width = min(limit, max(drafts))
    while width > 0:
        sizes = [n + min(width, own) for n, own in zip(pending, drafts, strict=False)]
        if _has_room(cache, [*sizes, *pending[len(sizes) :]]):
            return limit if width == max(drafts) else width
        width //= 2
    return min(limit, 0)


def _has_room(cache: PagedCache, sizes: Sequence[int]) -> bool:
    pages = cache.pages
    missing = cache.needed(sizes) - pages.num_free
    if missing > 0 and pages.evict is not None:
        pages.evict(missing)
        missing = cache.needed(sizes) - pages.num_free
    return missing <= 0
