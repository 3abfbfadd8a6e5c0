"""Canvases on the compiled decoder: against the eager one, and bit by bit against the same nodes laid out otherwise."""

from __future__ import annotations

import dataclasses
import platform
import random

import pytest
import torch
from random_weights import make_weights
from torch import Tensor

from outpace import kernels
from outpace.cache import Cache
from outpace.kernels import build as building
from outpace.kernels.decoder import compile_decoder
from outpace.models.spec import Rope, Spec
from outpace.models.transformer import Transformer
from outpace.models.weights import Weights
from outpace.types import Outputs, Scores

pytestmark = pytest.mark.skipif(building.build().library is None, reason=building.build().note)

DTYPES = [torch.float32, torch.bfloat16]
SEEDS = range(3)
BLOCK = 4
KINDS = {"full": {"attention": "full"}, "block": {"attention": "block", "block_size": BLOCK}}
CAPACITY = 200

# A row's part of a forward: tokens [T], positions [T].
Nodes = tuple[Tensor, Tensor]


def make_spec(draw: random.Random, **changes: object) -> Spec:
    kv_heads, dim = draw.choice([1, 2, 3]), draw.choice([10, 16, 64, 80])
    shape = {
        "vocab_size": draw.choice([61, 96]),
        "hidden_size": draw.choice([45, 64]),
        "num_layers": 2,
        "num_heads": kv_heads * draw.choice([1, 2, 5]),
        "num_kv_heads": kv_heads,
        "head_dim": dim,
        "ffn_size": draw.choice([75, 96]),
        "max_positions": 300,
        "qk_norm": draw.choice(["none", "head"]),
    } | changes
    return Spec(**shape, ropes=(Rope(tuple(10000.0 ** (-i / dim) for i in range(0, dim, 2))),))


def make(spec: Spec, dtype: torch.dtype, is_compiled: bool = True) -> Transformer:
    model = Transformer(spec, draw_weights(spec, dtype), pack=False)
    assert not is_compiled or model.compile(kernels), kernels.note()
    return model


def draw_weights(spec: Spec, dtype: torch.dtype, wide: torch.dtype | None = None) -> Weights:
    """Random weights rounded to `dtype`, held in `wide`."""
    weights = make_weights(spec, dtype)
    wide, generator = wide or dtype, torch.Generator().manual_seed(1)
    weights.embed = weights.embed.to(wide)
    for layer in weights.layers:
        if spec.qk_norm == "head":
            layer.q_norm = (1 + 0.3 * torch.randn(spec.head_dim, generator=generator)).to(dtype)
            layer.k_norm = (1 + 0.3 * torch.randn(spec.head_dim, generator=generator)).to(dtype)
            layer.q_norm, layer.k_norm = layer.q_norm.to(wide), layer.k_norm.to(wide)
        for part in (*layer.matrices(), layer.attn_norm, layer.mlp_norm):
            part.weight = part.weight.to(wide)
    for part in (weights.head, weights.final_norm):
        part.weight = part.weight.to(wide)
    return weights


def new_cache(model: Transformer, rows: int = 1) -> Cache:
    cache = model.new_cache(rows, CAPACITY)
    for buffer in cache.buffers:  # whoever reads an entry that nobody wrote shows it
        buffer.fill_(0.0 if model.path == "torch" else float("nan"))
    return cache


def draw_nodes(draw: random.Random, spec: Spec, positions: list[int]) -> Nodes:
    return torch.tensor([draw.randrange(spec.vocab_size) for _ in positions]), torch.tensor(positions)


def forward(model: Transformer, nodes: Nodes, cache: Cache, visible: Tensor | None = None, **more: object) -> Scores:
    tokens, position = nodes
    return model.score(tokens[None], position[None], None if visible is None else visible[None], cache, **more)


def sight(spec: Spec, position: Tensor) -> Tensor:
    """[T, T]: who sees whom by the model's own attention."""
    block = position // (spec.block_size or spec.max_positions)
    return block[None, :] <= block[:, None]


def side_by_side(parts: list[Nodes]) -> Nodes:
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([position for _, position in parts])


def fill(model: Transformer, draw: random.Random, positions: list[int]) -> Cache:
    """A cache that holds these positions, in this order."""
    cache = new_cache(model)
    if positions:
        forward(model, draw_nodes(draw, model.spec, positions), cache, ask=torch.zeros(1, 0, dtype=torch.int64))
        cache.keep([list(range(len(positions)))])
    return cache


def error(result: Tensor, truth: Tensor) -> float:
    return float((result.double() - truth).norm() / truth.norm())


# Against the eager path


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_agrees_with_the_eager_path(kind: str, is_shifted: bool, seed: int) -> None:
    """Entries in any order, windows anywhere, ragged rows, a subset asked, soft inputs, taps, a mask or none."""
    draw = random.Random(seed)
    spec = make_spec(draw, **KINDS[kind], logits_shift=is_shifted)
    held = [draw.sample(range(40), draw.randrange(1, 30)) for _ in range(3)]
    own = [sorted(draw.sample(range(40, 140), size)) for size in (37, 5, 20)]
    tokens, position = torch.ones(3, 37, dtype=torch.int64), torch.full((3, 37), -1)
    for row, places in enumerate(own):
        tokens[row, : len(places)], position[row, : len(places)] = draw_nodes(draw, spec, places)
    ask = torch.tensor([[draw.randrange(len(places)) for _ in range(4)] for places in own])
    ask[0, 0] = 0
    visible = torch.rand(3, 37, 37, generator=torch.Generator().manual_seed(seed)) < 0.5
    visible &= (position >= 0)[:, None, :]
    inputs = torch.randn(3, 37, spec.hidden_size, generator=torch.Generator().manual_seed(seed))
    calls = (
        {"visible": None, "ask": ask, "outputs": Outputs((0, 1), True)},
        {"visible": visible, "ask": ask, "outputs": Outputs((2,), True)},
        {"visible": None, "ask": ask, "inputs": inputs},
        {"visible": visible},
    )
    found = []
    for model in (make(spec, torch.float32, False), make(spec, torch.float32)):
        caches = [fill(model, random.Random(seed + row), places) for row, places in enumerate(held)]
        found.append([model.score(tokens, position, cache=Cache.join(caches), **call) for call in calls])
    is_real = position >= 0
    for call, eager, ours in zip(calls, *found, strict=True):
        chosen = slice(None) if "ask" in call else is_real
        assert error(ours.logits[chosen], eager.logits[chosen]) < 1e-5
        assert ours.taps.keys() == eager.taps.keys() and (ours.last is None) == (eager.last is None)
        for layer, state in eager.taps.items():
            assert error(ours.taps[layer], state) < 1e-5
        if eager.last is not None:
            assert error(ours.last, eager.last) < 1e-5
            assert torch.equal(model.head(ours.last), ours.logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_bfloat16_is_no_worse_than_eager(kind: str, seed: int) -> None:
    """Rounded as rarely as the eager path or less, so its distance from float64 is no larger."""
    draw = random.Random(seed)
    spec = make_spec(draw, **KINDS[kind], logits_shift=bool(seed % 2))
    places = sorted(draw.sample(range(200), 60))
    nodes, eager = draw_nodes(draw, spec, places), make(spec, torch.bfloat16, False)
    wide = Transformer(spec, draw_weights(spec, torch.bfloat16, torch.float64), pack=False)
    truth = forward(wide, nodes, new_cache(wide)).logits
    plain = forward(eager, nodes, new_cache(eager)).logits
    model = make(spec, torch.bfloat16)
    assert error(forward(model, nodes, new_cache(model)).logits, truth) <= 1.05 * error(plain, truth)


def test_a_shift_reads_one_node_earlier() -> None:
    """Logits and the state that the head reads are shifted, tapped layers are not."""
    spec = make_spec(random.Random(5), attention="full", logits_shift=True)
    plain = make(dataclasses.replace(spec, logits_shift=False), torch.float32)
    model, nodes = make(spec, torch.float32), draw_nodes(random.Random(6), spec, list(range(30)))
    every = forward(plain, nodes, new_cache(plain), outputs=Outputs((1,), True))
    source = [0, *range(29)]
    found = forward(model, nodes, new_cache(model), outputs=Outputs((1,), True))
    assert torch.equal(found.logits, every.logits[:, source])
    assert torch.equal(found.last, every.last[:, source])
    assert torch.equal(found.taps[1], every.taps[1])
    ask = [7, 0, 29, 7]
    some = forward(model, nodes, new_cache(model), ask=torch.tensor([ask]), outputs=Outputs((1,)))
    assert torch.equal(some.logits, found.logits[:, ask]) and torch.equal(some.taps[1], every.taps[1][:, ask])
    padded = nodes[0], torch.where(nodes[1] < 20, nodes[1], -1)
    assert not forward(model, padded, new_cache(model)).logits[0, 20:].any()


# The same bits in every layout


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("seed", SEEDS)
def test_a_row_has_its_bits_alone_and_in_any_batch(kind: str, dtype: torch.dtype, seed: int) -> None:
    draw = random.Random(seed)
    model = make(make_spec(draw, **KINDS[kind]), dtype)
    sizes = [draw.randrange(1, 70) for _ in range(3)]
    caches = [fill(model, draw, draw.sample(range(100), draw.randrange(60))) for _ in sizes]
    own = [draw_nodes(draw, model.spec, draw.sample(range(100, 200), size)) for size in sizes]
    width = max(sizes)
    tokens, position = torch.ones(3, width, dtype=torch.int64), torch.full((3, width), -1)
    visible = torch.zeros(3, width, width, dtype=torch.bool)
    for row, (ids, places) in enumerate(own):
        tokens[row, : len(ids)], position[row, : len(ids)] = ids, places
        visible[row, : len(ids), : len(ids)] = sight(model.spec, places)
    visible |= torch.eye(width, dtype=torch.bool)
    for seen in (None, visible):
        logits = model.score(tokens, position, seen, Cache.join(caches)).logits
        for row, nodes in enumerate(own):
            assert torch.equal(logits[row, : sizes[row]], forward(model, nodes, caches[row].rows([0])).logits[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_block_has_its_bits_with_and_without_a_cached_past(dtype: torch.dtype, seed: int) -> None:
    draw = random.Random(seed)
    model = make(make_spec(draw, **KINDS["block"]), dtype)
    past, ahead = BLOCK * draw.randrange(1, 20), BLOCK * draw.randrange(1, 9)
    tokens, position = draw_nodes(draw, model.spec, list(range(past + ahead)))
    whole = forward(model, (tokens, position), new_cache(model)).logits
    cache = new_cache(model)
    for start in range(0, past, 3 * BLOCK):  # the past itself arrives in several forwards
        part = slice(start, min(start + 3 * BLOCK, past))
        logits = forward(model, (tokens[part], position[part]), cache).logits
        assert torch.equal(logits, whole[:, part])
        cache.keep([list(range(part.stop - start))])
    assert torch.equal(forward(model, (tokens[past:], position[past:]), cache).logits, whole[:, past:])


@pytest.mark.parametrize("seed", SEEDS)
def test_copies_side_by_side_have_the_bits_of_each_alone(kind: str, dtype: torch.dtype, seed: int) -> None:
    """Copies of different sizes behind one cache, each blind to the others, whatever the others hold."""
    draw = random.Random(seed)
    model = make(make_spec(draw, **KINDS[kind]), dtype)
    cache = fill(model, draw, draw.sample(range(60), draw.randrange(50)))
    copies = [
        draw_nodes(draw, model.spec, sorted(draw.sample(range(60, 130), draw.randrange(1, 40)))) for _ in range(4)
    ]
    visible = torch.block_diag(*[sight(model.spec, position).float() for _, position in copies]).bool()
    together = forward(model, side_by_side(copies), cache.rows([0]), visible).logits[0]
    parts = together.split([len(tokens) for tokens, _ in copies])
    for part, copy in zip(parts, copies, strict=True):
        assert torch.equal(part, forward(model, copy, cache.rows([0])).logits[0])
    broken = model.embed(side_by_side(copies)[0])[None].clone()
    broken[0, : len(copies[0][0])] = float("nan")
    spoiled = forward(model, side_by_side(copies), cache.rows([0]), visible, inputs=broken).logits[0]
    assert torch.equal(spoiled[len(copies[0][0]) :], together[len(copies[0][0]) :])


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_not_seen_may_lie_anywhere(kind: str, dtype: torch.dtype, seed: int) -> None:
    """Only the order of the seen nodes counts: strangers between them change no bit, on any number of threads."""
    draw = random.Random(seed)
    model = make(make_spec(draw, **KINDS[kind]), dtype)
    cache = fill(model, draw, draw.sample(range(60), draw.randrange(50)))
    nodes = draw_nodes(draw, model.spec, draw.sample(range(60, 200), 50))
    alone = forward(model, nodes, cache.rows([0])).logits[0]
    tokens, position = draw_nodes(draw, model.spec, draw.sample(range(60, 200), 110))
    places = sorted(draw.sample(range(110), 50))
    tokens[places], position[places] = nodes
    visible = torch.rand(110, 110, generator=torch.Generator().manual_seed(seed)) < 0.5
    visible[places] = False
    visible[torch.tensor(places)[:, None], torch.tensor(places)] = sight(model.spec, nodes[1])
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            logits = forward(model, (tokens, position), cache.rows([0]), visible).logits[0]
            assert torch.equal(logits[places], alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("seed", SEEDS)
def test_nodes_stand_for_entries_that_are_not_kept_yet(dtype: torch.dtype, seed: int) -> None:
    """A second copy that sees some nodes of the first has the bits of the step after those were kept."""
    draw = random.Random(seed)
    model = make(make_spec(draw, attention="full"), dtype)
    cache = fill(model, draw, draw.sample(range(60), 20))
    first = draw_nodes(draw, model.spec, list(range(60, 90)))
    kept = sorted(draw.sample(range(30), 9))
    left = [place for place in range(60, 90) if place - 60 not in kept]
    second = draw_nodes(draw, model.spec, left)
    visible = torch.zeros(30 + len(left), 30 + len(left), dtype=torch.bool)
    visible[:30, :30] = visible[30:, 30:] = True
    visible[30:, kept] = True
    together = forward(model, side_by_side([first, second]), cache.rows([0]), visible).logits[0]
    assert torch.equal(together[:30], forward(model, first, cache).logits[0])
    cache.keep([kept])
    assert torch.equal(together[30:], forward(model, second, cache).logits[0])


def test_a_wide_canvas_has_the_bits_of_a_masked_one(kind: str, dtype: torch.dtype) -> None:
    """The model's own attention is told once for all nodes; spelt out as a mask it is read node by node."""
    draw = random.Random(9)
    model = make(make_spec(draw, **KINDS[kind], max_positions=900), dtype)
    nodes, cache = draw_nodes(draw, model.spec, draw.sample(range(900), 420)), model.new_cache(1, 420)
    ask = torch.tensor([[0, 200, 419]])
    plain = forward(model, nodes, cache, ask=ask).logits
    assert torch.equal(plain, forward(model, nodes, cache, sight(model.spec, nodes[1]), ask=ask).logits)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="an x86 architecture level")
def test_older_machines_keep_the_bits_too(kind: str, dtype: torch.dtype) -> None:
    """Blocks of keys half as wide: two copies side by side, and each alone."""
    draw = random.Random(11)
    spec = make_spec(draw, **KINDS[kind])
    decoder = compile_decoder(spec, draw_weights(spec, dtype), dtype, machine="-march=x86-64-v3")
    assert decoder is not None, kernels.note()
    copies = [draw_nodes(draw, spec, draw.sample(range(200), size)) for size in (35, 21)]
    seen = torch.block_diag(*[sight(spec, position).float() for _, position in copies]).bool()
    shape = (1, spec.num_kv_heads, 56, spec.head_dim)
    cache = Cache([torch.full(shape, float("nan"), dtype=dtype) for _ in range(2 * spec.num_layers)], 2, None, [0])
    tokens, position = side_by_side(copies)
    together = decoder.forward(tokens[None], position[None], seen[None], cache)[0].split([35, 21])
    for part, (ids, places) in zip(together, copies, strict=True):
        assert torch.equal(part, decoder.forward(ids[None], places[None], None, cache)[0])


def test_padding_between_nodes_is_not_seen(kind: str, dtype: torch.dtype) -> None:
    draw = random.Random(12)
    model = make(make_spec(draw, **KINDS[kind]), dtype)
    tokens, position = draw_nodes(draw, model.spec, draw.sample(range(200), 40))
    places = sorted(draw.sample(range(70), 40))
    spread, holes = torch.ones(70, dtype=torch.int64), torch.full((70,), -1)
    spread[places], holes[places] = tokens, position
    padded = forward(model, (spread, holes), new_cache(model)).logits[0]
    assert torch.equal(padded[places], forward(model, (tokens, position), new_cache(model)).logits[0])
