"""A model says the same, bit for bit, whether its entries lie side by side or on pages, and writes the same texts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from random_weights import make_weights
from test_kernels_quantised import rounded
from torch import Tensor

from outpace import kernels
from outpace.cache import Cache, Counter, PagedCache, Prefixes
from outpace.errors import NoPages
from outpace.kernels import build as building
from outpace.methods.registry import load_method
from outpace.models.spec import Rope, Spec
from outpace.models.transformer import Transformer
from outpace.testing.mutants import MUTANTS
from outpace.testing.page_checks import page_checks
from outpace.testing.toy import ToyModel
from outpace.testing.world import inhabited, make_rows, make_run, write
from outpace.types import Adapter, Outputs

needs_kernels = pytest.mark.skipif(building.build().library is None, reason=building.build().note)
COMPILED = ["float32", "bfloat16", "quantised"]
PATHS = ["eager", *(pytest.param(name, marks=needs_kernels) for name in COMPILED)]
SHAPES = {
    "causal": {},
    "window": {"windows": (None, 21)},
    "one key head": {"num_kv_heads": 1},
    "full": {"attention": "full"},
    "block": {"attention": "block", "block_size": 4},
}
CAPACITY = 200


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small are these models that threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(path: str, **changes: object) -> Transformer:
    shape = {"vocab_size": 61, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
    rope = Rope(tuple(10000.0 ** (-i / 16) for i in range(0, 16, 2)))
    spec = Spec(**(shape | changes), ffn_size=96, max_positions=300, ropes=(rope,))  # type: ignore[arg-type]
    weights = make_weights(spec, torch.bfloat16 if path == "bfloat16" else torch.float32)
    model = Transformer(spec, rounded(weights, 4) if path == "quantised" else weights, pack=False)
    assert path == "eager" or model.compile(kernels), kernels.note()
    return model


class Pair:
    """One model on two caches, which have to hold and say the same."""

    def __init__(self, model: Transformer, page_size: int, rows: int, seed: int) -> None:
        self.model, self.draw = model, random.Random(seed)
        pool = model.new_pool(400 // page_size * 8, page_size)
        assert pool is not None
        for buffer in pool.buffers:
            buffer.fill_(float("nan"))  # whoever reads what nobody wrote shows it
        others = pool.take(60)  # every other page is another's, so that a row's are no neighbours in memory
        pool.drop(self.draw.sample(others, 40))
        self.caches: list[Cache] = [model.new_cache(rows, CAPACITY), pool.new_cache(rows, Counter(), CAPACITY)]
        self.pool = pool

    def forward(self, counts: list[int], caches: list[Cache] | None = None, parent: Tensor | None = None) -> None:
        """Forward so many tokens per row on both caches; the first may lie behind a hole."""
        caches, width = caches or self.caches, max(counts)
        lengths = caches[0].lengths
        tokens = torch.tensor([[self.draw.randrange(61) for _ in range(width)] for _ in counts])
        steps = torch.arange(width).expand(len(counts), -1)
        depth = steps if parent is None else torch.tensor([_depths(parent)]).expand(len(counts), -1)
        position = (depth + torch.tensor(lengths)[:, None]).masked_fill(steps >= torch.tensor(counts)[:, None], -1)
        visible = None if parent is None else _ancestors(parent).expand(len(counts), -1, -1).contiguous()
        outputs = Outputs((1,), has_last=True)
        ours, theirs = (self.model.score(tokens, position, visible, cache, None, outputs) for cache in caches)
        is_real = position >= 0
        assert torch.equal(ours.logits[is_real], theirs.logits[is_real])
        assert torch.equal(ours.taps[1][is_real], theirs.taps[1][is_real])
        assert not ours.logits[is_real].isnan().any()

    def both(self, name: str, *given: object) -> list[Cache]:
        return [getattr(cache, name)(*given) for cache in self.caches]


def _depths(parent: Tensor) -> list[int]:
    depths: list[int] = []
    for above in parent.tolist():
        depths.append(0 if above < 0 else depths[above] + 1)
    return depths


def _ancestors(parent: Tensor) -> Tensor:
    sees = torch.eye(len(parent), dtype=torch.bool)
    for node, above in enumerate(parent.tolist()):
        sees[node] |= sees[above] if above >= 0 else False
    return sees


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("path", "page_size"),
    [
        ("eager", 16),
        *(pytest.param(name, size, marks=needs_kernels) for name in COMPILED for size in (16, 48)),
    ],
)
def test_logits_are_those_of_a_static_cache(path: str, page_size: int, shape: str) -> None:
    pair = Pair(make(path, **SHAPES[shape]), page_size, 3, seed=page_size)
    tree = torch.tensor([-1, 0, 0, 1, 1, 2, 5, -1])
    for counts in ([40, 7, 18], [1, 1, 1], [13, 0, 2]):  # prompts, a step, prompts that go on beside others
        pair.forward(counts)
        pair.both("keep", [range(n) for n in counts])
    if pair.model.spec.attention == "causal":
        pair.forward([8, 8, 8], parent=tree)
        pair.both("keep", [[0, 2, 5], [0], [7]])
    pair.forward([2, 5, 0])
    pair.both("retain", [[*range(30), 33, 55], range(9), range(4)])
    parts = pair.both("part", [2, 0])
    pair.forward([3, 1], parts)
    for part in parts:
        part.keep([[0, 2], [0]])
    pair.caches = pair.both("rows", [1, 0, 2, 0])
    pair.forward([1, 1, 1, 1])
    pair.both("keep", [[0]] * 4)
    pair.forward([2, 17, 1, 1], pair.both("fork", Counter()))
    pair.both("leave", [0, 3, 2])
    pair.forward([1, 2, 1])
    assert pair.caches[0].lengths == pair.caches[1].lengths == [10, 34, 7]


@pytest.mark.parametrize("path", PATHS)
def test_a_prefix_that_was_found_gives_the_text_of_one_that_was_read(path: str) -> None:
    model = make(path)
    pool = model.new_pool(60, 16)
    assert pool is not None
    prefixes, texts = Prefixes(pool), [[at % 7 for at in range(50)], [at % 7 for at in range(41)] + [9] * 9]
    found = []
    for text in (*texts, *texts):
        cache = pool.new_cache(1)
        length, table = prefixes.match("model", text[:-1])
        cache.attach(0, table, length)
        tokens, position = torch.tensor([text[length:]]), torch.arange(length, len(text))[None]
        found.append((length, model.score(tokens, position, None, cache).logits[0, -1]))
        cache.keep([range(len(text) - length)])
        prefixes.insert("model", text, cache.row_tables[0])
    assert [length for length, _ in found] == [0, 41, 48, 48]
    for (_, first), (_, second) in zip(found[:2], found[2:], strict=True):
        if path == "eager":  # which rounds by the shape of a forward
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(first, second)


def test_no_pages_are_read_that_were_not_written() -> None:
    """Padding of a row that stages nothing must not spoil the page that it shares."""
    pair = Pair(make("eager"), 16, 2, seed=1)
    pair.forward([20, 4])
    pair.both("keep", [range(20), range(4)])
    copies = pair.both("rows", [0, 1])
    pair.forward([0, 3])
    pair.both("keep", [[], [1]])
    pair.forward([2, 2], copies)


# Texts, whatever drafts


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> list[PagedCache]:
    """Let toy models make paged caches only; returns those made."""
    made = list[PagedCache]()

    def new_cache(self: ToyModel, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        pool = vars(self).get("pool") or self.new_pool(400, 16)
        assert pool is not None
        monkeypatch.setattr(self, "pool", pool, raising=False)
        made.append(pool.new_cache(rows, counter, capacity))
        return made[-1]

    monkeypatch.setattr(ToyModel, "new_cache", new_cache)
    return made


METHODS = ["autoregressive", "draft-model", "swift", "layer-skip", "lookahead", "masked-diffusion"]


@pytest.mark.parametrize("name", METHODS)
def test_methods_write_what_they_write_on_static_caches(name: str, paged: list[PagedCache]) -> None:
    with pytest.MonkeyPatch.context() as plain:
        plain.setattr(ToyModel, "new_cache", static_cache)
        expected = [row.written for row in write(load_method(name)())]
    rows = make_rows()
    run = make_run(load_method(name)())
    run.join(rows[:2])
    for _ in range(3):
        run.step()
    run.join(rows[2:])
    while run.rows:
        run.step()
    assert paged and [row.written for row in rows] == expected
    pools = {id(cache.pages): cache.pages for cache in paged}
    paged.clear()
    del run
    assert all(pool.num_free == pool.num_pages for pool in pools.values())


@pytest.mark.parametrize("name", ["autoregressive", "draft-model", "multi-candidate", "bild", "lookahead", "staged"])
def test_a_step_that_found_no_pages_is_taken_again(name: str) -> None:
    """Drafts were made in vain, and the text is what it is without."""
    expected = [row.written for row in write(load_method(name)())]
    rows, run = make_rows(), make_run(load_method(name)())
    pool = run.target.new_pool(60, 16)
    assert pool is not None
    run.pages = pool
    run.join(rows)
    run.step()
    num_failed = 0
    while run.rows:
        others = pool.take(pool.num_free)  # what is held already takes shorter drafts; a page's border takes a page
        try:
            run.step()
        except NoPages:
            num_failed += 1
            pool.drop(others)
            run.step()
        else:
            pool.drop(others)
    assert num_failed and [row.written for row in rows] == expected
    assert pool.num_free == pool.num_pages


def test_an_encoder_decoder_keeps_its_source(paged: list[PagedCache]) -> None:
    with inhabited("encoder-decoder"):
        rows = write(load_method("draft-model")(draft_len=3))
        with pytest.MonkeyPatch.context() as plain:
            plain.setattr(ToyModel, "new_cache", static_cache)
            assert [row.written for row in rows] == [row.written for row in write(load_method("autoregressive")())]
    assert paged


static_cache = ToyModel.new_cache


@pytest.mark.parametrize("check", page_checks(), ids=lambda check: check.__name__)
def test_nothing_fails_without_a_fault(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("name", ["shared-page-written", "hold-not-counted", "hit-too-long"])
def test_a_fault_is_caught(name: str) -> None:
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == name)
    caught = list[str]()
    with mutant.applied():
        for check in page_checks():
            try:
                check()
            except Exception as error:
                mutant.check_crash(error)
                caught.append(check.__name__)
    assert caught, f"Nothing noticed that {mutant.fault}."


def test_recorded_forwards_have_no_pages() -> None:
    model = make("eager")
    model.graphs = object()  # type: ignore[assignment]
    assert model.new_pool(4) is None
    assert Adapter.new_pool(model, 4) is None
