"""Classifier-free guidance beside transformers' own, in float64, with and without drafts."""

import pytest
import torch
import transformers

import outpace
from outpace.errors import ConfigError
from outpace.laws.guidance import Guided
from outpace.testing.toy import ToyModel

PROMPTS = [
    "Once upon a time",
    "One day, Tom went to the park with his dog",
    "One day, Tom went to the park with his cat",
]


@pytest.fixture(scope="module")
def lm() -> outpace.LanguageModel:
    return outpace.load("stories", dtype="float64", is_compiled=False)


@pytest.mark.parametrize("negative", ["", "The red"])
def test_texts_are_those_of_transformers(lm: outpace.LanguageModel, negative: str) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(lm.directory, dtype=torch.float64).eval()
    other = torch.tensor([lm.encode(negative)]) if negative else None
    law = f"cfg:weight=1.7,negative={negative}"
    drafted = lm.generate(PROMPTS, law=law, max_tokens=16, ignore_eos=True, method="token-recycling")
    assert sum(result.usage.num_accepted for result in drafted) > 0
    for prompt, ours in zip(PROMPTS[:2], drafted, strict=False):
        ids = lm.encode(prompt)
        asked = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        told = model.generate(torch.tensor([ids]), guidance_scale=1.7, negative_prompt_ids=other, **asked)
        assert ours.tokens == told[0, len(ids) :].tolist()
        assert lm.generate(prompt, law=law, max_tokens=16, ignore_eos=True).tokens == ours.tokens


@pytest.mark.parametrize("method", ["autoregressive", "token-recycling", "beam-search"])
def test_prompts_of_any_length_read_in_chunks(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose second texts begin elsewhere, in pieces of a few tokens, beside each row alone."""
    monkeypatch.setattr("outpace.api.starting.CHUNK", 3)
    lm = outpace.LanguageModel(ToyModel(sharpness=2.0))
    rows = [[1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3], [4], [9, 9, 9, 9, 9], [2, 1, 2, 1, 2]]
    asked = {"law": "cfg:weight=2", "max_tokens": 20, "method": method}
    asked |= {} if method == "beam-search" else {"temperature": 0.8, "seed": 3}
    together = lm.generate(rows, **asked)
    assert [r.tokens for r in together] == [lm.generate([row], **asked)[0].tokens for row in rows]
    if method == "token-recycling":
        plain = lm.generate(rows, **{**asked, "method": "autoregressive"})
        assert [r.tokens for r in together] == [r.tokens for r in plain]
        assert sum(r.usage.num_accepted for r in together) > 0


def test_the_second_text_begins_with_the_last_token_of_the_prompt() -> None:
    """The law by its formula, from whole texts."""
    toy = ToyModel(sharpness=2.0)
    prompt, weight = [5, 3, 2, 8], 1.6
    result = outpace.LanguageModel(toy).generate(prompt, law=f"cfg:weight={weight}", max_tokens=12)

    def last(text: list[int]) -> torch.Tensor:
        ids = torch.tensor([text])
        scores = toy.score(ids, torch.arange(len(text)).unsqueeze(0), None, toy.new_cache(1, len(text)))
        return scores.logits[0, -1].log_softmax(-1)

    text = list(prompt)
    for token in result.tokens:
        own, other = last(text), last(text[len(prompt) - 1 :])
        assert token == int((other + weight * (own - other)).argmax())
        text.append(token)


def test_a_weight_of_one_is_plain_decoding(lm: outpace.LanguageModel) -> None:
    asked = {"max_tokens": 12, "temperature": 0.9, "seed": 4}
    plain, ours = (lm.generate(PROMPTS, **asked, law=law) for law in (None, "cfg:weight=1,negative=The"))
    assert [r.tokens for r in plain] == [r.tokens for r in ours]
    near = outpace.LanguageModel(Guided(lm.target, 1.0, []), lm.tokenizer).generate(PROMPTS, **asked)
    assert [r.tokens for r in near] == [r.tokens for r in plain]  # by the formula, too


def test_mistakes_are_told(lm: outpace.LanguageModel) -> None:
    with pytest.raises(ConfigError, match=r"negative prompt has \d+ tokens, the prompt 4"):
        lm.generate("Once upon a time", law="cfg:negative=There was a very big dog", max_tokens=4)
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        outpace.LanguageModel(ToyModel()).generate([1, 2], law="cfg:negative=no", max_tokens=4)


def test_laws_stand_one_around_the_other(lm: outpace.LanguageModel) -> None:
    """What one law forbids the next one leaves forbidden, and a law around guidance knows where the prompts end."""
    asked = {"max_tokens": 6, "temperature": 0.0}
    dola, both = (lm.generate(PROMPTS[0], **asked, law=law) for law in ("dola", ["dola", "cfg:weight=1.0001"]))
    assert dola.tokens == both.tokens
    cfg, both = (lm.generate(PROMPTS[0], **asked, law=law) for law in ("cfg", ["cfg", "contrast:weight=1e-4,floor=0"]))
    assert cfg.tokens == both.tokens
