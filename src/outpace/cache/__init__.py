"""Key-value caches, preallocated or on pages: entries live in slots, and only a run validates them."""

from outpace.cache.counter import Counter
from outpace.cache.paged import PagedCache, Saved
from outpace.cache.pages import Pages, Table
from outpace.cache.part import Part
from outpace.cache.prefixes import Prefixes
from outpace.cache.static import FIRST_SLOTS, Cache

__all__ = ["FIRST_SLOTS", "Cache", "Counter", "PagedCache", "Pages", "Part", "Prefixes", "Saved", "Table"]
