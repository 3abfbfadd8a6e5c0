"""The transformers adapter on pages, and on some rows of a batch: each way of scoring says what it always says."""

from __future__ import annotations

import pytest
import torch
from test_hf import MODES, make

from outpace.cache import Cache, Counter, PagedCache
from outpace.models.hf_adapter import TransformersAdapter
from outpace.models.hf_seq2seq import TransformersSeq2Seq


def read(adapter: TransformersAdapter, cache: Cache, counts: list[int], seed: int) -> torch.Tensor:
    """Forward and keep so many random tokens per row; return the logits of the last of each."""
    width = max(counts)
    tokens = torch.randint(131, (len(counts), width), generator=torch.Generator().manual_seed(seed))
    steps, held = torch.arange(width).expand(len(counts), -1), torch.tensor(cache.lengths)[:, None]
    position = (steps + held).masked_fill(steps >= torch.tensor(counts)[:, None], -1)
    ask = torch.tensor([[max(0, count - 1)] for count in counts])
    logits = adapter.score(tokens, position, None, cache, ask).logits[:, 0]
    cache.keep([range(count) for count in counts])
    return logits


@pytest.mark.parametrize("case", ["llama", "mistral", "m2m100", "lfm2"])
def test_pages_and_parts_say_the_same(case: str) -> None:
    adapter = (TransformersSeq2Seq if case == "m2m100" else TransformersAdapter)(make(case))
    caches, pool = [adapter.new_cache(3, 60)], adapter.new_pool(30, 16)
    assert (pool is None) == (MODES.get(case) == "own")
    if pool is not None:
        caches.append(pool.new_cache(3, Counter(), 60))
        assert isinstance(caches[1], PagedCache) and caches[1].pages is pool
    if case == "m2m100":
        for cache in caches:
            adapter.encode([[5, 6], [7], [8, 9, 10]], cache)
    for seed, counts in enumerate(([19, 4, 9], [1, 1, 1])):
        first, *others = [read(adapter, cache, counts, seed) for cache in caches]
        assert all(torch.equal(first, other) for other in others)
    whole = caches[0].rows([0, 1, 2])  # to compare: what all rows say at once
    tokens = torch.randint(131, (2, 3), generator=torch.Generator().manual_seed(9))
    for index in ([2, 0], [1, 2]):
        parts = [cache.part(index) for cache in caches]
        first, *others = [read(adapter, part, [3, 2], 9) for part in parts]
        assert all(torch.equal(first, other) for other in others)
        every = torch.zeros(3, 3, dtype=torch.int64)
        every[index] = tokens
        position = torch.full((3, 3), -1)
        for row, count in zip(index, (3, 2), strict=True):
            position[row, :count] = torch.arange(count) + whole.lengths[row]
        ask = torch.tensor([[{index[0]: 2, index[1]: 1}.get(row, 0)] for row in range(3)])
        torch.testing.assert_close(adapter.score(every, position, None, whole, ask).logits[index, 0], first)
        kept = [{index[0]: range(3), index[1]: range(2)}.get(row, range(0)) for row in range(3)]
        whole.keep(kept)
        assert all(cache.lengths == whole.lengths for cache in caches)
