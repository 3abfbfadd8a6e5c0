"""What a model has read and need not read again: entries of earlier texts, for later ones that begin alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outpace.cache import Cache, PagedCache, Pages, Prefixes
from outpace.run.row import Row
from outpace.types import Adapter, FinishReason, Guarantee

if TYPE_CHECKING:
    from outpace.api.running import Plan

__all__ = ["Recall"]

_FIRST = 4096  # tokens of the first pool; memory that nothing was written to takes none
_SPARE = 1024  # tokens beside a text, for copies that a method makes of it


class Recall:
    """The entries of what was read and written, kept for the texts that follow on one model.

        recall = outpace.Recall()
        first = lm.generate("Once upon a time", recall=recall)
        second = lm.generate("Once upon a time" + first.text + " Then", recall=recall)
        print(second.cached_tokens)  # leading prompt tokens that were not forwarded again

    Texts are the same, token for token, as without it. It serves one text at a time, on a causal model whose results do
    not depend on how a prompt is cut (compiled kernels), under an exact method that looks at no prompt position; others
    are read whole, as ever. Whole pages of 32 tokens are found. Memory grows to twice the longest text, which a change
    of model, or the end of this object, frees.
    """

    def __init__(self) -> None:
        self._target: Adapter | None = None
        self._prefixes: Prefixes | None = None

    def serve(self, target: Adapter, plan: Plan, capacity: int) -> Pages | None:
        """Return where the entries of a plan's text shall lie, the first ones found; None = as without a recall.

        Args:
            target: the model.
            plan: `cached_tokens` is set, and `cached` of its row.
            capacity: most entries that it may take, scratch included.
        """
        if not _can_serve(target, plan):
            return None
        (row,) = plan.rows
        if not self._provide(target, capacity, row.tokens) or self._prefixes is None:
            return None
        length, table = self._prefixes.match(None, row.tokens[:-1])
        if length:
            row.cached = (table, length)
        plan.cached_tokens = length
        return self._prefixes.pages

    def keep(self, row: Row, cache: Cache, place: int) -> None:
        """Keep what a row leaves behind; called while its entries are held."""
        is_ours = self._prefixes is not None and isinstance(cache, PagedCache) and cache.pages is self._prefixes.pages
        if is_ours and row.finish is not FinishReason.ERROR:
            assert self._prefixes is not None and isinstance(cache, PagedCache)
            self._prefixes.insert(None, row.tokens[: cache.lengths[place]], cache.row_tables[place])

    def _provide(self, target: Adapter, capacity: int, tokens: list[int]) -> bool:
        """See to a pool that is large enough; one that is not hands on what it has of a text."""
        old = self._prefixes if self._target is target else None
        if old is not None and old.pages.num_pages * old.pages.page_size >= capacity + _SPARE:
            return True
        one = target.new_pool(1)
        try:
            pages = None if one is None else target.new_pool(-(-max(_FIRST, 2 * capacity) // one.page_size))
        except (RuntimeError, MemoryError):  # the text has to do with what a cache of its own takes
            pages = None
        self._target, self._prefixes = target, None if pages is None else Prefixes(pages)
        if self._prefixes is not None and old is not None:
            _hand_on(old, self._prefixes, tokens)
        return pages is not None


def _can_serve(target: Adapter, plan: Plan) -> bool:
    offered, method = target.capabilities, plan.method
    is_plain = offered.attention == "causal" and not (offered.is_encoder_decoder or offered.turns_at)
    looks = method.needs.has_prefill_logits or method.needs.outputs
    is_exact = method.guarantee is Guarantee.EXACT and not looks  # what others leave may not be what the model reads
    is_one = len(plan.rows) == 1 and plan.rows[0].inputs is None
    return is_plain and is_exact and is_one and target.is_invariant and not plan.is_fixed


def _hand_on(old: Prefixes, new: Prefixes, tokens: list[int]) -> None:
    """Copy what one pool holds of a text to another."""
    length, table = old.match(None, tokens)
    source, copy = old.pages.new_cache(1), new.pages.new_cache(1)
    source.attach(0, table, length)
    copy.load(0, source.save(0))
    new.insert(None, tokens[:length], copy.row_tables[0])
