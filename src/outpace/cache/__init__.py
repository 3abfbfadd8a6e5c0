"""Preallocated key-value caches: entries live in slots, and only a run validates them."""

from outpace.cache.counter import Counter
from outpace.cache.static import FIRST_SLOTS, Cache

__all__ = ["FIRST_SLOTS", "Cache", "Counter"]
