"""The compiled decoder against a float64 model written plainly here, and against itself in other shapes."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Iterator

import pytest
import torch
from random_weights import make_weights, streamed_bytes
from torch import Tensor

from outpace import kernels
from outpace.cache import Cache
from outpace.errors import ConfigError
from outpace.kernels import build as building
from outpace.kernels.decoder import CompiledDecoder, compile_decoder
from outpace.models.spec import Rope, Spec, rope_tables
from outpace.models.weights import LayerWeights, Matrix, Norm, Weights
from outpace.types import Outputs

pytestmark = pytest.mark.skipif(building.build().library is None, reason=building.build().note)

DTYPES = [torch.float32, torch.bfloat16]
CAPACITY = 96

OLDER = {
    "norm": "layer",
    "has_norm_bias": True,
    "is_gated": False,
    "positions": "learned",
    "qkv_bias": True,
    "o_bias": True,
    "mlp_bias": True,
    "head_bias": True,
}

# Every odd size at once: nothing is a multiple of a panel, a vector or a pair.
SHAPES = {
    "plain": {},
    "grouped": {"num_heads": 6, "num_kv_heads": 2},
    "one_key_head": {"num_heads": 4, "num_kv_heads": 1},
    "odd": {"hidden_size": 45, "ffn_size": 75, "head_dim": 10, "vocab_size": 83},
    "wide_head": {"head_dim": 80, "hidden_size": 64},
    "long_head": {"head_dim": 128, "num_heads": 2, "num_kv_heads": 1},
    "bias": {"qkv_bias": True},
    "qk_norm": {"qk_norm": "head"},
    "tied": {"tie_embeddings": True, "hidden_size": 50},
    "window": {"windows": (None, 5, 3)},
    "nope": {"rope_index": (0, -1, 0)},
    "full": {"attention": "full"},
    # What decoders before Llama are made of.
    "gpt2": OLDER | {"activation": "gelu_tanh", "tie_embeddings": True},
    "opt": OLDER | {"activation": "relu", "position_offset": 2, "hidden_size": 45, "ffn_size": 75, "head_dim": 10},
    "neox": OLDER | {"activation": "gelu", "positions": "rotary", "is_parallel": True, "rotary_dim": 4},
    "after": OLDER | {"norm_placement": "after", "has_final_norm": False, "embed_scale": 8.3, "hidden_size": 45},
    "after_rms": {"norm_placement": "after", "has_final_norm": False},
    "gated": {"activation": "gelu_tanh", "mlp_bias": True, "ffn_size": 75, "head_bias": True, "has_final_norm": False},
}


def make_spec(**changes: object) -> Spec:
    shape = {
        "vocab_size": 96,
        "hidden_size": 64,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 16,
        "ffn_size": 96,
        "max_positions": 400,
    } | changes
    if shape.get("positions", "rotary") != "rotary":
        return Spec(**shape)
    dim = shape.get("rotary_dim", shape["head_dim"])
    return Spec(**shape, ropes=(Rope(tuple(10000.0 ** (-i / dim) for i in range(0, dim, 2))),))


def make(spec: Spec, dtype: torch.dtype, seed: int = 0) -> Weights:
    weights = make_weights(spec, dtype, seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def bias(matrix: Matrix, spread: float = 1.0) -> Tensor:
        return (spread * torch.randn(matrix.shape[0], generator=generator)).to(dtype)

    for layer in weights.layers:
        layer.attn_norm.weight += 0.2 * torch.randn(spec.hidden_size, generator=generator)
        if spec.qkv_bias:
            layer.qkv.bias = bias(layer.qkv)
        if spec.o_bias:
            layer.o.bias = bias(layer.o)
        if spec.mlp_bias:
            layer.up.bias, layer.down.bias = bias(layer.up), bias(layer.down)
        for one in (layer.attn_norm, layer.mlp_norm):
            if one.bias is not None:
                one.bias += 0.2 * torch.randn(spec.hidden_size, generator=generator).to(dtype)
        if spec.qk_norm == "head":
            layer.q_norm = (1 + 0.3 * torch.randn(spec.head_dim, generator=generator)).to(dtype)
            layer.k_norm = (1 + 0.3 * torch.randn(spec.head_dim, generator=generator)).to(dtype)
    if spec.head_bias:
        weights.head.bias = bias(weights.head)
    return weights


def compiled(spec: Spec, dtype: torch.dtype, machine: str | None = None) -> CompiledDecoder:
    decoder = compile_decoder(spec, make(spec, dtype), dtype, machine=machine)
    assert decoder is not None, kernels.note()
    return decoder


def new_cache(spec: Spec, dtype: torch.dtype, rows: int = 1, capacity: int = CAPACITY) -> Cache:
    # NaN where nothing was written: whoever reads beyond the valid entries shows it.
    shape = (rows, spec.num_kv_heads, capacity, spec.head_dim)
    return Cache(
        [torch.full(shape, float("nan"), dtype=dtype) for _ in range(2 * spec.num_layers)], 2, None, [0] * rows
    )


def chain(length: int, vocab: int, start: int = 0, seed: int = 3) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, vocab, (1, length), generator=torch.Generator().manual_seed(seed))
    return tokens, torch.arange(start, start + length)[None]


def reference(
    spec: Spec, weights: Weights, tokens: Tensor, seen: Tensor, position: Tensor, dtype: torch.dtype
) -> Tensor:
    """One row without a cache: tokens [T], seen [T, T], position [T] -> logits [T, V]; everything in `dtype`."""
    x = weights.embed[tokens].to(dtype) * torch.tensor(spec.embed_scale, dtype=dtype)
    if weights.positions is not None:
        x = x + weights.positions[position + spec.position_offset].to(dtype)
    for index, layer in enumerate(weights.layers):
        before = spec.norm_placement == "pre"
        read = norm(spec, x, layer.attn_norm) if before else x
        attended = attention(spec, index, layer, read, seen, position)
        if spec.is_parallel:
            x = x + attended + mlp(spec, layer, norm(spec, x, layer.mlp_norm))
        elif before:
            x = x + attended
            x = x + mlp(spec, layer, norm(spec, x, layer.mlp_norm))
        else:
            x = norm(spec, x + attended, layer.attn_norm)
            x = norm(spec, x + mlp(spec, layer, x), layer.mlp_norm)
    return product(norm(spec, x, weights.final_norm), weights.head)


def norm(spec: Spec, x: Tensor, norm: Norm | None) -> Tensor:
    if norm is None:
        return x
    weight, bias = (None if part is None else part.to(x.dtype) for part in (norm.weight, norm.bias))
    if spec.norm == "layer":
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, spec.norm_eps)
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, spec.norm_eps)


def product(x: Tensor, matrix: Matrix) -> Tensor:
    found = x @ matrix.weight.to(x.dtype).T
    return found if matrix.bias is None else found + matrix.bias.to(x.dtype)


ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "relu": torch.nn.functional.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
}


def mlp(spec: Spec, layer: LayerWeights, x: Tensor) -> Tensor:
    up, act = product(x, layer.up), ACTIVATIONS[spec.activation]
    if not spec.is_gated:
        return product(act(up), layer.down)
    gate, up = up.chunk(2, -1)
    return product(act(gate) * up, layer.down)


def attention(spec: Spec, index: int, layer: LayerWeights, x: Tensor, seen: Tensor, position: Tensor) -> Tensor:
    qkv = product(x, layer.qkv).unflatten(-1, (-1, spec.head_dim)).transpose(0, 1)
    query, key, value = qkv.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads])
    if layer.q_norm is not None:
        query, key = norm(spec, query, Norm(layer.q_norm)), norm(spec, key, Norm(layer.k_norm))
    if spec.rope_index[index] >= 0:
        cos, sin = (table[position] for table in rope_tables(spec, spec.ropes[0], x.dtype, "cpu"))
        query, key = (h * cos + h.roll(spec.head_dim // 2, -1) * sin for h in (query, key))
    if spec.windows[index]:
        seen = seen & (position[:, None] - position[None, :] < spec.windows[index])
    groups = spec.num_heads // spec.num_kv_heads
    key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    score = (query @ key.transpose(1, 2) * spec.attn_scale).masked_fill(~seen, float("-inf"))
    return product((score.softmax(-1) @ value).transpose(0, 1).flatten(1), layer.o)


def error(result: Tensor, truth: Tensor) -> float:
    return float((result.double() - truth).norm() / truth.norm())


def causal(spec: Spec, length: int) -> Tensor:
    seen = torch.ones(length, length, dtype=torch.bool)
    return seen if spec.attention == "full" else seen.tril()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_agrees_with_float64(name: str, dtype: torch.dtype) -> None:
    """float32: rounding of sums of at most 128 terms, far below 1e-5. bfloat16: no worse than torch in bfloat16."""
    spec = make_spec(**SHAPES[name])
    weights = make(spec, dtype)
    tokens, position = chain(23, spec.vocab_size)
    logits = compiled(spec, dtype).forward(tokens, position, None, new_cache(spec, dtype))[0]
    seen = causal(spec, 23)
    truth = reference(spec, weights, tokens[0], seen, position[0], torch.float64)
    if dtype == torch.float32:
        assert error(logits, truth) < 1e-5
    else:
        plain = reference(spec, weights, tokens[0], seen, position[0], dtype)
        assert error(logits, truth) <= 1.05 * error(plain, truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in SHAPES if name != "full"])
def test_bits_do_not_depend_on_width(name: str, dtype: torch.dtype) -> None:
    """Single steps, windows of 16 and one wide forward give the same bits, with 1 thread and with 2."""
    spec = make_spec(**SHAPES[name])
    decoder, results = compiled(spec, dtype), []
    tokens, position = chain(48, spec.vocab_size)
    for width, threads in ((48, 2), (1, 1), (16, 1), (16, 2), (5, 2), (48, 3)):
        with use_threads(threads):
            results.append(torch.cat(list(step_through(decoder, tokens, position, width)), dim=1))
    assert all(torch.equal(results[0], other) for other in results[1:])


class use_threads:
    def __init__(self, threads: int) -> None:
        self.threads, self.before = threads, torch.get_num_threads()

    def __enter__(self) -> None:
        torch.set_num_threads(self.threads)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def step_through(decoder: CompiledDecoder, tokens: Tensor, position: Tensor, width: int) -> Iterator[Tensor]:
    cache = new_cache(decoder.spec, decoder.dtype)
    for at in range(0, tokens.shape[1], width):
        part = slice(at, at + width)
        yield decoder.forward(tokens[:, part], position[:, part], None, cache)
        cache.keep([list(range(tokens[:, part].shape[1]))])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ragged_batch_has_the_bits_of_single_rows(dtype: torch.dtype) -> None:
    spec = make_spec(num_heads=4, num_kv_heads=2, windows=(None, 7, None))
    decoder, prefixes, widths = compiled(spec, dtype), [9, 0, 20], [3, 6, 1]
    tokens = torch.full((3, 6), 1)
    position = torch.full((3, 6), -1)
    alone, caches = [], []
    for row, (prefix, width) in enumerate(zip(prefixes, widths, strict=True)):
        ids, places = chain(prefix + width, spec.vocab_size, seed=row)
        cache = new_cache(spec, dtype, capacity=24)
        if prefix:
            decoder.forward(ids[:, :prefix], places[:, :prefix], None, cache, torch.zeros(1, 0, dtype=torch.int64))
            cache.keep([list(range(prefix))])
        caches.append(cache)
        tokens[row, :width], position[row, :width] = ids[0, prefix:], places[0, prefix:]
        alone.append(decoder.forward(ids[:, prefix:], places[:, prefix:], None, cache.rows([0]))[0])
    # The last row has 24 slots, 20 of them valid: its padding reaches beyond the cache and writes nothing.
    logits = decoder.forward(tokens, position, None, Cache.join(caches))
    for row, width in enumerate(widths):
        assert torch.equal(logits[row, :width], alone[row])
        assert not logits[row, width:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding_inside_a_row_is_not_seen(dtype: torch.dtype) -> None:
    spec = make_spec()
    decoder = compiled(spec, dtype)
    tokens, position = chain(4, spec.vocab_size)
    plain = decoder.forward(tokens, position, None, new_cache(spec, dtype))
    holes = torch.tensor([[0, -1, 1, -1, 2, 3]])
    spread = torch.zeros(1, 6, dtype=torch.int64)
    spread[holes >= 0] = tokens[0]
    padded = decoder.forward(spread, holes, None, new_cache(spec, dtype))
    assert torch.equal(padded[holes >= 0], plain[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("windows", [(), (4, None, 2)])
def test_tree_paths_have_the_bits_of_chains(dtype: torch.dtype, windows: tuple[int | None, ...]) -> None:
    spec = make_spec(num_heads=4, num_kv_heads=2, windows=windows)
    decoder = compiled(spec, dtype)
    prefix, places = chain(11, spec.vocab_size)
    base = new_cache(spec, dtype)
    decoder.forward(prefix, places, None, base)
    base.keep([list(range(11))])
    # A root with two branches, interleaved: 0 -> 1 -> 3 -> 5 and 0 -> 2 -> 4.
    parent, nodes = [-1, 0, 0, 1, 2, 3], torch.tensor([[5, 9, 7, 3, 2, 8]])
    visible, depth = tree(parent)
    logits = decoder.forward(nodes, 11 + depth[None], visible[None], base)
    for path in ([0, 1, 3, 5], [0, 2, 4]):
        straight = decoder.forward(nodes[:, path], 11 + torch.arange(len(path))[None], None, base.rows([0]))
        assert torch.equal(logits[0, path], straight[0])
    # After the path is kept, the next step continues as if the branch had never been there.
    straight, kept = base.rows([0]), base.rows([0])
    decoder.forward(nodes, 11 + depth[None], visible[None], kept)
    kept.keep([[0, 1, 3, 5]])
    decoder.forward(nodes[:, [0, 1, 3, 5]], 11 + torch.arange(4)[None], None, straight)
    straight.keep([[0, 1, 2, 3]])
    step = (torch.tensor([[4]]), torch.tensor([[15]]), None)
    assert torch.equal(decoder.forward(*step, kept), decoder.forward(*step, straight))


def tree(parent: list[int]) -> tuple[Tensor, Tensor]:
    visible = torch.eye(len(parent), dtype=torch.bool)
    for node, above in enumerate(parent):
        if above >= 0:
            visible[node] |= visible[above]
    return visible, visible.sum(1) - 1


def test_a_mask_decides_who_is_seen() -> None:
    spec = make_spec(attention="full")
    weights = make(spec, torch.float32)
    seen = torch.rand(12, 12, generator=torch.Generator().manual_seed(5)) < 0.5
    seen |= torch.eye(12, dtype=torch.bool)
    tokens, position = chain(12, spec.vocab_size)
    logits = compiled(spec, torch.float32).forward(tokens, position, seen[None], new_cache(spec, torch.float32))
    assert error(logits[0], reference(spec, weights, tokens[0], seen, position[0], torch.float64)) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long_prefill_equals_steps(dtype: torch.dtype) -> None:
    """A prefill longer than one chunk of the kernel."""
    spec = make_spec(num_layers=2, windows=(None, 50))
    decoder = compiled(spec, dtype)
    tokens, position = chain(300, spec.vocab_size)
    wide, narrow = new_cache(spec, dtype, capacity=300), new_cache(spec, dtype, capacity=300)
    logits = decoder.forward(tokens, position, None, wide, torch.tensor([[299, 0, 150]]))
    steps = []
    for at in range(0, 300, 7):
        part = slice(at, min(at + 7, 300))
        steps.append(decoder.forward(tokens[:, part], position[:, part], None, narrow))
        narrow.keep([list(range(part.stop - at))])
    assert torch.equal(logits[0], torch.cat(steps, 1)[0, [299, 0, 150]])
    assert all(torch.equal(a, b) for a, b in zip(wide.buffers, narrow.buffers, strict=True))


def new_coded_cache(spec: Spec, dtype: torch.dtype, rows: int = 1, capacity: int = CAPACITY) -> Cache:
    shape = (rows, spec.num_kv_heads, capacity, spec.head_dim + 4)
    # 255 in every byte: a factor that is no number, wherever nothing was written.
    buffers = [torch.full(shape, 255, dtype=torch.uint8) for _ in range(2 * spec.num_layers)]
    return Cache(buffers, 2, None, [0] * rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_int8_cache_keeps_every_promise(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands beside a token, its bits are the same; a rounding to 8 bits moves logits by about a percent."""
    monkeypatch.setitem(globals(), "new_cache", new_coded_cache)
    for name in ("grouped", "odd", "wide_head", "full"):
        spec = make_spec(**SHAPES[name])
        tokens, position = chain(23, spec.vocab_size)
        logits = compiled(spec, dtype).forward(tokens, position, None, new_cache(spec, dtype))
        truth = reference(spec, make(spec, dtype), tokens[0], causal(spec, 23), position[0], torch.float64)
        assert 1e-5 < error(logits[0], truth) < 0.02
    for name in ("grouped", "odd"):
        test_bits_do_not_depend_on_width(name, dtype)
    test_ragged_batch_has_the_bits_of_single_rows(dtype)
    test_padding_inside_a_row_is_not_seen(dtype)
    test_tree_paths_have_the_bits_of_chains(dtype, (4, None, 2))
    test_long_prefill_equals_steps(dtype)
    test_a_broken_row_leaves_its_neighbours_and_later_calls_alone(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_skipped_layers_pass_the_stream(dtype: torch.dtype) -> None:
    spec = make_spec()
    weights = make(spec, dtype)
    tokens, position = chain(6, spec.vocab_size)
    skipped = compiled(spec, dtype).forward(tokens, position, None, new_cache(spec, dtype), skip=(0, 2))
    shorter = dataclasses.replace(spec, num_layers=1, windows=(), rope_index=())
    weights.layers = [weights.layers[1]]
    small = compile_decoder(shorter, weights, dtype)
    assert small is not None
    assert torch.equal(skipped, small.forward(tokens, position, None, new_cache(shorter, dtype)))


def test_skipping_all_layers_and_asking_for_nothing() -> None:
    spec = make_spec()
    decoder = compiled(spec, torch.float32)
    tokens, position = chain(3, spec.vocab_size)
    cache = new_cache(spec, torch.float32)
    assert decoder.forward(tokens, position, None, cache, skip=(0, 1, 2)).isfinite().all()
    nothing = decoder.forward(tokens, position, None, cache, torch.zeros(1, 0, dtype=torch.int64))
    assert nothing.shape == (1, 0, spec.vocab_size)
    padding = decoder.forward(tokens, torch.full((1, 3), -1), None, cache)
    assert not padding.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_broken_row_leaves_its_neighbours_and_later_calls_alone(dtype: torch.dtype) -> None:
    spec = make_spec(hidden_size=45)
    weights = make(spec, dtype)
    weights.embed[7] = float("nan")
    decoder = compile_decoder(spec, weights, dtype)
    assert decoder is not None
    position = torch.arange(2).expand(2, 2)
    good = decoder.forward(torch.tensor([[1, 2], [3, 4]]), position, None, new_cache(spec, dtype, 2))
    mixed = decoder.forward(torch.tensor([[1, 7], [3, 4]]), position, None, new_cache(spec, dtype, 2))
    assert mixed[0, 1].isnan().all()
    assert torch.equal(mixed[1], good[1]) and torch.equal(mixed[0, 0], good[0, 0])
    again = decoder.forward(torch.tensor([[1, 2], [3, 4]]), position, None, new_cache(spec, dtype, 2))
    assert torch.equal(again, good)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_and_taps(dtype: torch.dtype) -> None:
    """Soft embeddings replace tokens; the last tap times the head gives the logits; skipped layers tap the stream."""
    spec = make_spec(hidden_size=45)
    weights, decoder, (tokens, position) = make(spec, dtype), compiled(spec, dtype), chain(20, spec.vocab_size)
    ask = torch.tensor([[3, 19]])
    plain = decoder.forward(tokens, position, None, new_cache(spec, dtype), ask)
    soft, call = weights.embed[tokens], (torch.zeros_like(tokens), position, None)
    out = decoder.score(*call, new_cache(spec, dtype), ask, Outputs((0, 2, 3), True), soft)
    assert torch.equal(out.logits, plain) and set(out.taps) == {0, 2, 3} and out.last is not None
    assert torch.equal(decoder.head(out.last[0]), plain[0])
    head = out.last.double() @ weights.head.weight.double().T
    assert error(out.logits, head) < (1e-6 if dtype == torch.float32 else 4e-3)
    stream = norm(spec, out.taps[3].double(), weights.final_norm)
    assert error(out.last, stream) < (1e-6 if dtype == torch.float32 else 8e-3)
    none = decoder.score(*call, new_cache(spec, dtype), ask, Outputs((0, 1)), soft, (0, 1, 2))
    assert torch.equal(none.taps[0][0], soft[0, ask[0]]) and torch.equal(none.taps[1], none.taps[0])


def test_logits_belong_to_the_caller() -> None:
    spec = make_spec()
    decoder, (tokens, position) = compiled(spec, torch.float32), chain(2, spec.vocab_size)
    first = decoder.forward(tokens, position, None, new_cache(spec, torch.float32))
    copy = first.clone()
    decoder.forward((tokens + 1) % spec.vocab_size, position, None, new_cache(spec, torch.float32))
    assert torch.equal(first, copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": torch.tensor([[96]])}, "vocabulary"),
        ({"tokens": torch.tensor([[-1]])}, "vocabulary"),
        ({"position": torch.tensor([[400]])}, "context"),
        ({"ask": torch.tensor([[1]])}, "asked index"),
        ({"ask": torch.tensor([[-1]])}, "asked index"),
        ({"tokens": torch.tensor([[1]], dtype=torch.int32)}, "int64"),
        ({"position": torch.tensor([[0, 1]])}, "int64"),
        ({"visible": torch.ones(1, 2, 2, dtype=torch.bool)}, "visible"),
        ({"visible": torch.ones(1, 1, 1)}, "visible"),
        ({"inputs": torch.ones(1, 1, 3)}, "inputs"),
        ({"outputs": Outputs((4,))}, "no layer"),
    ],
)
def test_bad_calls_are_refused(change: dict[str, object], words: str) -> None:
    spec = make_spec()
    call = {"tokens": torch.tensor([[1]]), "position": torch.tensor([[0]]), "visible": None} | change
    with pytest.raises(ConfigError, match=words):
        compiled(spec, torch.float32).score(**call, cache=new_cache(spec, torch.float32))


@pytest.mark.parametrize("kind", ["full", "claims", "rows", "layers", "dtype", "strides"])
def test_caches_that_do_not_fit_are_refused(kind: str) -> None:
    spec = make_spec()
    cache = new_cache(spec, torch.bfloat16 if kind == "dtype" else torch.float32, rows=2 if kind == "rows" else 1)
    if kind in ("full", "claims"):
        cache.lengths = [CAPACITY + (kind == "claims")]
    elif kind == "layers":
        cache.buffers.pop()
    elif kind == "strides":
        cache.buffers[3] = cache.buffers[3].transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(ConfigError, match=r"cache|slots"):
        compiled(spec, torch.float32).forward(*chain(1, spec.vocab_size), None, cache)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="an x86 architecture level")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("machine", ["-march=x86-64-v3"])
@pytest.mark.parametrize("name", ["window", "after", "opt", "neox"])
def test_older_machines_run_the_same_code(name: str, machine: str, dtype: torch.dtype) -> None:
    """AVX2, no bfloat16 instructions: other bits, the same accuracy, and still independent of the width."""
    sizes = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 20, "hidden_size": 45, "ffn_size": 75}
    spec = make_spec(**{**SHAPES[name], **sizes})
    weights, decoder = make(spec, dtype), compiled(spec, dtype, machine)
    tokens, position = chain(40, spec.vocab_size)
    logits = decoder.forward(tokens, position, None, new_cache(spec, dtype))
    truth = reference(spec, weights, tokens[0], causal(spec, 40), position[0], torch.float64)
    plain = reference(spec, weights, tokens[0], causal(spec, 40), position[0], dtype)
    assert error(logits[0], truth) < (1e-5 if dtype == torch.float32 else 1.05 * error(plain, truth))
    for width in (1, 7):
        assert torch.equal(logits, torch.cat(list(step_through(decoder, tokens, position, width)), dim=1))


def test_released_weights_are_freed_and_packing_adds_little() -> None:
    spec = make_spec(hidden_size=256, ffn_size=512, num_heads=8, num_kv_heads=8, head_dim=32, tie_embeddings=True)
    weights = make(spec, torch.bfloat16)
    decoder = compile_decoder(spec, weights, torch.bfloat16, release=True)
    assert decoder is not None
    assert all(matrix.weight is None for layer in weights.layers for matrix in layer.matrices())
    assert decoder.num_bytes < 1.1 * streamed_bytes(spec, torch.bfloat16)


@pytest.mark.parametrize(
    "change",
    [
        {"norm_placement": "sandwich"},
        {"norm_placement": "after"},  # with a final norm
        {"embed_size": 20},
        {"attn_softcap": 30.0},
        {"qk_norm": "full"},
    ],
)
def test_other_families_are_left_to_the_eager_path(change: dict[str, object]) -> None:
    assert kernels.supports(make_spec())
    assert not kernels.supports(make_spec(**change))


def test_other_dtypes_are_left_to_the_eager_path() -> None:
    spec = make_spec()
    assert compile_decoder(spec, make(spec, torch.float64), torch.float64) is None


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTPACE_COMPILED", "0")
    spec = make_spec()
    assert compile_decoder(spec, make(spec, torch.float32), torch.float32) is None
    assert "OUTPACE_COMPILED" in kernels.note()


def test_no_compiler_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path))
    monkeypatch.setattr(building.shutil, "which", lambda name: None)
    assert building.build() == building.Built(None, "no C++ compiler was found (g++, c++ or clang++)")


def test_a_failing_compiler_says_why_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path))
    built = building.build("-march=no-such-machine")
    assert built.library is None and "could not be built" in built.note
    assert not list(tmp_path.glob("*.so"))


def test_bandwidth_is_measured() -> None:
    assert kernels.read_bandwidth(8, threads=1, repeats=2) > 0.1
