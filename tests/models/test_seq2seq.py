"""Encoder-decoders against transformers, which writes the files and shares no code with ours."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from pairs import CASES, SOURCES, VOCAB, make_pair_model, pair_logits, pair_text, saved_pair
from safetensors.torch import load_file, save_file
from torch import Tensor

from outpace.api.engine import LanguageModel
from outpace.cache import Cache
from outpace.errors import CapabilityError, ConfigError, ModelError
from outpace.models.loading import load_model, read_capabilities
from outpace.models.opening import locate, offered_by, open_model
from outpace.models.seq2seq.adapter import EncoderDecoder
from outpace.models.seq2seq.tables import interleaved_waves, relative_bucket, stacked_waves
from outpace.run.layout import lay_out
from outpace.types import Outputs, Proposal

COUNT = 12
FEW = ["marian", "mbart", "m2m100", "t5-gated", "umt5"]


def words(case: str, rows: int, length: int) -> Tensor:
    """Decoder tokens, a start token first; none is the padding token."""
    ids = torch.randint(4, VOCAB, (rows, length), generator=torch.Generator().manual_seed(len(case)))
    ids[:, 0] = 2
    return ids


def opened(case: str, root: Path, dtype: str = "float64", **more: Any) -> EncoderDecoder:
    model = load_model(saved_pair(case, root)[0], dtype, **more)
    assert isinstance(model, EncoderDecoder)
    return model


def begun(model: EncoderDecoder, sources: list[list[int]], capacity: int = 64) -> Any:
    cache = model.new_cache(len(sources), capacity)
    model.encode(sources, cache)
    return cache


def whole(model: EncoderDecoder, ids: Tensor, sources: list[list[int]], **more: Any) -> Any:
    """The scores of one forward over whole texts."""
    position = torch.arange(ids.shape[1]).expand(len(ids), -1)
    return model.score(ids, position, None, begun(model, sources), **more)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_ragged_sources_give_the_logits_of_transformers(case: str, model_root: Path) -> None:
    _, reference = saved_pair(case, model_root)
    ids = words(case, 3, 40)
    expected = [
        pair_logits(reference, source, row.tolist()).logits[0] for source, row in zip(SOURCES, ids, strict=True)
    ]
    for dtype, limit in (("float64", 1e-9), ("float32", 1e-4)):
        for is_packed in (False, True)[: 1 + (dtype == "float32")]:
            found = whole(opened(case, model_root, dtype, pack=is_packed), ids, SOURCES).logits
            assert max(distance(ours, theirs) for ours, theirs in zip(found, expected, strict=True)) <= limit


@pytest.mark.parametrize("case", CASES)
def test_greedy_text_is_that_of_generate_alone_and_in_a_ragged_batch(case: str, model_root: Path) -> None:
    _, reference = saved_pair(case, model_root)
    expected = [pair_text(reference, source, COUNT) for source in SOURCES]
    lm = LanguageModel(opened(case, model_root))
    settings = {"max_tokens": COUNT, "suppress_tokens": [1], "no_repeat_ngram_size": 1}
    assert [result.tokens for result in lm.generate(SOURCES, **settings)] == expected
    assert [lm.generate(source, **settings).tokens for source in SOURCES] == expected


@pytest.mark.parametrize("case", FEW)
def test_pieces_and_trees_equal_whole_texts(case: str, model_root: Path) -> None:
    model, ids = opened(case, model_root), words(case, 3, 30)
    expected = whole(model, ids, SOURCES).logits
    cache = begun(model, SOURCES)
    for sizes in ((9, 1, 4), (1, 12, 2), (6, 0, 8)):
        pending = [ids[row, at : at + n].tolist() for row, (at, n) in enumerate(zip(cache.lengths, sizes, strict=True))]
        layout = lay_out(pending, cache.lengths, Proposal(torch.zeros(3, 0, dtype=torch.int64), [0, 0, 0]))
        found = model.score(layout.tokens, layout.position, layout.visible, cache).logits
        for row, size in enumerate(sizes):
            at = cache.lengths[row]
            assert size == 0 or distance(found[row, :size], expected[row, at : at + size]) <= 1e-9
        cache.keep([range(size) for size in sizes])
    # A tree: two rivals, of which the second has two children; each branch is a text of its own.
    parent = torch.tensor([[-1, -1, 1, 1]] * 3)
    tree = torch.tensor([[50, 51, 52, 53], [60, 61, 62, 63], [70, 71, 72, 73]])
    pending = [ids[row, length : length + 1].tolist() for row, length in enumerate(cache.lengths)]
    layout = lay_out(pending, cache.lengths, Proposal(tree, [4, 4, 4], parent))
    found = model.score(layout.tokens, layout.position, layout.visible, cache, layout.ask).logits
    for row, length in enumerate(cache.lengths):
        for node, path in enumerate(([0], [1], [1, 2], [1, 3])):
            text = torch.tensor([[*ids[row, : length + 1].tolist(), *tree[row, path].tolist()]])
            assert distance(found[row, 1 + node], whole(model, text, SOURCES[row : row + 1]).logits[0, -1]) <= 1e-9


@pytest.mark.parametrize("case", FEW)
def test_hidden_states_soft_inputs_and_skipped_layers(case: str, model_root: Path) -> None:
    _, reference = saved_pair(case, model_root)
    model, ids = opened(case, model_root), words(case, 1, 12)
    theirs = pair_logits(reference, SOURCES[0], ids[0].tolist(), output_hidden_states=True)
    ours = whole(model, ids, SOURCES[:1], outputs=Outputs((0, 1, 2), has_last=True))
    for layer, states in ours.taps.items():
        assert distance(states, theirs.decoder_hidden_states[layer]) <= 1e-9
    assert distance(ours.last, theirs.decoder_hidden_states[3]) <= 1e-9
    assert distance(model.head(ours.last), theirs.logits) <= 1e-9
    soft = whole(model, torch.full_like(ids, 7), SOURCES[:1], inputs=model.embed(ids))
    assert distance(soft.logits, theirs.logits) <= 1e-9
    trimmed = model.trim_head(torch.tensor([5, 90]))
    assert distance(whole(trimmed, ids, SOURCES[:1]).logits, theirs.logits[..., [5, 90]]) <= 1e-9
    assert trimmed.capabilities.is_encoder_decoder
    skipped = whole(model, ids, SOURCES[:1], skip=(1,)).logits
    stack = reference.get_decoder()
    name = "layers" if hasattr(stack, "layers") else "block"
    layers = getattr(stack, name)
    try:
        setattr(stack, name, torch.nn.ModuleList([layers[0], layers[2]]))
        assert distance(skipped, pair_logits(reference, SOURCES[0], ids[0].tolist()).logits) <= 1e-9
    finally:
        setattr(stack, name, layers)


@pytest.mark.parametrize("case", ["mbart", "t5-gated"])
def test_every_tensor_matters(case: str, model_root: Path, tmp_path: Path) -> None:
    """Zeroing any one tensor of the file changes the logits; one layer of a side stands for all."""
    directory, _ = saved_pair(case, model_root)
    tensors = load_file(directory / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    ids = words(case, 1, 12)
    expected = whole(opened(case, model_root), ids, SOURCES[:1]).logits
    for name, tensor in tensors.items():
        if re.search(r"\.(layers|block)\.[12]\.", name):
            continue
        save_file(tensors | {name: torch.zeros_like(tensor)}, tmp_path / "model.safetensors")
        model = load_model(tmp_path, "float64")
        assert isinstance(model, EncoderDecoder)
        # A key's bias adds the same to all products of a query, which softmax ignores.
        is_seen = distance(whole(model, ids, SOURCES[:1]).logits, expected) > 1e-6
        assert is_seen != name.endswith("k_proj.bias"), name


@pytest.mark.parametrize("case", ["marian", "bart", "t5-gated"])
def test_bfloat16_is_as_close_as_transformers(case: str, model_root: Path) -> None:
    directory, reference = saved_pair(case, model_root)
    plain = hf.AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.bfloat16, attn_implementation="eager")
    ids = words(case, 1, 40)
    expected, theirs = (pair_logits(model, SOURCES[2], ids[0].tolist()).logits.double() for model in (reference, plain))
    ours = whole(opened(case, model_root, "bfloat16"), ids, SOURCES[2:]).logits.double()
    assert (ours - expected).square().mean() <= 1.5**2 * (theirs - expected).square().mean()


def test_paged_rows_and_forks_read_their_own_source(model_root: Path) -> None:
    model, ids = opened("marian", model_root), words("marian", 3, 20)
    expected = whole(model, ids, SOURCES).logits
    pool = model.new_pool(16, 16)
    assert pool is not None
    for cache in (pool.new_cache(3), model.new_cache(3, 64)):
        model.encode(SOURCES, cache)
        position = torch.arange(12).expand(3, -1)
        model.score(ids[:, :12], position, None, cache, torch.zeros(3, 0, dtype=torch.int64))
        cache.keep([range(12)] * 3)
        cache.follow([2, 2, 0])
        turned = ids[[2, 2, 0], 12:]
        found = model.score(turned, torch.arange(12, 20).expand(3, -1), None, cache).logits
        assert distance(found, expected[[2, 2, 0], 12:]) <= 1e-9


def test_a_source_is_read_once_for_all_its_samples(model_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = opened("t5", model_root), words("t5", 3, 12)
    sources = [SOURCES[0], SOURCES[1], SOURCES[0]]
    expected = torch.cat([whole(model, ids[row : row + 1], [source]).logits for row, source in enumerate(sources)])
    read, score = list[int](), model.encoder.score

    def noted(tokens: Tensor, *rest: Any, **more: Any) -> Any:
        read.append(len(tokens))
        return score(tokens, *rest, **more)

    monkeypatch.setattr(model.encoder, "score", noted)
    pool = model.new_pool(16, 16)
    assert pool is not None
    for cache in (pool.new_cache(3), model.new_cache(3, 64)):
        model.encode(sources, cache)
        held = cache.extra[1]
        cache.follow([2, 1, 0])  # the first and the last read one source: nothing of it moves
        assert cache.extra[1] is held
        found = model.score(ids, torch.arange(12).expand(3, -1), None, cache).logits
        assert distance(found, expected) <= 1e-9
        other = cache.rows([0, 1])
        other.follow([1, 1])
        assert torch.equal(other.extra[0], torch.tensor([[2], [2]])) and torch.equal(other.extra[1][0], held[1])
        joined = Cache.join([cache.rows([0]), other])
        joined.follow([0, 2, 2])
        assert joined.extra[0].tolist() == [[8], [2], [2]]
        joined.leave([2])
        assert joined.origins == cache.origins[1:2]
    assert read == [2, 2]


def test_shared_embeddings_are_held_once(model_root: Path) -> None:
    model = opened("bart", model_root, pack=False)
    assert model.encoder.weights.embed is model.weights.embed is model.weights.head.weight
    apart = opened("marian-two-vocabularies", model_root, pack=False)
    assert len(apart.encoder.weights.embed) == VOCAB and len(apart.weights.embed) == 140


def test_older_files_name_shared_tables_twice(model_root: Path, tmp_path: Path) -> None:
    """Copies of the embedding and tables of positions that could be computed."""
    directory, reference = saved_pair("marian", model_root)
    tensors = load_file(directory / "model.safetensors")
    shared = tensors["model.shared.weight"]
    for side in ("encoder", "decoder"):
        tensors[f"model.{side}.embed_tokens.weight"] = shared.clone()
        tensors[f"model.{side}.embed_positions.weight"] = stacked_waves(80, 16)
    save_file(tensors | {"lm_head.weight": shared.clone()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    model, ids = load_model(tmp_path, "float64", pack=False), words("marian", 1, 12)
    assert isinstance(model, EncoderDecoder) and model.weights.head.weight is model.encoder.weights.embed
    expected = pair_logits(reference, SOURCES[0], ids[0].tolist()).logits
    assert distance(whole(model, ids, SOURCES[:1]).logits, expected) <= 1e-9


@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (10, 24), (8, 20), (64, 300)])
def test_distances_fall_into_the_buckets_of_transformers(buckets: int, reach: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    apart = torch.arange(-600, 601)
    for is_causal in (False, True):
        theirs = T5Attention._relative_position_bucket(apart, not is_causal, buckets, reach)
        assert torch.equal(relative_bucket(apart, buckets, reach, is_causal), theirs)
        assert torch.equal(theirs[apart < -reach], theirs[apart == -reach].expand(600 - reach))


def test_waves_are_those_of_transformers_bit_for_bit() -> None:
    from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    for dim in (16, 17, 512):
        assert torch.equal(stacked_waves(70, dim), MarianSinusoidalPositionalEmbedding(70, dim).create_weight())
        theirs = M2M100SinusoidalPositionalEmbedding.get_embedding(72, dim, 1)
        assert torch.equal(interleaved_waves(72, dim, 1), theirs)


def test_what_a_model_offers_is_known_before_its_weights(model_root: Path, tmp_path: Path) -> None:
    directory, _ = saved_pair("m2m100", model_root)
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    offered = read_capabilities(tmp_path)
    assert offered == offered_by(str(tmp_path)) == opened("m2m100", model_root).capabilities
    assert (offered.is_encoder_decoder, offered.has_tree, offered.num_layers) == (True, True, 3)
    assert (offered.max_positions, offered.vocab_size) == (80, VOCAB)
    assert read_capabilities(tmp_path, context=200).max_positions == 200  # its positions are computed
    assert locate(str(tmp_path))[1] and not locate(f"hf:{directory}")[1]


def test_sources_that_cannot_be_read(model_root: Path) -> None:
    model = opened("bart", model_root)
    with pytest.raises(ConfigError, match="source is empty"):
        begun(model, [[5, 3], []])
    with pytest.raises(ConfigError, match="81 tokens, but the encoder's positions end at 80"):
        begun(model, [[5] * 81])
    two = opened("marian-two-vocabularies", model_root)  # its encoder knows fewer tokens than its decoder
    with pytest.raises(ConfigError, match="a token that the encoder does not know"):
        begun(two, [[VOCAB]])
    assert (two.capabilities.source_vocab, two.capabilities.vocab_size) == (VOCAB, 140)
    with pytest.raises(ConfigError, match="prompt holds a token outside"):
        LanguageModel(two).generate([VOCAB, 3])
    with pytest.raises(ConfigError, match="holds no source"):
        model.score(torch.tensor([[2]]), torch.tensor([[0]]), None, model.new_cache(1, 8))
    assert begun(opened("t5", model_root), [[5] * 300]).extra[1].shape[1] == 300  # distances have no end


SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("bart", {"d_model": 18}, "heads cannot share 18"),
    ("bart", {"decoder_start_token_id": None, "bos_token_id": None}, ""),
    ("mbart", {"decoder_start_token_id": None, "bos_token_id": None}, "no token to start"),
    ("mbart", {"decoder_start_token_id": 131}, "starts with token 131"),
    ("marian", {"activation_function": "mish"}, "'mish' is not known"),
    ("marian", {"encoder_layers": 3}, "encoder.layers.2"),
    ("marian", {"decoder_layers": 2}, "has no place"),
    ("marian", {"decoder_ffn_dim": 48}, r"fc\d.weight has shape"),
    ("marian", {"vocab_size": "131"}, "vocab_size"),
    ("marian", {"vocab_size": 120, "decoder_vocab_size": 120}, r"has shape \[131, 16\]"),
    ("marian", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
    ("m2m100", {"pad_token_id": -3}, "padding token"),
    ("t5", {"relative_attention_num_buckets": 8}, r"relative_attention_bias.weight has shape \[10, 3\]"),
    ("t5", {"relative_attention_num_buckets": 0}, "relative_attention_num_buckets 0; it has"),
    ("t5", {"feed_forward_proj": "double-relu"}, "'double-relu' is not known"),
    ("t5", {"num_heads": 4}, "has shape"),
]


@pytest.mark.parametrize(("case", "change", "said"), SETTINGS, ids=lambda value: str(value)[:40])
def test_settings_that_contradict_the_files(
    case: str, change: dict[str, Any], said: str, model_root: Path, tmp_path: Path
) -> None:
    directory, _ = saved_pair(case, model_root)
    config = json.loads((directory / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(directory / "model.safetensors")
    if not said:  # the family's own start token
        assert load_model(tmp_path, "float64").start_token == 2
        return
    with pytest.raises(ModelError, match=said) as caught:
        load_model(tmp_path, "float64")
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_an_encoder_decoder(model_root: Path) -> None:
    directory = str(saved_pair("marian", model_root)[0])
    with pytest.raises(ConfigError, match="card"):
        open_model(directory, card={"logits_shift": True})
    with pytest.raises(ConfigError, match="adapter"):
        open_model(directory, adapter=directory)
    with pytest.raises(ModelError, match="100 tokens is longer than the 80 positions"):
        open_model(directory, context=100)
    with pytest.raises(CapabilityError, match="int8"):
        opened("marian", model_root).use_int8_cache()


def test_the_start_token_of_the_generation_settings_counts_first(model_root: Path, tmp_path: Path) -> None:
    directory, _ = saved_pair("mbart", model_root)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(directory / name)
    (tmp_path / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 77}))
    assert load_model(tmp_path, "float64").start_token == 77


def test_a_model_with_other_settings_is_not_the_reference() -> None:
    """The comparison above can fail: another seed gives other logits."""
    one, two = (make_pair_model(CASES["t5"](), seed) for seed in (0, 1))
    assert distance(pair_logits(one, SOURCES[0], [2, 5]).logits, pair_logits(two, SOURCES[0], [2, 5]).logits) > 0.1
