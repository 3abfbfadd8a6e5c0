"""Contrastive search: against the published rule with every candidate recomputed, and greedy decoding at alpha 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import outpace
from outpace.errors import ConfigError, OutpaceError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.search.contrastive import ContrastiveSearch
from outpace.models.loading import load_model
from outpace.sampling import Sampling
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, SETTINGS, make_rows, make_run

TARGET = ToyModel(sharpness=1.0)


def written(method: Method, settings: Sampling = SETTINGS["greedy"], target: Any = TARGET) -> list[list[int]]:
    run, rows = make_run(method, settings, target=target, capacity=90), make_rows(max_tokens=24)
    run.join(rows)
    while run.rows:
        run.step()
    return [row.written for row in rows]


def slow(read: Any, prompt: tuple[int, ...], alpha: float, top_k: int) -> list[int]:
    """Return 24 tokens; `read` gives logits and last hidden states of a whole text, once per candidate."""
    text = list(prompt)
    for _ in range(24):
        logits, before = read(text)
        probs = logits[-1].softmax(-1)
        merit = {}
        for token in probs.topk(top_k).indices.tolist():
            own = read([*text, token])[1][-1]
            likeness = max(float(own @ one / (own.norm() * one.norm())) for one in before)
            merit[token] = (1 - alpha) * float(probs[token]) - alpha * likeness
        text.append(max(merit, key=lambda token: merit[token]))
    return text[len(prompt) :]


def read_toy(text: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    given = (torch.tensor([text]), torch.arange(len(text)).unsqueeze(0), None, TARGET.new_cache(1, 90), None)
    scores = TARGET.score(*given, outputs=ContrastiveSearch().needs.outputs)
    assert scores.last is not None
    return scores.logits[0], scores.last[0]


@pytest.mark.parametrize(("alpha", "top_k"), [(0.6, 4), (0.3, 6), (1.0, 3)])
def test_texts_are_those_of_the_published_rule(alpha: float, top_k: int) -> None:
    found = written(ContrastiveSearch(alpha, top_k))
    assert found == [slow(read_toy, prompt, alpha, top_k) for prompt in PROMPTS]
    assert found != written(Autoregressive())


def test_a_llama_writes_what_transformers_hidden_states_say(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = LlamaConfig(vocab_size=29, max_position_embeddings=128, initializer_range=0.4, **shape)  # type: ignore[arg-type]
    model: Any = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    model = model.double()

    def read(text: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            out = model(torch.tensor([text]), output_hidden_states=True)
        return out.logits[0], out.hidden_states[-1][0]

    target = load_model(str(tmp_path), "float64")
    assert written(ContrastiveSearch(0.6, 4), target=target) == [slow(read, p, 0.6, 4) for p in PROMPTS]


@pytest.mark.parametrize("name", ["greedy", "repetition penalty", "bad words", "n-grams"])
def test_without_the_penalty_it_is_greedy_decoding(name: str) -> None:
    assert written(ContrastiveSearch(alpha=0.0), SETTINGS[name]) == written(Autoregressive(), SETTINGS[name])
    assert written(ContrastiveSearch(top_k=1), SETTINGS[name]) == written(Autoregressive(), SETTINGS[name])


def test_one_forward_per_token_and_one_per_text() -> None:
    run, rows = make_run(ContrastiveSearch(), SETTINGS["greedy"], target=TARGET, capacity=80), make_rows(max_tokens=20)
    run.join(rows)
    run.step()  # reads the prompts, and tells the first candidates
    counted = run.counters["target"].nfe
    assert not any(row.written for row in rows)
    while run.rows:
        run.step()
    assert run.counters["target"].nfe - counted == 20
    assert {row.usage.num_proposed for row in rows} == {0} and {len(row.written) for row in rows} == {20}


def test_what_is_forbidden_is_not_written_to_be_unlike() -> None:
    only = Sampling(suppress_tokens=tuple(range(1, 13)))
    assert written(ContrastiveSearch(alpha=1.0), only) == [[0] * 24] * len(PROMPTS)


def test_a_text_fills_the_models_context() -> None:
    target = ToyModel(sharpness=1.0, max_positions=40)
    run, rows = make_run(ContrastiveSearch(), SETTINGS["greedy"], target=target, capacity=60), make_rows(max_tokens=20)
    for row in rows:
        row.max_tokens = 40 - row.num_prompt
    run.join(rows)
    while run.rows:
        run.step()
    whole = [slow(read_toy, prompt, 0.6, 4) for prompt in PROMPTS]
    for row, expected in zip(rows, whole, strict=True):
        assert len(row.tokens) == 40
        sure = min(24, len(row.written) - 4)
        assert row.written[:sure] == expected[:sure]


@pytest.mark.parametrize("given", [{"alpha": 1.5}, {"alpha": -0.1}, {"top_k": 0}, {"top_k": 257}])
def test_bad_settings_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        ContrastiveSearch.from_settings(given)


def test_a_temperature_is_refused() -> None:
    with pytest.raises(OutpaceError, match="contrastive-search"):
        outpace.load("stories").generate("Once", method="contrastive-search", temperature=1.0, max_tokens=4)
