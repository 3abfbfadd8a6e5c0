"""Preallocated key-value caches: entries live in slots, and only a run validates them."""

from outpace.cache.static import Cache

__all__ = ["Cache"]
