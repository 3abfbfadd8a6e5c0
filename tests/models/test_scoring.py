"""Scores of given texts and likeliest tokens are transformers' log-softmax, in float64."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from shapes import in_float64
from torch import Tensor

import outpace
from outpace import LanguageModel
from outpace.cli import main
from outpace.errors import CapabilityError, ConfigError
from outpace.testing.canvas_checks import toy_canvas
from outpace.testing.toy import ToyModel

hf = pytest.importorskip("transformers")
TEXT = "the quick brown fox é 日 jumps over the lazy dog and then the fox sleeps " * 15


@pytest.fixture(scope="module")
def lm(tiny: Path) -> LanguageModel:
    return outpace.load(tiny, dtype="float64")


@pytest.fixture(scope="module")
def law(tiny: Path, lm: LanguageModel) -> Tensor:
    """[N, V] what transformers says after each token of the text."""
    with in_float64(), torch.no_grad():
        model = hf.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64)
        return model(torch.tensor([lm.encode(TEXT)])).logits[0].log_softmax(-1)


def test_scores_are_the_log_softmax(lm: LanguageModel, law: Tensor) -> None:
    scored, ids = lm.score(TEXT), lm.encode(TEXT)
    wanted = law[:-1].gather(-1, torch.tensor(ids[1:]).unsqueeze(-1)).squeeze(-1)
    assert len(ids) > 256 and scored.tokens == ids and scored.log_probs[0] is None
    assert (torch.tensor(scored.log_probs[1:], dtype=torch.float64) - wanted).abs().max() < 1e-9
    assert scored.log_prob == pytest.approx(float(wanted.sum()), abs=1e-7) and scored.num_scored == len(ids) - 1
    assert lm.tokenizer is not None
    num_bytes = len(TEXT.encode()) - len(lm.tokenizer.decode(ids[:1]).encode())
    assert scored.num_bytes == num_bytes
    assert scored.bits_per_byte == pytest.approx(-scored.log_prob / math.log(2) / num_bytes)


def test_several_texts_and_lone_tokens(lm: LanguageModel) -> None:
    both = lm.score([TEXT[:30], [3]])
    assert both[0] == lm.score(TEXT[:30]) and both[1].log_probs == [None] and both[1].bits_per_byte is None
    with pytest.raises(ConfigError, match="empty"):
        lm.score("")


def test_block_models_have_none() -> None:
    canvas = LanguageModel(toy_canvas("block", is_shifted=False))
    with pytest.raises(CapabilityError, match="left to right"):
        canvas.score([1, 2])
    with pytest.raises(CapabilityError, match="likeliest"):
        canvas.generate([1, 2], top_log_probs=2, method="masked-diffusion")


def every_masking(model: ToyModel, ids: list[int]) -> tuple[float, float]:
    """Mean and deviation of the estimate from one masking: over all counts, and all places for each."""
    size, shift, mask = len(ids) - 1, int(model.capabilities.logits_shift), model.capabilities.vocab_size - 1
    chances, values = list[float](), list[float]()
    for count in range(1, size + 1):
        chosen = list(itertools.combinations(range(1, size + 1), count))
        for places in chosen:
            shown = torch.tensor([[mask if at in places else token for at, token in enumerate(ids)]])
            cache = model.new_cache(1, len(ids))
            ask = None if not shift else torch.arange(1, len(ids))[None]
            logits = model.score(shown, torch.arange(len(ids))[None], None, cache, ask).logits[0]
            logits[:, mask] = -torch.inf
            law = logits.log_softmax(-1)
            chances.append(1 / size / len(chosen))
            values.append(sum(float(law[at - shift, ids[at]]) for at in places) * size / count)
    mean = sum(chance * value for chance, value in zip(chances, values, strict=True))
    return mean, sum(chance * (value - mean) ** 2 for chance, value in zip(chances, values, strict=True)) ** 0.5


@pytest.mark.parametrize("is_shifted", [False, True])
def test_a_masked_model_estimates_the_mean_over_every_masking(is_shifted: bool) -> None:
    model = ToyModel(vocab_size=6, attention="full", logits_shift=is_shifted)
    lm, ids = LanguageModel(model), [2, 0, 4, 4, 1]
    (mean, deviation), scored = every_masking(model, ids), lm.score(ids, samples=4000, seed=1)
    assert scored.error == pytest.approx(deviation / 4000**0.5, rel=0.1) and scored.samples == 4000
    assert abs(scored.log_prob - mean) < 3 * scored.error < 0.1 * abs(mean)
    assert scored.log_probs[0] is None and sum(scored.log_probs[1:]) == pytest.approx(scored.log_prob, abs=1e-9)
    assert lm.score(ids, 4000, 1).log_prob == scored.log_prob != lm.score(ids, 4000, 2).log_prob
    assert lm.score(ids).samples == 128 and lm.score(ids, samples=1).error is None


def test_one_scored_token_has_its_exact_log_probability() -> None:
    model = ToyModel(vocab_size=6, attention="full")
    scored = LanguageModel(model).score([2, 3], samples=5)
    assert scored.log_prob == pytest.approx(every_masking(model, [2, 3])[0], abs=1e-12) and scored.error < 1e-12
    assert LanguageModel(model).score([2]).log_prob == 0


def test_maskings_are_refused_where_nothing_is_drawn(lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="exact"):
        lm.score("the", samples=3)
    masked = LanguageModel(ToyModel(vocab_size=6, attention="full"))
    with pytest.raises(ConfigError, match="samples is 0"):
        masked.score([1, 2], samples=0)
    with pytest.raises(ConfigError, match="mask"):
        masked.score([1, 5])


@pytest.mark.parametrize("method", ["autoregressive", "jacobi"])
def test_likeliest_tokens_are_the_raw_law(lm: LanguageModel, law: Tensor, method: str) -> None:
    """Of a text that penalties and a temperature have shaped, by whatever method; the first place is known."""
    ids = lm.encode(TEXT)[:80]
    settings = {"temperature": 0.8, "repetition_penalty": 1.3, "max_tokens": 6, "ignore_eos": True}
    found = lm.generate(ids, method=method, top_log_probs=5, record="log_probs", **settings)
    assert [len(top) for top in found.top_log_probs] == [5] * 6
    values, tokens = law[79].topk(5)
    assert [token for token, _ in found.top_log_probs[0]] == tokens.tolist()
    assert [value for _, value in found.top_log_probs[0]] == pytest.approx(values.tolist(), abs=1e-9)
    scored = lm.score([*ids, *found.tokens])
    assert found.log_probs == pytest.approx(scored.log_probs[80:], abs=1e-9)
    for token, own, top in zip(found.tokens, found.log_probs, found.top_log_probs, strict=True):
        assert dict(top).get(token, own) == own <= top[0][1]
    assert lm.generate(ids, max_tokens=2).top_log_probs == []
    with pytest.raises(ConfigError, match="top_log_probs is 9999"):
        lm.generate(ids, top_log_probs=9999)


def test_the_command_prints_them(tiny: Path, lm: LanguageModel, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["score", "the fox", "--model", str(tiny), "--dtype", "float64"]
    assert main(arguments) == 0 and "bits per byte" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    shown, scored = json.loads(capsys.readouterr().out), lm.score("the fox")
    assert shown["log_probs"] == scored.log_probs and shown["bits_per_byte"] == scored.bits_per_byte
    assert main(["score", "x", "--model", "stories-block"]) == 2
    assert "left to right" in capsys.readouterr().err
    masked = ["score", "Once upon a time", "--model", "stories-mask", "--samples", "4", "--seed", "3"]
    assert main(masked) == 0 and "estimated from 4 maskings (standard error" in capsys.readouterr().out
    assert main(["generate", "the", "--model", str(tiny), "--json", "--top-log-probs", "2", "--max-tokens", "3"]) == 0
    assert [len(top) for top in json.loads(capsys.readouterr().out)["top_log_probs"]] == [2, 2, 2]
