"""Quantised matrices in the compiled decoder: exact against the slow reading, equal bits on every machine and width."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from test_kernels import chain, compiled, error, make, make_spec, new_cache, step_through, tree, use_threads
from torch import Tensor

from outpace import kernels
from outpace.api.engine import load
from outpace.cache import Cache
from outpace.errors import ConfigError, ModelError
from outpace.kernels import build as building
from outpace.kernels.coding import FLOAT, HALF, WHOLE, code
from outpace.kernels.decoder import CompiledDecoder, compile_decoder
from outpace.models.loading import load_model
from outpace.models.quantised import Quantised, join, round_inputs
from outpace.models.spec import Spec
from outpace.models.tensors import TensorFiles
from outpace.models.transformer import Transformer
from outpace.models.weights import Matrix, Weights
from outpace.types import Outputs

pytestmark = pytest.mark.skipif(building.build().library is None, reason=building.build().note)

INPUTS = 512


def draw(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantise(weight: Tensor, bits: int, group: int) -> Quantised:
    """Symmetric codes with one float16 scale per group: the largest value falls on the outermost code."""
    rows, zero = len(weight), 2 ** (bits - 1)
    values = weight.float().view(rows, -1, group)
    exact = values.gather(-1, values.abs().argmax(-1, keepdim=True)).squeeze(-1) / -zero
    if bits == 8:
        exact = values.abs().amax(-1) / 127
    codes = (values / exact.unsqueeze(-1)).nan_to_num().round().add_(zero).clamp_(0, 2 * zero - 1)
    scale = exact.half().float()
    return Quantised(codes.to(torch.uint8).view(rows, -1), bits, scale, -zero * scale)


def shifted(bits: int, group: int) -> Quantised:
    """Scales and shifts of float16, unrelated: as Q4_1 and Q5_1 have them."""
    codes = (draw(70, INPUTS).abs() * 2**bits).to(torch.int64) % 2**bits
    scale, shift = (draw(70, INPUTS // group, seed=s).half().float() for s in (6, 7))
    return Quantised(codes.to(torch.uint8), bits, scale, shift)


def products(bits: int, group: int, is_shifted: bool) -> Quantised:
    """Whole numbers of 8 bits times a float16 per 256 inputs: as K-quants have them."""
    plain = shifted(bits, group)
    coarse = [draw(70, INPUTS // 256, seed=s).half().float() for s in (8, 9)]
    counts = [(draw(70, INPUTS // group, seed=s) * 40).round().clamp(-127, 127) for s in (10, 11)]
    scale, shift = (n * c.repeat_interleave(256 // group, 1) for n, c in zip(counts, coarse, strict=True))
    return Quantised(plain.codes, bits, scale, shift if is_shifted else -32 * scale, None, (coarse[0], coarse[1]))


def tabled(group: int) -> Quantised:
    """Codes that stand for the entries of a table: as IQ4_NL has them."""
    table = torch.tensor([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=torch.int8)
    plain = shifted(4, group)
    return Quantised(plain.codes, 4, plain.scale, torch.zeros_like(plain.shift), table)


FORMS: dict[str, tuple[Callable[[], Quantised], int, float]] = {
    # what it is, how factors are stored, bits per weight
    "q4_0": (lambda: quantise(draw(70, INPUTS), 4, 32), HALF, 4.5),
    "q5_0": (lambda: quantise(draw(70, INPUTS), 5, 32), HALF, 5.5),
    "q8_0": (lambda: quantise(draw(70, INPUTS), 8, 32), HALF, 8.5),
    "six bits, wide groups": (lambda: quantise(draw(70, INPUTS), 6, 128), HALF, 6.125),
    "eight bits by the row": (lambda: quantise(draw(70, INPUTS), 8, INPUTS), HALF, 8 + 16 / INPUTS),
    "q4_1": (lambda: shifted(4, 32), HALF, 5.0),
    "q5_1": (lambda: shifted(5, 32), HALF, 6.0),
    "q4_k": (lambda: products(4, 32, True), WHOLE, 4.625),
    "q2_k": (lambda: products(4, 16, True), WHOLE, 5.125),
    "q6_k": (lambda: products(6, 16, False), WHOLE, 6.5625),
    "iq4_nl": (lambda: tabled(32), HALF, 4.5),
    "factors of float32": (lambda: dataclasses.replace(products(5, 32, True), coarse=None), FLOAT, 7.0),
}


def head_of(matrix: Quantised, machine: str | None = None) -> CompiledDecoder:
    """A decoder whose head, tied, is this matrix."""
    spec = make_spec(hidden_size=INPUTS, vocab_size=matrix.shape[0], num_layers=1, tie_embeddings=True)
    weights = make(spec, torch.float32)
    table = Matrix(matrix)
    weights.head, weights.table, weights.embed = table, table, weights.embed[:0]
    decoder = compile_decoder(spec, weights, torch.float32, machine=machine)
    assert decoder is not None, kernels.note()
    return decoder


@pytest.mark.parametrize("name", FORMS)
def test_products_are_those_of_the_slow_reading(name: str) -> None:
    """To float32's rounding of a chain of 16 blocks; rows alone and together, some columns alone, rows read back."""
    build, factors, bits = FORMS[name]
    matrix, x = build(), draw(21, INPUTS, seed=3)
    plan = code(matrix)
    assert plan.coded.coding.factors == factors
    library = kernels.load_library()
    assert library is not None
    size = library.outpace_panel_bytes(plan.coded.coding, INPUTS)
    assert size == 32 * INPUTS * bits / 8
    decoder, exact = head_of(matrix), round_inputs(x) @ matrix.dense(torch.float64).T
    y = decoder.head(x)
    magnitude = round_inputs(x).abs() @ matrix.dense(torch.float64).abs().T
    assert bool(((y - exact).abs() <= 16 * 2.0**-23 * magnitude).all())
    for rows in (1, 2, 3, 7, 8, 9, 16):
        assert torch.equal(decoder.head(x[:rows]), y[:rows])
    ids = torch.tensor([69, 0, 33])
    assert torch.equal(decoder.trim_head(ids).head(x), y[:, ids])
    assert torch.equal(decoder.embed(ids), matrix.dense()[ids])
    assert torch.equal(decoder.head_rows(ids), matrix.dense()[ids])
    for read in (decoder.embed, decoder.head_rows, decoder.trim_head):
        with pytest.raises(ConfigError, match="vocabulary"):
            read(torch.tensor([70]))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="an x86 architecture level")
def test_every_machine_computes_the_same_bits() -> None:
    for build, _, _ in FORMS.values():
        matrix, x = build(), draw(5, INPUTS, seed=3)
        assert torch.equal(head_of(matrix).head(x), head_of(matrix, "-march=x86-64-v3").head(x))


def test_extreme_codes_do_not_overflow() -> None:
    """All codes and inputs as large as they get, in equal signs."""
    for bits in (4, 5, 6, 8):
        codes = torch.full((32, INPUTS), 2**bits - 1, dtype=torch.uint8)
        matrix = Quantised(codes, bits, torch.ones(32, INPUTS // 32), torch.zeros(32, INPUTS // 32))
        for sign in (1.0, -1.0):
            for machine in (None, "-march=x86-64-v3") if platform.machine() == "x86_64" else (None,):
                y = head_of(matrix, machine).head(torch.full((1, INPUTS), 127.0 * sign))
                assert (y == sign * 127 * INPUTS * (2**bits - 1)).all()


def test_rounded_inputs_are_what_they_say() -> None:
    x = torch.zeros(1, 64)
    x[0, :4] = torch.tensor([127.0, 0.5, 1.5, -2.5])  # ties go to even
    assert round_inputs(x)[0, :4].tolist() == [127.0, 0.0, 2.0, -2.0] and not round_inputs(x)[0, 4:].any()
    assert round_inputs(torch.full((1, 32), float("nan"))).isnan().all()


# Whole decoders

SPEC: dict[str, object] = {"hidden_size": 96, "num_heads": 6, "num_kv_heads": 2, "ffn_size": 80, "tie_embeddings": True}


def rounded(weights: Weights, bits: int) -> Weights:
    """The same weights, quantised; groups are halves of blocks where blocks do not fit."""

    def turn(weight: Tensor) -> Quantised:
        return quantise(weight, bits, 32 if weight.shape[1] % 32 == 0 else 16)

    for layer in weights.layers:
        for name in ("qkv", "o", "up", "down"):
            matrix = getattr(layer, name)
            setattr(layer, name, Matrix(turn(matrix.dense()), matrix.bias))
    is_tied = weights.is_tied
    weights.table = Matrix(turn(weights.embed))
    weights.head = weights.table if is_tied else Matrix(turn(weights.head.dense()))
    weights.embed = weights.embed[:0]
    return weights


def decoder_of(
    spec: Spec, bits: int, dtype: torch.dtype = torch.bfloat16, machine: str | None = None
) -> CompiledDecoder:
    decoder = compile_decoder(spec, rounded(make(spec, dtype), bits), dtype, machine=machine)
    assert decoder is not None, kernels.note()
    return decoder


@pytest.mark.parametrize("bits", [4, 8])
def test_a_decoder_is_near_the_slow_reading(bits: int) -> None:
    """Much nearer than the rounding of inputs leaves it to the plain product; an odd tie may fall the other way."""
    spec = make_spec(**SPEC, windows=(None, 9, None))
    weights = rounded(make(spec, torch.float32), bits)
    slow, (tokens, position) = Transformer(spec, weights, pack=False), chain(20, spec.vocab_size)
    logits = decoder_of(spec, bits, torch.float32).forward(tokens, position, None, new_cache(spec, torch.float32))
    oracle = slow.score(tokens, position, None, slow.new_cache(1, 64)).logits
    assert weights.table is not None
    dense = dataclasses.replace(weights, embed=weights.table.dense(), head=Matrix(weights.table.dense()), table=None)
    for layer in dense.layers:
        for name in ("qkv", "o", "up", "down"):
            setattr(layer, name, Matrix(getattr(layer, name).dense()))
    plain = Transformer(spec, dense, pack=False)
    unrounded = plain.score(tokens, position, None, plain.new_cache(1, 64)).logits
    assert error(logits, oracle) < 0.1 * error(oracle, unrounded)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("machine", [None, "-march=x86-64-v3"])
def test_bits_do_not_depend_on_width_threads_or_neighbours(bits: int, machine: str | None) -> None:
    if machine and platform.machine() != "x86_64":
        pytest.skip("an x86 architecture level")
    spec = make_spec(**SPEC, windows=(None, 9, None))
    decoder, results = decoder_of(spec, bits, machine=machine), []
    tokens, position = chain(48, spec.vocab_size)
    for width, threads in ((48, 2), (1, 1), (16, 2), (17, 1), (5, 2), (3, 3)):
        with use_threads(threads):
            results.append(torch.cat(list(step_through(decoder, tokens, position, width)), dim=1))
    assert all(torch.equal(a, b) for a, b in pairwise(results))
    # Two rows of different lengths, and a tree behind each.
    caches = []
    for row in range(2):
        caches.append(new_cache(spec, torch.bfloat16))
        decoder.forward(tokens[:, : 11 + row], position[:, : 11 + row], None, caches[row])
        caches[row].keep([list(range(11 + row))])
    nodes = torch.tensor([[5, 9, 7, 3, 2, 8], [1, 2, 3, 4, 5, 6]])
    visible, depth = tree([-1, 0, 0, 1, 2, 3])
    places = torch.tensor([[11], [12]]) + depth
    both = decoder.forward(nodes, places, visible.expand(2, 6, 6), Cache.join([c.rows([0]) for c in caches]))
    for row in range(2):
        for path in ([0, 1, 3, 5], [0, 2, 4]):
            start = 11 + row + torch.arange(len(path))[None]
            alone = decoder.forward(nodes[row : row + 1, path], start, None, caches[row].rows([0]))
            assert torch.equal(both[row, path], alone[0])


def test_plain_and_quantised_matrices_stand_side_by_side() -> None:
    """Each in its own product, also where a layer's neighbour is of the other kind; taps show what the head reads."""
    spec = make_spec(**(SPEC | {"tie_embeddings": False, "ffn_size": 96}))
    weights, mixed = rounded(make(spec, torch.bfloat16), 8), make(spec, torch.bfloat16)
    mixed.layers[0].o, mixed.layers[0].up = weights.layers[0].o, weights.layers[0].up
    mixed.layers[1].qkv, mixed.layers[1].down, mixed.head = (
        weights.layers[1].qkv,
        weights.layers[1].down,
        weights.head,
    )
    decoder = compile_decoder(spec, mixed, torch.bfloat16)
    assert decoder is not None
    tokens, position = chain(40, spec.vocab_size)
    wide = decoder.score(tokens, position, None, new_cache(spec, torch.bfloat16), outputs=Outputs(has_last=True))
    assert wide.last is not None and torch.equal(decoder.head(wide.last[0]), wide.logits[0])
    assert torch.equal(wide.logits, torch.cat(list(step_through(decoder, tokens, position, 7)), 1))
    plain = compiled(spec, torch.bfloat16).forward(tokens, position, None, new_cache(spec, torch.bfloat16))
    assert error(wide.logits, plain) < 0.1
    soft = decoder.score(
        torch.zeros_like(tokens), position, None, new_cache(spec, torch.bfloat16), inputs=decoder.embed(tokens)
    )
    assert torch.equal(soft.logits, wide.logits)


def test_a_broken_row_leaves_its_neighbours_alone() -> None:
    spec = make_spec(**SPEC)
    decoder = decoder_of(spec, 8)
    soft = draw(1, 4, 96)
    position, nothing = torch.arange(4)[None], torch.zeros(1, 4, dtype=torch.int64)
    good = decoder.score(nothing, position, None, new_cache(spec, torch.bfloat16), inputs=soft).logits
    soft[0, 3, 40] = float("nan")
    mixed = decoder.score(nothing, position, None, new_cache(spec, torch.bfloat16), inputs=soft).logits
    assert mixed[0, 3].isnan().all() and torch.equal(mixed[0, :3], good[0, :3])
    soft[0, 3, 40] = 1.0
    again = decoder.score(nothing, position, None, new_cache(spec, torch.bfloat16), inputs=soft).logits
    assert again.isfinite().all()


# From files


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file's matrices read as quantised ones: down projections to 8 bits, others to 4."""

    def read(files: TensorFiles, name: str, shape: tuple[int, ...]) -> Quantised | None:
        bits = 8 if "down" in name or "v_proj" in name else 4
        return quantise(files.read(name, shape), bits, 32 if shape[1] % 32 == 0 else 16)

    monkeypatch.setattr(TensorFiles, "read_quantised", read)
    monkeypatch.setattr(TensorFiles, "quantised_kinds", lambda files: ["4 and 8 bits"])


@pytest.mark.usefixtures("stored")
def test_exact_methods_write_the_same_text_from_quantised_weights() -> None:
    lm = load("stories")
    assert lm.target.path == "compiled"
    prompts = ["Once upon a time", "One day, a little cat found a big red ball. One day, a little cat found a"]
    for told in ({}, {"temperature": 0.8, "seed": 3}):
        plain = lm.generate(prompts, max_tokens=24, **told)
        for method in ("suffix", "token-recycling"):
            found = lm.generate(prompts, max_tokens=24, method=method, **told)
            assert [one.tokens for one in found] == [one.tokens for one in plain]
            assert sum(one.usage.num_accepted for one in found) > 0


@pytest.mark.usefixtures("stored")
def test_codes_are_kept_where_the_dtype_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = load_model("stories", kernels=kernels)
    assert kept.path == "compiled" and kept.is_quantised and not kept.weights.embed.numel()
    plain = load_model("stories", kernels=kernels, dtype="bfloat16")
    assert (kept.capabilities.code_bits, plain.capabilities.code_bits) == (4, 0)
    assert kept._compiled.num_bytes < 0.4 * plain._compiled.num_bytes
    monkeypatch.setenv("OUTPACE_COMPILED", "0")
    eager = load_model("stories", kernels=kernels)
    assert eager.path != "compiled" and any("decoded to bfloat16" in note for note in eager.notes)


def test_fused_matrices_may_be_stored_in_different_ways() -> None:
    parts = [build() for build, _, _ in FORMS.values()]
    parts = [part for part in parts if part.group in (16, 32)]
    wide = [quantise(draw(64, 192), 4, 64), quantise(draw(32, 192), 4, 96)]  # neither group divides the other
    for pair in (*pairwise(parts), wide):
        both = join(pair)
        assert error(both.dense(), torch.cat([part.dense() for part in pair])) < 1e-6
    same = join([products(4, 32, True), products(4, 32, True)])
    assert same.bits == 4 and same.coarse is not None and same.coarse[0].shape == (140, 2)


def test_factors_that_do_not_fit_are_stored_in_full() -> None:
    """Coarse factors of another width, too large a count, or of more digits than a float16."""
    fits = products(4, 32, True)
    assert fits.coarse is not None
    short, fine = fits.coarse[0][:, :1], fits.coarse[0] * 1.0001
    many = dataclasses.replace(fits, scale=fits.coarse[0].repeat_interleave(8, 1) * 200)
    wrong = [dataclasses.replace(fits, coarse=(coarse, coarse)) for coarse in (short, fine)]
    for matrix in (*wrong, many):
        assert code(matrix).coded.coding.factors == FLOAT
        assert torch.equal(head_of(matrix).embed(torch.arange(70)), matrix.dense())


def test_a_table_may_have_shifts() -> None:
    matrix, x = dataclasses.replace(tabled(32), shift=shifted(4, 32).shift), draw(3, INPUTS)
    assert error(head_of(matrix).head(x), matrix.product(x)) < 1e-6


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ModelError, match="16 numbers"):
        dataclasses.replace(tabled(32), table=torch.zeros(8, dtype=torch.int8))
    codes, scale = torch.zeros(2, 40, dtype=torch.uint8), torch.ones(2, 1)
    for change in ({"bits": 3}, {"codes": codes.int()}, {"scale": scale.double()}, {"scale": torch.ones(2, 3)}, {}):
        with pytest.raises(ModelError):  # without a change, 40 inputs are the group
            Quantised(**{"codes": codes, "bits": 4, "scale": scale, "shift": scale} | change)  # type: ignore[arg-type]
