"""The forward's own contract: skipping, taps, soft embeddings, limits, packing, fake tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shapes import saved
from torch._subclasses.fake_tensor import FakeTensorMode

from outpace.errors import CapabilityError, ConfigError
from outpace.models.loading import load_model
from outpace.models.spec import Rope, Spec
from outpace.models.transformer import Transformer
from outpace.models.weights import LayerWeights, Matrix, Norm, Weights
from outpace.types import Counter, Outputs


@pytest.fixture
def model(model_root: Path) -> Transformer:
    return load_model(saved("llama", model_root)[0], "float64")


IDS = torch.arange(3, 15)[None]
AT = torch.arange(12)[None]


def random_spec(**more: object) -> Spec:
    rope = Rope(tuple(10.0**-i for i in range(4)))
    shape = {"vocab_size": 31, "hidden_size": 24, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
    return Spec(**shape, ffn_size=40, max_positions=64, ropes=(rope,), **more)  # type: ignore[arg-type]


def random_weights(spec: Spec) -> Weights:
    def matrix(rows: int, columns: int) -> Matrix:
        return Matrix(torch.randn(rows, columns) / columns**0.5)

    def norm() -> Norm:
        return Norm(torch.ones(spec.hidden_size))

    layers = [
        LayerWeights(
            qkv=matrix(spec.q_size + 2 * spec.kv_size, spec.hidden_size),
            o=matrix(spec.hidden_size, spec.q_size),
            up=matrix(2 * spec.ffn_size, spec.hidden_size),
            down=matrix(spec.hidden_size, spec.ffn_size),
            attn_norm=norm(),
            mlp_norm=norm(),
        )
        for _ in range(spec.num_layers)
    ]
    embed = torch.randn(spec.vocab_size, spec.hidden_size)
    return Weights(embed=embed, layers=layers, head=matrix(spec.vocab_size, spec.hidden_size), final_norm=norm())


def test_skipping_every_layer_leaves_the_embedding(model: Transformer) -> None:
    scores = model.score(IDS, AT, None, model.new_cache(1, 12), outputs=Outputs((3,)), skip=range(3))
    assert torch.equal(scores.taps[3], model.weights.embed[IDS])


def test_skipping_no_layer_changes_nothing_and_skipping_one_does(model: Transformer) -> None:
    whole = model.score(IDS, AT, None, model.new_cache(1, 12)).logits
    counter = Counter()
    assert torch.equal(model.score(IDS, AT, None, model.new_cache(1, 12), skip=()).logits, whole)
    skipped = model.score(IDS, AT, None, model.new_cache(1, 12, counter), skip=[1]).logits
    assert float((skipped - whole).abs().max()) > 1e-6
    assert (counter.nfe, counter.positions, counter.layers) == (1, 12, 2)


def test_skipping_equals_a_model_without_those_layers(model: Transformer) -> None:
    skipped = model.score(IDS, AT, None, model.new_cache(1, 12), skip=[1]).logits
    del model.weights.layers[1]
    assert torch.equal(model.score(IDS, AT, None, model.new_cache(1, 12)).logits, skipped)


def test_taps_and_hidden_follow_ask(model: Transformer) -> None:
    ask = torch.tensor([[11, 4]])
    scores = model.score(IDS, AT, None, model.new_cache(1, 12), ask, outputs=Outputs((1,), True))
    every = model.score(IDS, AT, None, model.new_cache(1, 12), outputs=Outputs((1,), True))
    assert torch.equal(scores.taps[1], every.taps[1][:, ask[0]])
    assert torch.equal(scores.last, every.last[:, ask[0]])
    assert torch.allclose(scores.logits, every.logits[:, ask[0]], rtol=0, atol=1e-12)
    with pytest.raises(CapabilityError, match="layer 7"):
        model.score(IDS, AT, None, model.new_cache(1, 12), outputs=Outputs((7,)))


def test_soft_embeddings(model: Transformer) -> None:
    whole = model.score(IDS, AT, None, model.new_cache(1, 12)).logits
    soft = model.score(torch.zeros_like(IDS), AT, None, model.new_cache(1, 12), inputs=model.embed(IDS)).logits
    assert torch.equal(soft, whole)


def test_logits_may_be_written_into(model: Transformer) -> None:
    logits = model.score(IDS, AT, None, model.new_cache(1, 12)).logits
    kept = logits.clone()
    logits[:, :, 0] = float("-inf")
    logits.mul_(2.0)
    # They are the caller's own: neither the weights nor the next forward see what was written.
    assert torch.equal(model.score(IDS, AT, None, model.new_cache(1, 12)).logits, kept)


def test_limits(model: Transformer) -> None:
    with pytest.raises(ConfigError, match="12 tokens"):
        model.score(IDS, AT, None, model.new_cache(1, 11))
    cache = model.new_cache(1, 200)
    cache.lengths = [90]
    with pytest.raises(ConfigError, match="96"):
        model.score(IDS, AT + 90, None, cache)
    with pytest.raises(ConfigError, match="rows"):
        model.score(IDS, AT, None, model.new_cache(2, 20))


def test_packing_frees_the_plain_matrices() -> None:
    spec = random_spec()
    plain, packed = Transformer(spec, random_weights(spec), pack=False), random_weights(spec)
    size = plain.weights.num_bytes
    kept = [matrix.dense().clone() for matrix in packed.layers[0].matrices()]
    model = Transformer(spec, packed, pack=True)
    assert all(matrix.weight is None for matrix in model.weights.layers[0].matrices())
    for matrix, dense in zip(model.weights.layers[0].matrices(), kept, strict=True):
        assert torch.equal(matrix.dense(), dense)
    assert model.weights.num_bytes <= 1.3 * size + 100_000


def test_sliding_window_ends_where_it_should(model_root: Path) -> None:
    """With one layer's window of 9, the tenth-last token cannot matter to a one-layer model, the ninth-last does."""
    mistral = load_model(saved("mistral", model_root)[0], "float64")
    skip = [1, 2]
    ids = torch.arange(20)[None]
    position = torch.arange(20)[None]
    logits = mistral.score(ids, position, None, mistral.new_cache(1, 20), skip=skip).logits[0, -1]
    for back, matters in ((9, True), (10, False)):
        changed = ids.clone()
        changed[0, 20 - back] = 77
        other = mistral.score(changed, position, None, mistral.new_cache(1, 20), skip=skip).logits[0, -1]
        assert bool((other - logits).abs().max() > 1e-9) is matters


def test_block_attention_sees_its_own_block_and_all_before() -> None:
    spec = random_spec(attention="block", block_size=4, mask_id=30)
    torch.manual_seed(0)
    model = Transformer(spec, random_weights(spec), pack=False)
    ids, position = torch.arange(12)[None], torch.arange(12)[None]
    logits = model.score(ids, position, None, model.new_cache(1, 12)).logits[0]
    changed = ids.clone()
    changed[0, 7] = 29
    moved = (model.score(changed, position, None, model.new_cache(1, 12)).logits[0] - logits).abs().amax(-1) > 1e-6
    assert moved.tolist() == [False] * 4 + [True] * 8


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_runs_without_looking_at_values(attention: str) -> None:
    """Under FakeTensorMode tensors have no values: any hidden synchronisation fails."""
    with FakeTensorMode():
        spec = random_spec(attention=attention, windows=(None, 5))
        model = Transformer(spec, random_weights(spec), pack=False)
        for rows, lengths in ((1, [0]), (1, [9]), (2, [3, 3]), (2, [3, 8])):
            for size in (1, 6):
                cache = model.new_cache(rows, 32)
                cache.lengths = list(lengths)
                tokens = torch.zeros(rows, size, dtype=torch.int64)
                visible = torch.ones(rows, size, size, dtype=torch.bool)
                for seen in (None, visible):
                    ask = torch.zeros(rows, 2, dtype=torch.int64)
                    scores = model.score(tokens, tokens, seen, cache, ask, outputs=Outputs((2,)), skip=[0])
                    assert scores.logits.shape == (rows, 2, 31)
                    assert scores.taps[2].shape == (rows, 2, 24)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_equals_cpu(model_root: Path) -> None:
    directory, _ = saved("gemma2", model_root)
    results = []
    for device in ("cpu", "cuda"):
        model = load_model(directory, "float64", device)
        ids = IDS.expand(2, -1).to(device)
        results.append(model.score(ids, AT.expand(2, -1).to(device), None, model.new_cache(2, 12)).logits.cpu())
    assert torch.allclose(*results, rtol=0, atol=1e-9)
