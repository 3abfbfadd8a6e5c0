"""The Python face on a small real model: batches, samples, streams, stops, cancelling, log-probabilities, notes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import outpace
from outpace import LanguageModel, Result
from outpace.errors import CapabilityError, ConfigError
from outpace.kernels import build as building

PROMPTS = ["the quick brown fox", "the lazy dog and then the", "x"]
METHODS = ["autoregressive", "prompt-lookup", "draft-model", "jacobi", "layer-skip"]


@pytest.fixture(scope="module")
def lm(tiny: Path) -> LanguageModel:
    return outpace.load(tiny)


@pytest.fixture(scope="module")
def cyclic(cycle: Path) -> LanguageModel:
    return outpace.load(cycle)


def options(method: str, draft: Path) -> dict[str, str]:
    return {"draft": str(draft)} if method == "draft-model" else {}


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_writes_what_each_prompt_alone_writes(lm: LanguageModel, tiny_draft: Path, method: str) -> None:
    settings = {"max_tokens": 16, "temperature": 0.7, "seed": 3, "ignore_eos": True}
    batch = lm.generate(PROMPTS, method=method, options=options(method, tiny_draft), **settings)
    alone = [lm.generate(prompt, **settings) for prompt in PROMPTS]
    assert [result.tokens for result in batch] == [result.tokens for result in alone]
    assert [result.text for result in batch] == [result.text for result in alone]
    assert all(len(result.tokens) == 16 and result.finish_reason == "length" for result in batch)


def test_samples_differ_and_the_first_of_many_is_the_only_one(lm: LanguageModel) -> None:
    settings = {"max_tokens": 12, "temperature": 1.0, "seed": 5}
    many = lm.generate(PROMPTS[:2], num_samples=3, **settings)
    assert [result.sample for result in many] == [0, 1, 2, 0, 1, 2]
    assert len({tuple(result.tokens) for result in many}) == 6
    assert many[0].tokens == lm.generate(PROMPTS[0], **settings).tokens
    assert [result.prompt_tokens for result in many[::3]] == [lm.encode(prompt) for prompt in PROMPTS[:2]]


def test_token_ids_are_a_prompt_too(lm: LanguageModel) -> None:
    ids = lm.encode(PROMPTS[0])
    assert lm.generate(ids, max_tokens=8).tokens == lm.generate(PROMPTS[0], max_tokens=8).tokens


@pytest.mark.parametrize("method", METHODS)
def test_a_stream_is_the_text_in_whole_characters(cyclic: LanguageModel, cycle: Path, method: str) -> None:
    arguments = {"method": method, "options": options(method, cycle), "max_tokens": 44}
    pieces, result = drain(cyclic, " ", **arguments)
    assert result.text == "日語é🙂ж 日語é🙂ж 日語é🙂ж 日"[: len(result.text)]
    assert "".join(pieces) == result.text == cyclic.generate(" ", **arguments).text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 1


def drain(lm: LanguageModel, prompt: str, **arguments: object) -> tuple[list[str], Result]:
    stream, pieces = lm.stream(prompt, **arguments), []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as ended:
            return pieces, ended.value


def test_a_character_that_never_ends_is_let_through(cyclic: LanguageModel) -> None:
    result = cyclic.generate(" ", max_tokens=2)
    assert len(result.tokens) == 2 and "\ufffd" in result.text


@pytest.mark.parametrize("method", METHODS)
def test_a_stop_string_ends_the_text_across_token_borders(cyclic: LanguageModel, cycle: Path, method: str) -> None:
    # 🙂ж is six tokens; it ends in the middle of what drafts would go on with.
    arguments = {"method": method, "options": options(method, cycle), "max_tokens": 60, "stop": ["nothing", "🙂ж"]}
    pieces, result = drain(cyclic, " ", **arguments)
    assert result.text == "日語é" == "".join(pieces)
    assert result.finish_reason == "stop"
    assert len(result.tokens) == len("日語é🙂ж".encode())


def test_closing_a_stream_cancels_it(cyclic: LanguageModel) -> None:
    stream = cyclic.stream(" ", max_tokens=50_000)
    assert next(stream) == "日"
    stream.close()


def test_a_cancelled_run_keeps_its_text(cyclic: LanguageModel) -> None:
    seen: list[str] = []
    result = cyclic.generate(
        " ", max_tokens=50_000, on_text=lambda _, text: seen.append(text), is_cancelled=lambda: len(seen) >= 4
    )
    assert result.finish_reason == "cancelled"
    assert result.text == "".join(seen) == "日語é🙂"
    assert any("Cancelled" in note for note in result.notes)


@pytest.mark.parametrize("method", METHODS)
def test_log_probs_are_those_of_a_teacher_forced_forward(lm: LanguageModel, tiny_draft: Path, method: str) -> None:
    result = lm.generate(
        PROMPTS[0],
        method=method,
        options=options(method, tiny_draft),
        max_tokens=20,
        temperature=0.9,
        top_k=20,
        record=["log_probs", "margins"],
        ignore_eos=True,
    )
    tokens = torch.tensor([result.prompt_tokens + result.tokens])
    size = tokens.shape[1]
    cache = lm.target.new_cache(1, size)
    logits = lm.target.score(tokens, torch.arange(size).unsqueeze(0), None, cache).logits[0]
    first = len(result.prompt_tokens)
    expected = logits.log_softmax(-1)[range(first - 1, size - 1), result.tokens]
    assert torch.allclose(torch.tensor(result.log_probs, dtype=torch.float64), expected, atol=1e-9)
    assert len(result.margins) == len(result.tokens) == len(result.sources)
    assert all(margin > 0 for margin in result.margins)


def test_notes_say_that_the_context_cut_the_length(lm: LanguageModel) -> None:
    result = lm.generate("x" * 500, max_tokens=100)
    assert len(result.tokens) == 512 - len(result.prompt_tokens)
    assert any("context" in note for note in result.notes)


def test_nan_logits_end_one_row_and_not_its_neighbour(lm: LanguageModel, altered, vocab: int) -> None:  # type: ignore[no-untyped-def]
    poison = lm.encode("x")[0]

    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.embed_tokens.weight"][poison] = float("nan")

    broken = outpace.load(altered(spoil))
    bad, good = broken.generate(["ax", "the dog"], max_tokens=6, logit_bias={poison: -100.0}, ignore_eos=True)
    assert (bad.finish_reason, bad.tokens) == ("error", [])
    assert good.finish_reason == "length"
    assert good.tokens == lm.generate("the dog", max_tokens=6, logit_bias={poison: -100.0}, ignore_eos=True).tokens
    assert any("NaN" in note for note in bad.notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"stop": [""]}, "stop string is empty"),
        ({"temperatur": 1.0}, "no argument 'temperatur'"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"logit_bias": {300: 1.0}}, "outside the vocabulary"),
        ({"method": "jacobi", "options": {"windw": 3}}, "no option 'windw'"),
        ({"method": "draft-model"}, "No drafter is known"),
    ],
)
def test_what_cannot_be_used_is_refused(lm: LanguageModel, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        lm.generate("x", **arguments)
    assert caught.value.hint


@pytest.mark.parametrize("prompt", ["", [], [[]], [300], [-1], "x" * 600])
def test_prompts_that_cannot_be_used_are_refused(lm: LanguageModel, prompt: object) -> None:
    with pytest.raises(ConfigError):
        lm.generate(prompt)


@pytest.mark.skipif(building.build().library is None, reason=building.build().note)
def test_an_int8_cache_writes_one_text_whoever_drafts() -> None:
    lm = outpace.load("stories", cache_dtype="int8")
    texts = {tuple(lm.generate("Once upon a time", max_tokens=24, method=m).tokens) for m in ("autoregressive", "auto")}
    assert len(texts) == 1
    assert lm.target.new_cache(1, 8).buffers[0].dtype == torch.uint8
    with pytest.raises(CapabilityError, match="compiled kernels"):
        outpace.load("stories", cache_dtype="int8", is_compiled=False)
    with pytest.raises(ConfigError, match="cache_dtype"):
        outpace.load("stories", cache_dtype="int3")


def test_a_method_that_does_not_fit_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(CapabilityError, match="full or block attention") as caught:
        lm.generate("x", method="masked-diffusion")
    assert "autoregressive" in caught.value.hint
