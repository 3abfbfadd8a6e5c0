"""Every cache does what a list per row does, whatever is asked of it in whatever order; pages are lost nowhere."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator

import pytest
import torch

from outpace.cache import Cache, Counter, PagedCache, Pages, Prefixes
from outpace.errors import ConfigError, NoPages

SIZE = 16  # slots of a page
CAPACITY = 80


def new_pool(num_pages: int = 200) -> Pages:
    """Two stored tensors of different shapes, NaN where nothing was written."""
    return Pages([torch.full((1, num_pages, heads, SIZE, 2), float("nan")) for heads in (3, 1)])


def new_static(rows: int) -> Cache:
    buffers = [torch.full((rows, heads, 24, 2), float("nan")) for heads in (3, 1)]
    return Cache(buffers, 2, Counter(), [0] * rows, limit=CAPACITY)


class Trial:
    """A cache beside its oracle: per row the list of entries, each a number of its own."""

    def __init__(self, new: Callable[[int], Cache], seed: int) -> None:
        self.draw, self.new = random.Random(seed), new
        self.cache, self.rows = new(3), [list[int]() for _ in range(3)]
        self.watched: list[tuple[Cache, list[list[int]]]] = []  # copies, which must stay as they were
        self.next = 1

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.draw.choice(OPERATIONS)(self)
            self.look(self.cache, self.rows)
        for cache, rows in self.watched:
            self.look(cache, rows)

    @staticmethod
    def look(cache: Cache, rows: list[list[int]]) -> None:
        assert cache.lengths == [len(row) for row in rows]
        for at, row in enumerate(rows):
            for entries in cache.read(at, range(len(row))):
                assert torch.equal(entries.flatten(1)[:, 0], torch.tensor(row, dtype=torch.float32)), (at, row)
                assert (entries == entries.flatten(1)[:, :1].view(-1, *[1] * (entries.dim() - 1))).all()

    def forward(self, cache: Cache, most: int = 9) -> list[list[int]]:
        """Stage tokens as a model does; return what was staged per row."""
        width = self.draw.randint(1, most)
        counts = [self.draw.randint(0, width) for _ in cache.lengths]
        position = torch.tensor([[at if at < count else -1 for at in range(width)] for count in counts])
        staged = [[self.next + 10 * row + at for at in range(count)] for row, count in enumerate(counts)]
        self.next += 1000
        cache.stage(position.view(len(counts), width))
        lengths = list(cache.lengths)
        with cache.dense(width) as dense:
            assert dense.lengths == lengths
            for row, values in enumerate(staged):
                for at in range(width):
                    for buffer in dense.buffers:
                        buffer[row, :, lengths[row] + at] = values[at] if at < len(values) else -7.0
        return staged

    def choose(self, values: list[int]) -> list[int]:
        return sorted(self.draw.sample(range(len(values)), self.draw.randint(0, len(values))))

    def take(self, staged: list[list[int]], rows: list[list[int]]) -> list[list[int]]:
        """Choose offsets to keep, and write them down."""
        kept = [self.choose(values) for values in staged]
        for row, values, offsets in zip(rows, staged, kept, strict=True):
            row += [values[offset] for offset in offsets]
        return kept

    def keep(self) -> None:
        if max(map(len, self.rows)) < CAPACITY - 10:
            self.cache.keep(self.take(self.forward(self.cache), self.rows))

    def retain(self) -> None:
        if max(map(len, self.rows)) < CAPACITY - 10:
            both = [row + values for row, values in zip(self.rows, self.forward(self.cache), strict=True)]
            slots = [self.choose(entries) for entries in both]
            self.cache.retain(slots)
            self.rows = [[entries[slot] for slot in chosen] for entries, chosen in zip(both, slots, strict=True)]

    def truncate(self) -> None:
        lengths = [self.draw.randint(0, len(row) + 3) for row in self.rows]
        self.cache.truncate(lengths)
        self.rows = [row[:length] for row, length in zip(self.rows, lengths, strict=True)]

    def restart(self) -> None:
        at = self.draw.randrange(len(self.rows))
        self.cache.restart(at, 3)
        self.rows[at] = []
        assert self.cache.phases[at] == 3

    def copy(self) -> None:
        index = [self.draw.randrange(len(self.rows)) for _ in range(self.draw.randint(1, 4))]
        self.watched.append((self.cache, self.rows))
        self.cache, self.rows = self.cache.rows(index), [list(self.rows[at]) for at in index]
        self.watched = self.watched[-3:]

    def follow(self) -> None:
        if max(map(len, self.rows)) < CAPACITY - 10:
            staged = self.forward(self.cache)
            source = [self.draw.randrange(len(self.rows)) for _ in self.rows]
            self.cache.follow(source)
            self.rows, staged = [list(self.rows[at]) for at in source], [staged[at] for at in source]
            self.cache.keep(self.take(staged, self.rows))

    def parts(self) -> None:
        """All rows are forwarded at once, and some of them settled before the others."""
        if max(map(len, self.rows)) < CAPACITY - 10:
            staged, order = self.forward(self.cache), self.draw.sample(range(len(self.rows)), len(self.rows))
            cut = self.draw.randint(0, len(order))
            for index in (order[:cut], order[cut:]):
                rows = [self.rows[at] for at in index]
                self.cache.part(index).keep(self.take([staged[at] for at in index], rows))

    def part(self) -> None:
        if max(map(len, self.rows)) < CAPACITY - 10:
            index = self.draw.sample(range(len(self.rows)), self.draw.randint(1, len(self.rows)))
            part, rows = self.cache.part(index), [self.rows[at] for at in index]
            part.keep(self.take(self.forward(part), rows))
            self.look(part, rows)
            part.truncate([max(0, len(row) - 1) for row in rows])
            for row in rows:
                del row[-1:]
            both = [row + values for row, values in zip(rows, self.forward(part), strict=True)]
            slots = [self.choose(entries) for entries in both]
            part.retain(slots)
            for row, entries, chosen in zip(rows, both, slots, strict=True):
                row[:] = [entries[slot] for slot in chosen]
            copy, again = part.rows([0]), part.part([len(index) - 1])
            self.look(copy, rows[:1])
            self.look(again, rows[-1:])
            with part.aside([len(row) // 2 for row in rows], 9, Counter()) as fork:
                self.forward(fork)

    def overlay(self) -> None:
        if max(map(len, self.rows)) < CAPACITY - 30:
            fork, rows = self.cache.fork(Counter()), [list(row) for row in self.rows]
            for _ in range(2):
                fork.keep(self.take(self.forward(fork), rows))
                self.look(fork, rows)
            fork.truncate([len(row) for row in self.rows])
            self.look(fork, self.rows)

    def aside(self) -> None:
        lengths = [self.draw.randint(0, len(row)) for row in self.rows]
        if max(lengths) < CAPACITY - 10:
            with self.cache.aside(lengths, 9, Counter()) as fork:
                fork_rows = [row[:length] for row, length in zip(self.rows, lengths, strict=True)]
                self.look(fork, fork_rows)
                self.forward(fork)

    def leave(self) -> None:
        stay = list(range(len(self.rows)))
        gone = self.draw.randrange(len(stay))
        if len(stay) > 1:  # the last row takes the place of the one that goes
            stay[gone] = stay[-1]
            self.cache.leave(stay[:-1])
            self.rows = [self.rows[at] for at in stay[:-1]]

    def join(self) -> None:
        if len(self.rows) < 5:
            other = self.new(self.draw.randint(1, 2))
            rows = [list[int]() for _ in other.lengths]
            other.keep(self.take(self.forward(other), rows))
            self.cache, self.rows = Cache.join([self.cache, other]), [*self.rows, *rows]

    def swap(self) -> None:
        if isinstance(self.cache, PagedCache):
            at = self.draw.randrange(len(self.rows))
            saved = self.cache.save(at)
            self.cache.restart(at, 0)
            self.cache.load(at, saved)

    def prefix(self) -> None:
        cache, size = self.cache, self.draw.randint(0, 40)
        if isinstance(cache, PagedCache) and len(self.rows) < 5:
            at = self.draw.randrange(len(self.rows))
            other, row = self.new(1), self.rows[at][:size]
            assert isinstance(other, PagedCache)
            other.attach(0, cache.row_tables[at], len(row))
            self.cache, self.rows = Cache.join([cache, other]), [*self.rows, list(row)]


OPERATIONS = [
    *(Trial.keep, Trial.keep, Trial.keep, Trial.retain, Trial.truncate, Trial.restart, Trial.copy, Trial.follow),
    *(Trial.part, Trial.parts, Trial.overlay, Trial.aside, Trial.leave, Trial.join, Trial.swap, Trial.prefix),
]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["static", "paged"])
def test_a_cache_does_what_lists_do(kind: str, seed: int) -> None:
    pool = new_pool()
    trial = Trial(new_static if kind == "static" else lambda rows: pool.new_cache(rows, Counter(), CAPACITY), seed)
    trial.run(120)
    del trial
    gc.collect()
    assert pool.num_free == pool.num_pages


def filled(pool: Pages, *lengths: int) -> PagedCache:
    """Rows of entries 1, 2, 3, ..."""
    cache = pool.new_cache(len(lengths), Counter())
    cache.stage(torch.tensor([[0 if at < length else -1 for at in range(max(lengths))] for length in lengths]))
    for row, length in enumerate(lengths):
        cache.write(
            row, 0, [torch.arange(1.0, length + 1).view(-1, 1, 1).expand(-1, *shape) for shape in ((3, 2), (1, 2))]
        )
    cache.keep([range(length) for length in lengths])
    return cache


def held(cache: PagedCache) -> list[list[float]]:
    return [cache.read(row, range(length))[1][:, 0, 0].tolist() for row, length in enumerate(cache.lengths)]


def test_a_row_takes_pages_for_what_it_holds() -> None:
    pool = new_pool(20)
    cache = filled(pool, 33, 16, 0)
    assert [len(table) for table in cache.row_tables] == [3, 1, 0] and pool.num_free == 16
    cache.stage(torch.zeros(3, 20, dtype=torch.int64))
    assert pool.num_free == 16 - 5  # slots 33..52, 16..35, 0..19
    cache.keep([[0], [], [19]])
    assert [len(table) for table in cache.row_tables] == [3, 1, 1]
    cache.truncate([3, 3, 3])
    assert pool.num_free == 17 and cache.num_bytes == 3 * pool.page_bytes


def test_copies_share_pages_until_one_writes() -> None:
    pool = new_pool(20)
    cache = filled(pool, 40)
    forks = cache.rows([0] * 5)
    assert pool.num_free == 17
    position = torch.tensor([[40]]).expand(5, 1)
    assert forks.needed([1] * 5) == 5
    forks.stage(position)
    assert pool.num_free == 17 - 5  # the base keeps the page that it filled in part
    del cache
    assert forks.needed([1] * 5) == 0
    assert pool.num_free == 12 + 1


def test_the_last_holder_of_a_page_writes_into_it() -> None:
    pool = new_pool(5)
    cache = filled(pool, 40)
    cache.follow([0])
    assert cache.needed([1]) == 0
    cache.leave([0])
    pair = cache.rows([0, 0])
    del cache
    assert pair.needed([1, 1]) == 1, "one of the two may stay where it is"
    pair.stage(torch.zeros(2, 1, dtype=torch.int64))
    assert pool.num_free == 1 and held(pair) == [[*map(float, range(1, 41))]] * 2


def test_32_rows_of_one_prefix_take_little_more_than_one() -> None:
    pool = new_pool(200)
    prefixes = Prefixes(pool)
    tokens = list(range(1000))
    first = filled(pool, 1000)
    prefixes.insert("model", tokens, first.row_tables[0])
    rows = pool.new_cache(0, Counter())
    for _ in range(32):
        one = pool.new_cache(1, Counter())
        length, table = prefixes.match("model", tokens)
        one.attach(0, table, length)
        rows = Cache.join([rows, one])
    del first, one, table
    assert isinstance(rows, PagedCache) and rows.lengths == [992] * 32
    tail = 30  # tokens of their own: each row ends in slot 1022
    rows.stage(torch.zeros(32, tail, dtype=torch.int64))
    prefix, tails = 1000 / SIZE, 32 * tail / SIZE
    assert pool.num_pages - pool.num_free <= 1.2 * prefix + tails


@pytest.fixture
def full() -> Iterator[tuple[Pages, PagedCache]]:
    pool = new_pool(6)
    yield pool, filled(pool, 40, 30)  # 3 + 2 pages


@pytest.mark.parametrize("what", ["stage", "load", "keep"])
def test_running_out_changes_nothing(full: tuple[Pages, PagedCache], what: str) -> None:
    pool, cache = full
    before = held(cache)
    other = pool.new_cache(1)
    saved = cache.save(0)
    if what == "keep":
        cache.stage(torch.zeros(2, 4, dtype=torch.int64))
        pair = cache.rows([0, 0])
    tables, free = [list(table) for table in cache.row_tables], pool.num_free
    with pytest.raises(NoPages, match=r"pages are needed and \d are free") as caught:
        if what == "stage":
            cache.stage(torch.zeros(2, 20, dtype=torch.int64))
        elif what == "load":
            other.load(0, saved)
        else:
            pair.keep([[2], [3]])
    assert caught.value.free == pool.num_free == free < caught.value.needed
    assert [list(table) for table in cache.row_tables] == tables and held(cache) == before
    assert cache.lengths == [40, 30] and other.lengths == [0]
    if what == "stage":  # one row leaves, and the other goes on
        cache.leave([1])
        cache.stage(torch.zeros(1, 20, dtype=torch.int64))
        assert cache.needed([20]) == 0
        cache.keep([range(20)])
        assert held(cache)[0][:30] == before[1]


def test_what_cannot_be_done_is_refused() -> None:
    for shape in ((2, 4, 1, 24, 2), (2, 0, 1, 16, 2)):
        with pytest.raises(ConfigError, match="cannot be made") as caught:
            Pages([torch.empty(shape)])
        assert "multiple of 16" in caught.value.hint
    pool, cache = new_pool(), filled(new_pool(), 20)
    with pytest.raises(ConfigError, match="different pages"):
        Cache.join([cache, filled(pool, 20)])
    with pytest.raises(ConfigError, match="cannot begin"):
        cache.attach(0, [1, 2], 20)
    with pytest.raises(ConfigError, match="not empty"):
        cache.load(0, cache.save(0))
    empty = pool.new_cache(1)
    with pytest.raises(ConfigError, match="cannot begin"):
        empty.attach(0, [1], 20)
    for change in (lambda: cache.part([0]).follow([0]), lambda: setattr(cache.part([0]), "extra", [])):
        with pytest.raises(TypeError, match="part"):
            change()


# Prefixes


def oracle(known: list[tuple[str, list[int]]], key: str, tokens: list[int]) -> int:
    """How many leading tokens some text that was put in begins with; of each, full pages only are known."""
    best = 0
    for of, text in known:
        same = next(
            (at for at, (a, b) in enumerate(zip(text, tokens, strict=False)) if a != b), min(len(text), len(tokens))
        )
        best = max(best, same if of == key else 0)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_prefixes_find_what_was_read_before(seed: int) -> None:
    draw, pool = random.Random(seed), new_pool(400)
    prefixes, known = Prefixes(pool), list[tuple[str, list[int]]]()
    queried = hit = 0
    for _ in range(60):
        key, old = draw.choice("ab"), draw.choice(known)[1] if known else []
        tokens = old[: draw.randint(0, len(old))] + [draw.randrange(3) for _ in range(draw.randint(0, 40))]
        length, table = prefixes.match(key, tokens)
        assert length == oracle(known, key, tokens) and len(table) == pool.needed(length)
        queried, hit = queried + len(tokens), hit + length
        row = pool.new_cache(1)
        row.attach(0, table, length)
        # The entries are those of the tokens: each says which text it stands for.
        expected = [float(hash((key, *tokens[: at + 1])) % 9973) for at in range(len(tokens))]
        assert held(row) == [expected[:length]]
        if length < len(tokens):
            row.stage(torch.zeros(1, len(tokens) - length, dtype=torch.int64))
            new = torch.tensor(expected[length:]).view(-1, 1, 1)
            row.write(0, length, [new.expand(-1, 3, 2), new.expand(-1, 1, 2)])
            row.keep([range(len(tokens) - length)])
        prefixes.insert(key, tokens, row.row_tables[0])
        known.append((key, tokens[: len(tokens) // SIZE * SIZE]))
    assert (prefixes.num_queried, prefixes.num_hit) == (queried, hit)
    del row, table
    assert pool.num_free == pool.num_pages - prefixes.num_pages and prefixes.num_idle == prefixes.num_pages
    prefixes.clear()
    assert pool.num_free == pool.num_pages and prefixes.match("a", known[-1][1])[0] == 0


def test_the_least_used_go_first_and_nothing_that_is_held() -> None:
    pool = new_pool(6)
    prefixes = Prefixes(pool)
    texts = {name: [ord(name)] * 32 for name in "abc"}
    for text in texts.values():
        prefixes.insert("model", text, filled(pool, 32).row_tables[0])
    assert pool.num_free == 0 and prefixes.num_idle == 6
    prefixes.match("model", texts["a"])
    kept = prefixes.match("model", texts["b"])[1]
    assert prefixes.match("model", texts["c"])[0] == 32
    row = filled(pool, 10)  # the end of a, which was used longest ago
    found = {name: prefixes.match("model", text)[0] for name, text in texts.items()}
    assert found == {"a": 16, "b": 32, "c": 32}
    others = filled(pool, 40)  # a, and of c, as b is in use
    found = {name: prefixes.match("model", text)[0] for name, text in texts.items()}
    assert found == {"a": 0, "b": 32, "c": 0} and prefixes.num_pages == 2
    with pytest.raises(NoPages):
        others.stage(torch.zeros(1, 20, dtype=torch.int64))
    del kept
    others.stage(torch.zeros(1, 20, dtype=torch.int64))
    assert held(row) == [[*map(float, range(1, 11))]] and prefixes.num_pages == 1


def test_many_hits_leave_no_heap_behind() -> None:
    pool = new_pool(8)
    prefixes = Prefixes(pool)
    prefixes.insert("model", range(64), filled(pool, 64).row_tables[0])
    for _ in range(1000):
        prefixes.match("model", range(64))
    assert len(prefixes._ends) < 200
    assert prefixes.evict(99) == 4 and pool.num_free == 8
