"""Nemotron-Labs-Diffusion under both attentions against transformers, and decoding against a forward by hand."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from shapes import in_float64, lifted, make_model, reference_logits
from torch import Tensor

from outpace.api.engine import LanguageModel
from outpace.errors import ConfigError, ModelError
from outpace.models.loading import load_model
from outpace.models.transformer import Transformer

transformers = pytest.importorskip("transformers")
MASK, BLOCK, VOCAB = 50, 4, 60
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
SCALED = ROPE | {"llama_4_scaling_beta": 0.4}
PROMPTS = [[3, 7, 11, 2, 5, 9], [4, 8], [21, 5, 5, 30, 2, 1, 17, 12, 9]]
CAUSAL_BLOCK = {"attention": "causal-block"}


@functools.cache
def weights() -> Any:
    return make_model(transformers.LlamaConfig(**SIZES, rope_parameters=ROPE), 4)


@functools.cache
def llama() -> Any:
    """The same weights as transformers runs a Llama, in float64."""
    return lifted(weights())


@functools.cache
def ministral() -> Any:
    """The same weights as transformers runs Ministral 3, in float64."""
    config = transformers.Ministral3Config(**SIZES, rope_parameters=SCALED, attn_implementation="eager")
    with in_float64():
        twin = transformers.Ministral3ForCausalLM(config).double().eval()
    twin.load_state_dict(weights().state_dict())
    return twin


def stored(where: Path, rope: dict[str, Any] = ROPE, **changes: Any) -> Path:
    """Write the weights in the layout, tensor by tensor."""
    names = {"model": "encoder", "lm_head": "diffusion_head"}
    held = {}
    for name, weight in weights().state_dict().items():
        first, _, rest = name.partition(".")
        held[f"{names[first]}.{rest}"] = weight.contiguous()
    save_file(held, where / "model.safetensors")
    said = {"model_type": "nemotron_labs_diffusion", "architectures": ["NemotronLabsDiffusionModel"]}
    said |= {"mask_token_id": MASK, "block_size": BLOCK, "dlm_paradigm": "bidirectional", "sliding_window": None}
    said |= {"rope_parameters": rope, "hidden_act": "silu"}
    (where / "config.json").write_text(json.dumps(SIZES | said | changes))
    return where


def logits_by_hand(text: list[int], begin: int) -> Tensor:
    """Llama's logits [T, V] under an explicit mask: causal before place `begin`, all of the text from it on."""
    place = torch.arange(len(text))
    is_seen = (place <= place[:, None]) | (place >= begin)[:, None]
    mask = torch.zeros(len(text), len(text), dtype=torch.float64).masked_fill(~is_seen, float("-inf"))
    with in_float64(), torch.no_grad():
        return llama()(torch.tensor([text]), attention_mask=mask[None, None], use_cache=False).logits[0]


def written_by_hand(prompt: list[int], count: int, block: int, threshold: float) -> tuple[list[int], list[float]]:
    """Blocks from the prompt on, every step a whole forward: places at least this sure, the surest always."""
    text, logs = [*prompt, *[MASK] * count], [0.0] * (len(prompt) + count)
    for start in range(len(prompt), len(text), block):
        end = min(start + block, len(text))
        own = start - (start - len(prompt)) % BLOCK
        while MASK in text[start:end]:
            logits = logits_by_hand(text[: min(own + BLOCK, len(text))], own)
            logits[:, MASK] = float("-inf")
            chance, token = logits.softmax(-1).max(-1)
            is_open = [place for place in range(start, end) if text[place] == MASK]
            best = max(is_open, key=lambda place: float(chance[place]))
            for place in is_open:
                if place == best or chance[place] >= threshold:
                    text[place], logs[place] = int(token[place]), float(chance[place].log())
    return text[len(prompt) :], logs[len(prompt) :]


def test_read_causally_it_is_ministral(tmp_path: Path) -> None:
    model = load_model(stored(tmp_path, SCALED), dtype="float64")
    offered = model.capabilities
    assert (offered.attention, offered.mask_id, offered.block_size, offered.max_positions) == ("causal", None, 0, 16)
    assert model.own_mask == MASK
    ids = torch.randint(0, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    ours = model.score(ids, torch.arange(12).expand(2, -1), None, model.new_cache(2, 16)).logits
    torch.testing.assert_close(ours, reference_logits(ministral(), ids), rtol=0, atol=1e-9)


def test_queries_grow_with_their_position_in_a_longer_context(tmp_path: Path) -> None:
    """A long text at once, and one token at a time in ragged rows, as transformers computes it."""
    model = load_model(stored(tmp_path, SCALED), dtype="float64", context=100)
    assert model.capabilities.max_positions == 100
    ids = torch.randint(0, 60, (2, 90), generator=torch.Generator().manual_seed(2))
    expected = reference_logits(ministral(), ids)
    ours = model.score(ids, torch.arange(90).expand(2, -1), None, model.new_cache(2, 100)).logits
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)
    cache = model.new_cache(2, 100)
    model.score(ids[:, :60], torch.arange(60).expand(2, -1), None, cache)
    cache.keep([range(31), range(60)])
    for step in range(20):
        at = torch.tensor([[31 + step], [60 + step]])
        found = model.score(ids.gather(1, at), at, None, cache).logits[:, 0]
        cache.keep([range(1), range(1)])
        torch.testing.assert_close(found, expected[torch.arange(2), at[:, 0]], rtol=0, atol=1e-9)
    plain = reference_logits(llama(), ids)
    assert not torch.allclose(expected[:, 40], plain[:, 40], atol=1e-3)  # the factor matters
    # Compiled kernels know no such factor, so they leave such a model alone, and a shorter context to themselves.
    assert load_model(tmp_path, dtype="float32", context=100).spec.query_growth == 0.4
    assert load_model(tmp_path, dtype="float32", context=16).spec.query_growth == 0


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_block_is_llama_with_an_explicit_mask(dtype: str, tmp_path: Path) -> None:
    """Text in the cache, more text beside the block, rows of other lengths."""
    model = load_model(stored(tmp_path), dtype=dtype, card=CAUSAL_BLOCK, kernels=_kernels(dtype))
    offered = model.capabilities
    assert (offered.attention, offered.mask_id, offered.block_size) == ("causal-block", MASK, BLOCK)
    assert dtype == "float64" or model.path == "compiled"
    blocks = [[MASK, 9, MASK, MASK], [8, MASK, MASK]]
    texts, held = [PROMPTS[0], PROMPTS[2]], [4, 7]
    cache = model.new_cache(2, 32)
    for text in texts:  # what is read without a word on who sees whom is causal
        one = model.new_cache(1, 32)
        said = model.score(torch.tensor([text]), torch.arange(len(text))[None], None, one).logits[0]
        torch.testing.assert_close(said.double(), logits_by_hand(text, len(text)), rtol=0, atol=_near(dtype))
    padded = torch.tensor([[*text[:7], *[0] * (7 - len(text))] for text in texts])
    model.score(padded, torch.arange(7).expand(2, -1), None, cache, torch.zeros(2, 0, dtype=torch.int64))
    cache.keep([range(count) for count in held])
    runs = [[*text[at:], *block] for text, at, block in zip(texts, held, blocks, strict=True)]
    width = max(map(len, runs))
    position = torch.full((2, width), -1)
    visible = torch.eye(width, dtype=torch.bool).repeat(2, 1, 1)
    for row, run in enumerate(runs):
        place = torch.arange(held[row], held[row] + len(run))
        position[row, : len(run)] = place
        sight = (place <= place[:, None]) | (place >= len(texts[row]))[:, None]
        visible[row, : len(run), : len(run)] = sight
    tokens = torch.tensor([run + [0] * (width - len(run)) for run in runs])
    found = model.score(tokens, position, visible, cache).logits
    for row, run in enumerate(runs):
        expected = logits_by_hand([*texts[row], *blocks[row]], len(texts[row]))[held[row] :]
        torch.testing.assert_close(found[row, : len(run)].double(), expected, rtol=0, atol=_near(dtype))


def _kernels(dtype: str) -> Any:
    from outpace import kernels

    return kernels if dtype == "float32" else None


def _near(dtype: str) -> float:
    return 1e-9 if dtype == "float64" else 1e-3


@functools.cache
def language_model(root: Path, attention: str) -> LanguageModel:
    return LanguageModel(load_model(root, dtype="float64", card={"attention": attention}))


@pytest.mark.parametrize(("block", "threshold"), [(0, 1.0), (2, 1.0), (0, 0.1)])
def test_decoding_equals_blocks_by_hand(block: int, threshold: float, tmp_path: Path) -> None:
    """Whole blocks and parts of them, one place at a time and several; in a ragged batch, alone, without a cache."""
    lm = language_model(stored(tmp_path), "causal-block")
    method = {"method": "fast-dllm", "options": {"block": block, "threshold": threshold}}
    together = lm.generate(PROMPTS, max_tokens=10, record="log_probs", **method)
    for prompt, one in zip(PROMPTS, together, strict=True):
        wanted, logs = written_by_hand(prompt, 10, block or BLOCK, threshold)
        assert one.tokens == wanted
        assert one.log_probs == pytest.approx(logs, abs=1e-9)
        assert lm.generate(prompt, max_tokens=10, **method).tokens == wanted
    method["options"] |= {"cache": "none"}
    assert [one.tokens for one in lm.generate(PROMPTS, max_tokens=10, **method)] == [one.tokens for one in together]
    steps = sum(one.usage.num_steps for one in together)
    assert steps == 30 if threshold == 1 else steps < 27


@pytest.mark.parametrize("name", ["ssd", "freedave"])
def test_guesses_on_its_blocks_change_no_text(name: str, tmp_path: Path) -> None:
    lm = language_model(stored(tmp_path), "causal-block")
    for asked in ({"temperature": 0.0}, {"temperature": 0.7, "seed": 3}):
        plain = lm.generate(PROMPTS, method="masked-diffusion", max_tokens=8, **asked)
        found = lm.generate(PROMPTS, method=name, options={"min_lead": 0.0}, max_tokens=8, **asked)
        assert [one.tokens for one in found] == [one.tokens for one in plain]
        assert sum(one.usage.num_steps for one in found) < sum(one.usage.num_steps for one in plain)


def test_sets_behind_its_text_are_plain_decoding_where_nothing_is_sure(tmp_path: Path) -> None:
    lm = language_model(stored(tmp_path), "causal")
    plain = lm.generate(PROMPTS, max_tokens=12, repetition_penalty=1.3)
    found = lm.generate(
        PROMPTS, method="set-block", options={"threshold": 1.0, "block": 6}, max_tokens=12, repetition_penalty=1.3
    )
    assert [one.tokens for one in found] == [one.tokens for one in plain]
    prompt = PROMPTS[0]
    first = lm.generate(prompt, method="set-block", options={"threshold": 0.01, "block": 4}, max_tokens=4)
    law = logits_by_hand([*prompt, *[MASK] * 4], len(prompt))[len(prompt) :]
    law[:, MASK] = float("-inf")
    wanted = [int(logits_by_hand(prompt, len(prompt))[-1].argmax()), *law[1:].argmax(-1).tolist()]
    assert first.tokens == wanted
    assert first.usage.num_steps == 1


OWN: dict[str, dict[str, Any]] = {
    "block-draft": {"draft": "own", "draft_len": 5},
    "diffuspec": {"draft": "own", "draft_len": 5},
    "space": {},
}


@pytest.mark.parametrize("method", OWN)
def test_it_drafts_for_itself_what_plain_decoding_writes(method: str, tmp_path: Path) -> None:
    lm = language_model(stored(tmp_path), "causal")
    laws: list[dict[str, Any]] = [{}, {"temperature": 0.8, "seed": 3}, {"repetition_penalty": 1.3}]
    for law in laws:
        plain = lm.generate(PROMPTS, max_tokens=12, **law)
        found = lm.generate(PROMPTS, method=method, options=OWN[method], max_tokens=12, **law)
        assert [one.tokens for one in found] == [one.tokens for one in plain]
        for prompt, one in zip(PROMPTS, found, strict=True):
            alone = lm.generate(prompt, method=method, options=OWN[method], max_tokens=12, **law)
            if "temperature" not in law:  # rows draw by keys of their own
                assert alone.usage.num_proposed == one.usage.num_proposed
        assert sum(one.usage.num_proposed for one in found) > 0


def test_what_is_not_computed_is_refused_by_name(tmp_path: Path) -> None:
    stored(tmp_path)
    for attention in ("block", "full"):
        with pytest.raises(ModelError, match=f"with {attention} attention attends in a way that nobody computes here"):
            load_model(tmp_path, card={"attention": attention, "mask_id": MASK})
    with pytest.raises(ConfigError, match="block_length is 0"):
        load_model(tmp_path, card=CAUSAL_BLOCK | {"block_length": 0})
    for name, value in (("sliding_window", 4), ("dlm_paradigm", "block_diff"), ("dlm_type", "dream")):
        with pytest.raises(ModelError, match=f"{name} {value!r}"):
            load_model(stored(tmp_path, **{name: value}))


def test_a_model_without_blocks_drafts_nothing_for_itself(tmp_path: Path) -> None:
    lm = language_model(stored(tmp_path), "causal")
    target = lm.target
    assert isinstance(target, Transformer)
    target.own_mask = None
    with pytest.raises(ConfigError, match="not taught blocks of masks"):
        lm.generate(PROMPTS[0], method="block-draft", options={"draft": "own"}, max_tokens=4)
