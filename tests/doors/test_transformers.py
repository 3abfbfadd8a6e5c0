"""`model.generate(custom_generate=...)`: transformers' own texts, with every argument obeyed or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from outpace.doors.transformers import FOLDER, generate
from outpace.errors import CapabilityError, ConfigError

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model() -> Any:
    """A small Llama of random weights, whose texts soon repeat themselves: drafts are kept."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=96, max_position_embeddings=128, initializer_range=0.2, **shape)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    """Two prompts, the first of them padded at the left."""
    ids = torch.tensor([[0, 0, 0, 5, 9, 7], [11, 4, 8, 3, 60, 21]])
    return {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"method": "prompt-lookup", "options": {"draft_len": 6}},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 12},
        {"eos_token_id": [62, 13], "pad_token_id": 7},
        {"max_new_tokens": None, "max_length": 17},
    ],
)
def test_greedy_text_is_its_own(model: Any, inputs: dict[str, torch.Tensor], asked: dict[str, Any]) -> None:
    ours = {name: asked[name] for name in ("method", "options") if name in asked}
    settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, **asked}
    settings = {name: value for name, value in settings.items() if name not in ours}
    own = model.generate(**inputs, **settings)
    assert torch.equal(model.generate(**inputs, **settings, custom_generate=generate, **ours), own)


def test_a_folder_that_transformers_loads(
    model: Any, inputs: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    found = model.generate(**inputs, **settings, custom_generate=FOLDER, trust_remote_code=True)
    assert torch.equal(found, model.generate(**inputs, **settings))


def test_samples_are_drawn_from_torchs_seed(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    def draw(**ours: Any) -> list[list[int]]:
        torch.manual_seed(5)
        settings = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.2, "num_return_sequences": 3}
        return model.generate(**inputs, **settings, pad_token_id=0, custom_generate=generate, **ours).tolist()

    drawn = draw()
    assert drawn == draw(method="autoregressive") and len({tuple(row) for row in drawn}) == 6
    assert drawn != draw(seed=1) and draw(seed=1) == draw(seed=1, method="prompt-lookup")


def test_a_model_with_an_encoder(inputs: dict[str, torch.Tensor]) -> None:
    """Encoders are padded at the right."""
    torch.manual_seed(2)
    inputs = {name: rows.flip(1) for name, rows in inputs.items()}
    shape = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "init_std": 0.3}
    config = transformers.BartConfig(
        vocab_size=96, max_position_embeddings=64, forced_eos_token_id=None, **shape, **heads
    )
    model = transformers.BartForConditionalGeneration(config).eval()
    settings = {"max_new_tokens": 16, "do_sample": False, "no_repeat_ngram_size": 4}
    own = model.generate(**inputs, **settings)
    assert own.shape[1] > 8 and torch.equal(model.generate(**inputs, **settings, custom_generate=generate), own)


def test_an_output_object(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    found = model.generate(**inputs, **settings, return_dict_in_generate=True, custom_generate=generate)
    assert torch.equal(found.sequences, model.generate(**inputs, **settings))


class _Stop(transformers.StoppingCriteria):
    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.ones(input_ids.shape[0], dtype=torch.bool)


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"num_beams": 3}, "num_beams"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
        ({"logits_processor": [lambda ids, scores: scores]}, "logits processor"),
        ({"stopping_criteria": [_Stop()]}, "_Stop"),
        ({"inputs_embeds": torch.zeros(1, 3, 32), "input_ids": None, "attention_mask": None}, "inputs_embeds"),
    ],
)
def test_what_is_not_obeyed_is_named(model: Any, inputs: dict[str, Any], asked: dict[str, Any], word: str) -> None:
    with pytest.raises(CapabilityError, match=word):
        model.generate(
            **{**inputs, **asked}, max_new_tokens=2, do_sample=False, custom_generate=generate, pad_token_id=0
        )


def test_an_unknown_method(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ConfigError, match="zzz"):
        model.generate(**inputs, max_new_tokens=2, pad_token_id=0, custom_generate=generate, method="zzz")
