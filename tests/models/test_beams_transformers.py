"""Beams of random tiny models, beside transformers' own: tokens, scores, and every key of generation_config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_generation_config import COUNT, ENCODED, PROMPT, made, theirs, wishes

from outpace.api.engine import LanguageModel
from outpace.api.result import Result
from outpace.models.generation import GenerationConfig
from outpace.models.opening import open_model

hf = pytest.importorskip("transformers")
PROMPTS = [PROMPT, [9, 44]]
LAWS: list[dict[str, Any]] = [
    {"num_beams": 4, "num_return_sequences": 4},
    {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0, "early_stopping": "never", "min_new_tokens": 3},
    {"num_beams": 4, "num_return_sequences": 1, "length_penalty": 0.0, "early_stopping": True},
]
Found = list[tuple[list[int], float]]


def searched(model: Any, asked: dict[str, Any], prompt: list[int]) -> Found:
    """What transformers finds, and how good it thinks that is: it rounds logits to float32."""
    names = {"decoder_start_token_id": 3} if model.config.is_encoder_decoder else {}
    model.generation_config = hf.GenerationConfig(
        **{"pad_token_id": 0, "bos_token_id": 1, "max_new_tokens": COUNT, **names, **asked}
    )
    start, ends = 1 if names else len(prompt), asked.get("eos_token_id", [])
    arguments = {"decoder_input_ids": torch.tensor([[3]])} if names else {}
    found = model.generate(torch.tensor([prompt]), **arguments, output_scores=True, return_dict_in_generate=True)
    texts = []
    for row in found.sequences[:, start:].tolist():
        at = next((at for at, token in enumerate(row) if token in (ends if isinstance(ends, list) else [ends])), COUNT)
        texts.append(row[: at + 1])
    return list(zip(texts, found.sequences_scores.tolist(), strict=True))


def ours(lm: LanguageModel, asked: dict[str, Any], prompts: list[list[int]], **more: Any) -> list[Result]:
    ends = asked.get("eos_token_id", [])
    lm.end_tokens = tuple(ends) if isinstance(ends, list) else (ends,)
    lm.generation = GenerationConfig.read({"max_new_tokens": COUNT, **asked})
    results: list[Result] = lm.generate(prompts, **more)
    return results


def same(results: list[Result], wanted: Found, what: str) -> None:
    assert [one.tokens for one in results] == [text for text, _ in wanted], what
    assert [one.score for one in results] == pytest.approx([score for _, score in wanted], rel=2e-6, abs=2e-5), what
    assert {one.method for one in results} == {"beam-search"}


@pytest.mark.parametrize("kind", ["marian", "t5", "bart", "gpt2", "llama"])
def test_transformers_texts_and_scores(kind: str, model_root: Path) -> None:
    """In a ragged batch, each prompt's texts are those of the prompt alone."""
    directory, model = made(kind, model_root)
    lm = LanguageModel(open_model(str(directory), "float64"))
    end = {"eos_token_id": [theirs(model, {}, PROMPT)[2], 60]}
    for law in LAWS:
        asked, size = law | end, law["num_return_sequences"]
        results = ours(lm, asked, PROMPTS)
        for row, prompt in enumerate(PROMPTS):
            same(results[row * size : (row + 1) * size], searched(model, asked, prompt), f"{kind}, {law}")


@pytest.mark.parametrize("kind", ["marian", "gpt2"])
def test_transformers_texts_under_every_key(kind: str, model_root: Path) -> None:
    directory, model = made(kind, model_root)
    lm = LanguageModel(open_model(str(directory), "float64"))
    plain = theirs(model, {}, PROMPT)
    keys = wishes(plain, 1 if kind in ENCODED else len(PROMPT))
    keys["renormalize_logits"] = {"renormalize_logits": True, "suppress_tokens": [plain[0], plain[1]]}
    for name, wish in keys.items():
        asked = {"num_beams": 3, "num_return_sequences": 3, **wish}
        same(ours(lm, asked, [PROMPT]), searched(model, asked, PROMPT), f"{kind}, {name}")
    drafted = ours(lm, asked, [PROMPT], method="beam-search", options={"beams": 3, "drafter": "prompt-lookup"})
    assert drafted[0].tokens == ours(lm, asked, [PROMPT], method="beam-search", options={"beams": 3})[0].tokens
