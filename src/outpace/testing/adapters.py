"""The executable contract of adapters: whatever a forward is cut into, a token is told the same."""

from __future__ import annotations

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.types import Adapter, Counter, Outputs, Scores

__all__ = ["check_adapter"]

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest number; halves: 0.05
_LENGTHS = (7, 2)  # of the two rows that are read in pieces


def check_adapter(adapter: Adapter) -> None:
    """Check a left-to-right adapter against its own forward of whole texts.

    Raises:
        AssertionError: with a sentence that says what is wrong.
    """
    texts = torch.randint(adapter.capabilities.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
    texts = texts.to(adapter.device)
    is_shown = adapter.capabilities.has_hidden
    outputs = Outputs(tuple(range(adapter.capabilities.num_layers + 1)), has_last=True) if is_shown else Outputs()
    whole = adapter.score(texts, _places(adapter, [12, 12]), None, _cache(adapter), outputs=outputs)
    _same(whole.logits, whole.logits.clone(), (2, 12, adapter.capabilities.vocab_size), "logits of a whole text")
    if whole.last is not None:
        _same(adapter.head(whole.last), whole.logits, None, "the head's logits of the last hidden states")
    soft = adapter.score(texts, _places(adapter, [12, 12]), None, _cache(adapter), inputs=adapter.embed(texts))
    _same(soft.logits, whole.logits, None, "logits of embedded tokens given as soft inputs")
    for is_paged in (False, True) if adapter.new_pool(1) is not None else (False,):
        _check_pieces(adapter, texts, whole, outputs, is_paged)
        if adapter.capabilities.has_tree:
            _check_tree(adapter, texts, whole, outputs, is_paged)


def _check_pieces(adapter: Adapter, texts: Tensor, whole: Scores, outputs: Outputs, is_paged: bool) -> None:
    """Rows of different lengths, then three more tokens of each, of which some are asked."""
    cache, counter = _begun(adapter, texts, is_paged)
    rows = range(len(_LENGTHS))
    tokens = torch.stack([texts[row, length : length + 3] for row, length in enumerate(_LENGTHS)])
    ask = torch.tensor([[1, 2], [2, 0]], device=adapter.device)
    before = counter.nfe
    scores = adapter.score(tokens, _places(adapter, [3, 3], _LENGTHS), None, cache, ask, outputs)
    assert counter.nfe > before, "A forward was not counted in the cache's counter."
    at = ask + torch.tensor(_LENGTHS, device=adapter.device)[:, None]
    for row in rows:
        _same(scores.logits[row], whole.logits[row, at[row]], None, "logits behind a cache, rows of unequal length")
        for layer, states in scores.taps.items():
            _same(states[row], whole.taps[layer][row, at[row]], None, f"what enters layer {layer} behind a cache")


def _check_tree(adapter: Adapter, texts: Tensor, whole: Scores, outputs: Outputs, is_paged: bool) -> None:
    """A token, its rival, and the token's child, which must not see the rival."""
    cache, _ = _begun(adapter, texts, is_paged)
    starts = torch.tensor(_LENGTHS, device=adapter.device)[:, None]
    tokens = texts.gather(1, starts + torch.tensor([[0, 2, 1]], device=adapter.device))
    position = starts + torch.tensor([[0, 0, 1]], device=adapter.device)
    sight = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 1]], dtype=torch.bool, device=adapter.device)
    scores = adapter.score(tokens, position, sight.expand(2, -1, -1), cache, outputs=outputs)
    for row, start in enumerate(_LENGTHS):
        _same(scores.logits[row, [0, 2]], whole.logits[row, start : start + 2], None, "logits of a tree's branch")


def _begun(adapter: Adapter, texts: Tensor, is_paged: bool) -> tuple[Cache, Counter]:
    """Read seven tokens of one row and two of the other, padded at the right, and keep them."""
    counter = Counter()
    cache, none = _cache(adapter, counter, is_paged), torch.zeros(2, 0, dtype=torch.int64, device=adapter.device)
    adapter.score(texts[:, :7], _places(adapter, list(_LENGTHS), size=7), None, cache, none)
    cache.keep([range(length) for length in _LENGTHS])
    return cache, counter


def _cache(adapter: Adapter, counter: Counter | None = None, is_paged: bool = False) -> Cache:
    pool = adapter.new_pool(8, 16) if is_paged else None
    cache = adapter.new_cache(2, 24, counter) if pool is None else pool.new_cache(2, counter, 24)
    if adapter.capabilities.is_encoder_decoder:
        adapter.encode([[1, 2, 3], [2, 3]], cache)
    return cache


def _places(adapter: Adapter, counts: list[int], starts: tuple[int, ...] = (0, 0), size: int = 0) -> Tensor:
    """Return positions [2, size] from `starts` on, -1 behind each row's count."""
    steps = torch.arange(size or max(counts), device=adapter.device).expand(2, -1)
    given = [torch.tensor(each, device=adapter.device)[:, None] for each in (counts, starts)]
    return torch.where(steps < given[0], steps + given[1], -1)


def _same(ours: Tensor, wanted: Tensor, shape: tuple[int, ...] | None, what: str) -> None:
    assert ours.shape == (shape or wanted.shape), f"The shape of {what} is {tuple(ours.shape)}."
    tolerance = _TOLERANCE.get(ours.dtype, 0.05) * float(wanted.abs().max())
    off = float((ours.double() - wanted.double()).abs().max())
    assert off <= tolerance, f"Wrong by {off:.3g}: {what}."
