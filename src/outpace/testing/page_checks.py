"""Checks of paged caches on a toy model: shared pages never show in a text, and none is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from outpace.cache import Cache, Counter, Pages, Prefixes
from outpace.run.layout import lay_out
from outpace.run.prefill import catch_up, no_nodes
from outpace.testing.toy import ToyModel

__all__ = ["page_checks"]

_SIZE, _COUNT = 16, 12
_TEXT = [(7 * at + at // 5) % 11 for at in range(41)]


def page_checks() -> list[Callable[[], None]]:
    """Return the checks, cheap ones all."""
    return [check_prefix_hits, check_page_forks]


def check_prefix_hits() -> None:
    """Texts that begin with what others read come out as they do alone, whoever has left since; no page is lost."""
    model, pool = _paged()
    prefixes = Prefixes(pool)
    texts = [_TEXT, [*_TEXT[:36], 9, 9, 4], [*_TEXT, 1, 2, 3], [5] * 20]
    for text in (*texts, *texts):
        cache = pool.new_cache(1, Counter())
        length, table = prefixes.match("toy", text[:-1])
        cache.attach(0, table, length)
        written = _go_on(model, cache, [text])[0]
        assert written == _alone(model, text), f"After {length} tokens that were found, {written} was written."
        prefixes.insert("toy", [*text, *written[:-1]], cache.row_tables[0])
    assert prefixes.num_hit > 0, "Nothing was found."
    del cache, table
    prefixes.clear()
    assert pool.num_free == pool.num_pages, f"{pool.num_pages - pool.num_free} pages are lost."


def check_page_forks() -> None:
    """Rows that go on from one row write what each writes alone, while others come and go."""
    model, pool = _paged()
    cache: Cache = pool.new_cache(1, Counter())
    _read(model, cache, [_TEXT])
    texts = [[*_TEXT, token] for token in (2, 9, 4)]
    forks, guest = cache.rows([0, 0, 0]), [[3] * 30]
    del cache  # its pages are the forks'
    forks = Cache.join([forks, pool.new_cache(1, Counter())])
    written = _go_on(model, forks, [*texts, *guest])
    alone = [_alone(model, text) for text in (*texts, *guest)]
    assert written == alone, f"Forks wrote {written} instead of {alone}."
    forks.leave([3, 1])
    texts = [[*guest[0], *written[3]], [*texts[1], *written[1]]]
    again = _go_on(model, forks, texts)
    assert again == [_alone(model, text) for text in texts], f"Rows that stayed wrote {again}."
    del forks
    assert pool.num_free == pool.num_pages, f"{pool.num_pages - pool.num_free} pages are lost."


def _paged() -> tuple[ToyModel, Pages]:
    model = ToyModel()
    return model, model.new_pool(40, _SIZE)


def _alone(model: ToyModel, text: list[int]) -> list[int]:
    return _go_on(model, model.new_cache(1, 120), [text])[0]


def _read(model: ToyModel, cache: Cache, texts: Sequence[list[int]]) -> None:
    """Forward all tokens of each text but the last."""
    for _ in catch_up(model, cache, texts):
        pass


def _go_on(model: ToyModel, cache: Cache, texts: Sequence[list[int]]) -> list[list[int]]:
    """Return the next greedy tokens of each text; all but the last of each are kept in the cache."""
    texts = [list(text) for text in texts]
    _read(model, cache, texts)
    for _ in range(_COUNT):
        layout = lay_out([text[-1:] for text in texts], cache.lengths, no_nodes(len(texts), torch.device("cpu")))
        scores = model.score(layout.tokens, layout.position, layout.visible, cache, layout.ask)
        cache.keep([[0]] * len(texts))
        for text, token in zip(texts, scores.logits[:, 0].argmax(-1).tolist(), strict=True):
            text.append(token)
    return [text[-_COUNT:] for text in texts]
