"""Drafting models of an engine: rows find in their caches, too, what was read before."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping

from outpace.cache import Cache, Counter, Pages, Prefixes
from outpace.types import Adapter

__all__ = ["Drafters"]

_SCRATCH = 16  # pages per row, beyond those of its text


class Drafters:
    """Page pools of models beside the target.

    Args:
        tokens: that each pool holds.
        rows: most rows at a time.
    """

    def __init__(self, tokens: int, rows: int) -> None:
        self._tokens, self._rows = tokens, rows
        self._pools: dict[int, tuple[Adapter, Prefixes | None]] = {}  # the model is kept, so that its id stays its own
        self._shared = weakref.WeakValueDictionary[tuple[int, str], Adapter]()

    def share(self, models: Mapping[str, Adapter], salt: str) -> dict[str, Adapter]:
        """Return models by role whose caches lie on pages, shared by texts of one salt, where the model allows it."""
        return {role: self._one(model, salt) for role, model in models.items()}

    def _one(self, model: Adapter, salt: str) -> Adapter:
        known = self._prefixes(model)
        if known is None:
            return model
        found = self._shared.get((id(model), salt))
        if found is None:
            found = self._shared[id(model), salt] = _on_pages(model, known, salt)
        return found

    def _prefixes(self, model: Adapter) -> Prefixes | None:
        if id(model) not in self._pools:
            offered = model.capabilities
            # Else what is found again would differ from what would be read, by rounding, or with a text's length.
            is_plain = offered.attention == "causal" and not (offered.is_encoder_decoder or offered.turns_at)
            pages: Pages | None = None
            if is_plain and model.is_invariant and (one := model.new_pool(1)) is not None:
                count = -(-self._tokens // one.page_size) + _SCRATCH * self._rows
                pages = model.new_pool(count, one.page_size)
            self._pools[id(model)] = model, None if pages is None else Prefixes(pages)
        return self._pools[id(model)][1]


def _on_pages(model: Adapter, known: Prefixes, salt: str) -> Adapter:
    """Return a model that shares everything with another one but makes its caches on pages."""

    def new_cache(rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        cache = known.pages.new_cache(rows, counter, capacity)
        cache.prefixes = known, salt
        return cache

    other = copy.copy(model)
    vars(other)["new_cache"] = new_cache
    return other
