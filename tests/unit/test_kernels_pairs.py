"""Compiled encoder-decoders against the eager path in float64, and against themselves in other batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from random_weights import make_weights
from torch import Tensor

import outpace
from outpace import kernels
from outpace.cache import Cache
from outpace.errors import CapabilityError, ConfigError
from outpace.kernels import build as building
from outpace.kernels.rounded import RoundedKernels
from outpace.models.seq2seq.adapter import EncoderDecoder
from outpace.models.seq2seq.pair import PairSpec
from outpace.models.spec import Spec
from outpace.models.weights import Matrix, Weights
from outpace.types import Outputs

pytestmark = pytest.mark.skipif(building.build().library is None, reason=building.build().note)

DTYPES = [torch.float32, torch.bfloat16]
SOURCES = [[5, 9, 3, 7, 1, 2, 8], [4], [6, 2, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 5]]
BIASED = {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "has_norm_bias": True, "norm": "layer", "is_gated": False}
AFTER = BIASED | {"norm_placement": "after", "has_final_norm": False, "positions": "learned", "embed_scale": 5.7}
RELATIVE = {"positions": "relative", "relative_buckets": 8, "relative_distance": 6, "attn_scale": 1.0}
SHAPES = {
    "marian": AFTER | {"activation": "silu", "tie_embeddings": True, "head_bias": True},
    "bart": AFTER | {"activation": "gelu", "position_offset": 2, "has_embed_norm": True, "hidden_size": 45},
    "m2m": BIASED | {"activation": "relu", "positions": "learned", "embed_scale": 5.7, "ffn_size": 75},
    "t5": RELATIVE | {"activation": "relu", "is_gated": False, "tie_embeddings": True, "head_scale": 0.2},
    "flan": RELATIVE | {"activation": "gelu_tanh", "head_dim": 10, "num_kv_heads": 2},
}


def make_pair(**changes: object) -> PairSpec:
    shape = {
        "vocab_size": 83,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 8,
        "ffn_size": 64,
        "max_positions": 90,
    } | changes
    decoder = Spec(**shape, has_cross=True)
    return PairSpec(
        encoder=dataclasses.replace(decoder, attention="full", has_cross=False, head_bias=False),
        decoder=decoder,
        start_token=0,
    )


def make_side(spec: Spec, dtype: torch.dtype, seed: int) -> Weights:
    """Random weights in which every bias and norm counts."""
    weights = make_weights(spec, dtype, seed)
    generator = torch.Generator().manual_seed(seed + 10)

    def noise(*size: int) -> Tensor:
        return (0.3 * torch.randn(size, generator=generator)).to(dtype)

    shared = noise(2 * spec.relative_distance + 1, spec.num_heads) * 5
    for layer in weights.layers:
        cross = layer.cross
        norms = [layer.attn_norm, layer.mlp_norm, *([] if cross is None else [cross.norm])]
        for norm in norms:
            norm.weight += noise(spec.hidden_size)
            norm.bias = noise(spec.hidden_size) if spec.has_norm_bias else None
        for matrix in layer.all_matrices() if spec.qkv_bias else ():
            matrix.bias = noise(matrix.shape[0])
        layer.relative = shared if spec.positions == "relative" else None
    if spec.head_bias:
        weights.head.bias = noise(spec.vocab_size)
    return weights


def make(
    name: str, dtype: torch.dtype, is_compiled: bool, kept: torch.dtype | None = None, chosen: Any = kernels
) -> EncoderDecoder:
    """A model whose numbers are those of the dtype `kept`, computed in `dtype`, on chosen kernels."""
    pair = make_pair(**SHAPES[name])
    sides = [make_side(side, kept or dtype, seed) for seed, side in enumerate((pair.encoder, pair.decoder))]
    encoder, decoder = (to(side, dtype) for side in sides)
    encoder.embed = decoder.embed
    encoder.head = Matrix(decoder.embed[:0])
    model = EncoderDecoder(pair, encoder, decoder, pack=False)
    assert not is_compiled or model.compile(chosen)
    return model


def to(weights: Weights, dtype: torch.dtype) -> Weights:
    is_tied = weights.is_tied
    norms = [weights.final_norm, weights.embed_norm]
    for layer in weights.layers:
        for matrix in layer.all_matrices():
            matrix.weight, matrix.bias = as_type(matrix.weight, dtype), as_type(matrix.bias, dtype)
        layer.relative = as_type(layer.relative, dtype)
        norms += [layer.attn_norm, layer.mlp_norm, None if layer.cross is None else layer.cross.norm]
    for norm in norms:
        if norm is not None:
            norm.weight, norm.bias = as_type(norm.weight, dtype), as_type(norm.bias, dtype)
    weights.embed, weights.positions = as_type(weights.embed, dtype), as_type(weights.positions, dtype)
    weights.head.weight = weights.embed if is_tied else as_type(weights.head.weight, dtype)
    weights.head.bias = as_type(weights.head.bias, dtype)
    return weights


def as_type(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def encoded(model: EncoderDecoder, sources: list[list[int]], slots: int = 40) -> Cache:
    cache = model.new_cache(len(sources), slots)
    model.encode(sources, cache)
    return cache


def texts(rows: int, length: int) -> Tensor:
    return torch.randint(0, 83, (rows, length), generator=torch.Generator().manual_seed(4))


def forward(model: EncoderDecoder, cache: Cache, tokens: Tensor, start: int = 0) -> Tensor:
    position = torch.arange(start, start + tokens.shape[1]).expand(tokens.shape)
    return model.score(tokens, position, None, cache).logits


def error(result: Tensor, truth: Tensor) -> float:
    return float((result.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_agrees_with_float64(name: str, dtype: torch.dtype) -> None:
    """float32: rounding of short sums. bfloat16: no worse than torch in bfloat16."""
    tokens = texts(3, 21)
    models = [make(name, kind, is_compiled, dtype) for kind, is_compiled in ((torch.float64, False), (dtype, True))]
    truth, logits = (forward(model, encoded(model, SOURCES), tokens) for model in models)
    if dtype == torch.float32:
        assert error(logits, truth) < 2e-6
    else:
        eager = make(name, dtype, False)
        assert error(logits, truth) <= 1.05 * error(forward(eager, encoded(eager, SOURCES), tokens), truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("chosen", [kernels, RoundedKernels()], ids=["plain", "int8"])
def test_bits_do_not_depend_on_neighbours(name: str, chosen: Any, dtype: torch.dtype) -> None:
    """A source's entries and a text's logits are those of the row alone, of single steps, and of a path of a tree."""
    model, tokens = make(name, dtype, True, chosen=chosen), texts(3, 9)
    together = encoded(model, SOURCES)
    logits = forward(model, together, tokens)
    for row, source in enumerate(SOURCES):
        alone = encoded(model, [source])
        for held, whole in zip(alone.extra[1:], together.extra[1:], strict=True):
            assert torch.equal(held[0], whole[row, : len(source)])
        steps = []
        for at in range(9):
            steps.append(forward(model, alone, tokens[row : row + 1, at : at + 1], at))
            alone.keep([[0]])
        assert torch.equal(torch.cat(steps, 1)[0], logits[row])
        check_tree(model, source, tokens[row])


def check_tree(model: EncoderDecoder, source: list[int], tokens: Tensor) -> None:
    """Behind four tokens, two branches lie interleaved: the deeper one is what the chain would be."""
    cache = encoded(model, [source])
    forward(model, cache, tokens[None, :4])
    cache.keep([range(4)])
    nodes = torch.stack([tokens[4], tokens[5], tokens[8], tokens[6]])[None]
    depth, visible = torch.tensor([[0, 1, 1, 2]]), torch.eye(4, dtype=torch.bool)
    visible[:, 0] = visible[3, 1] = True
    found = model.score(nodes, 4 + depth, visible[None], cache.rows([0])).logits
    chain = forward(model, cache, tokens[None, 4:7], 4)
    assert torch.equal(found[:, [0, 1, 3]], chain)


@pytest.mark.parametrize("name", SHAPES)
def test_weights_of_8_bits_move_logits_by_a_percent(name: str) -> None:
    """A matrix whose width no group divides stays as it is; a tied embedding is rounded with the head."""
    truth, model = (
        make(name, torch.float64, False, torch.float32),
        make(name, torch.float32, True, None, RoundedKernels()),
    )
    tokens = texts(3, 9)
    found = forward(model, encoded(model, SOURCES), tokens)
    assert 1e-4 < error(found, forward(truth, encoded(truth, SOURCES), tokens)) < 0.04
    for matrix in [model.weights.head, *(m for layer in model.weights.layers for m in layer.all_matrices())]:
        assert matrix.panels.view.coding.bits == (0 if matrix.shape[1] % 16 else 8)


def test_weights_are_rounded_as_a_model_is_loaded() -> None:
    plain, small = outpace.load("translate"), outpace.load("translate", quantize="int8")
    assert "Weights are rounded to 8 bits." in small.generate("Ein Hund.", max_tokens=4).notes
    assert small.target.is_quantised and small.target._compiled.num_bytes < 0.6 * plain.target._compiled.num_bytes
    with pytest.raises(CapabilityError, match="compiled kernels"):
        outpace.load("translate", quantize="int8", is_compiled=False)
    with pytest.raises(ConfigError, match="quantize"):
        outpace.load("translate", quantize="int3")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_fork_go_on_from_their_source(dtype: torch.dtype) -> None:
    model, tokens = make("marian", dtype, True), texts(3, 5)
    cache = encoded(model, [SOURCES[0], SOURCES[0], SOURCES[2]])
    forward(model, cache, tokens[:, :4])
    cache.keep([range(4)] * 3)
    plain = forward(model, cache.rows([1, 1, 2]), tokens[:, 4:], 4)
    cache.follow([1, 1, 2])
    assert torch.equal(forward(model, cache, tokens[:, 4:], 4), plain)


def test_states_taps_and_a_trimmed_head() -> None:
    model, tokens = make("t5", torch.float32, True), texts(3, 5)
    position = torch.arange(5).expand(3, 5)
    scores = model.score(tokens, position, None, encoded(model, SOURCES), None, Outputs((0, 1, 2), True))
    assert torch.equal(model.head(scores.last), scores.logits)
    eager = make("t5", torch.float64, False, torch.float32)
    truth = eager.score(tokens, position, None, encoded(eager, SOURCES), None, Outputs((0, 1, 2), True))
    assert error(scores.last, truth.last) < 2e-6 and all(error(scores.taps[i], truth.taps[i]) < 2e-6 for i in range(3))
    soft = model.score(tokens * 0, position, None, encoded(model, SOURCES), inputs=model.embed(tokens))
    assert torch.equal(soft.logits, scores.logits)
    model, ids = make("marian", torch.bfloat16, True), torch.tensor([3, 80, 7])
    whole = forward(model, encoded(model, SOURCES), tokens)
    assert torch.equal(forward(model.trim_head(ids), encoded(model, SOURCES), tokens), whole[..., ids])


def test_taps_of_a_stream_whose_norm_is_pending() -> None:
    model, eager = make("bart", torch.float32, True), make("bart", torch.float64, False, torch.float32)
    tokens, position = texts(3, 5), torch.arange(5).expand(3, 5)
    call = (tokens, position, None)
    found, truth = (one.score(*call, encoded(one, SOURCES), None, Outputs((0, 1, 2), True)) for one in (model, eager))
    assert error(found.last, truth.last) < 2e-6 and all(error(found.taps[i], truth.taps[i]) < 2e-6 for i in range(3))


def test_a_cache_without_a_source_is_refused() -> None:
    model = make("marian", torch.float32, True)
    with pytest.raises(ConfigError, match="no source"):
        forward(model, model.new_cache(1, 10), texts(1, 2))
    cache = encoded(model, SOURCES)
    cache.extra[0] = cache.extra[0] * 0
    with pytest.raises(ConfigError, match="source is empty"):
        forward(model, cache, texts(3, 2))
    cache.extra[1] = cache.extra[1][:, :2]
    with pytest.raises(ConfigError, match="held of sources"):
        forward(model, cache, texts(3, 2))
