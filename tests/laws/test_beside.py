"""Laws over two models, or two places of one: beside the same formulas over whole texts, in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

import outpace
from outpace.errors import ConfigError, OutpaceError
from outpace.laws.beside import against
from outpace.laws.dola import divergence
from outpace.testing.toy import ToyModel
from outpace.types import Outputs

PROMPTS = ["Once upon a time", "The cat sat on the mat. The cat sat on the mat. The cat"]
LAWS = {
    "plugin": "plugin:model=stories-draft,weight=0.7",
    "contrast": "contrast:weight=0.6,floor=0.05",
    "dola": "dola:layers=0+2+4,weight=0.8",
}


@pytest.fixture(scope="module")
def lm() -> outpace.LanguageModel:
    return outpace.load("stories", dtype="float64", is_compiled=False)


@pytest.fixture(scope="module")
def small() -> outpace.LanguageModel:
    return outpace.load("stories-draft", dtype="float64", is_compiled=False)


def whole(lm: outpace.LanguageModel, text: list[int], outputs: Outputs | None = None) -> outpace.types.Scores:
    """One forward over a text."""
    ids, cache = torch.tensor([text]), lm.target.new_cache(1, len(text))
    asked = (ids, torch.arange(len(text)).unsqueeze(0), None, cache)
    return lm.target.score(*asked) if outputs is None else lm.target.score(*asked, outputs=outputs)


def laws(name: str, lm: outpace.LanguageModel, small: outpace.LanguageModel, text: list[int]) -> Tensor:
    """The law's logits [T, V] by the formula, in numpy."""
    own = whole(lm, text).logits[0].log_softmax(-1).numpy()
    if name == "dola":
        layers = (0, 2, 4)
        taps = whole(lm, text, Outputs(layers=layers)).taps
        early = [lm.target.early(taps[layer][0]).log_softmax(-1).numpy() for layer in layers]
        found = []
        for at, law in enumerate(own):
            gaps = []
            for other in early:
                p, q = np.exp(law), np.exp(other[at])
                middle = (p + q) / 2
                gaps.append((p * np.log(p / middle)).sum() / 2 + (q * np.log(q / middle)).sum() / 2)
            row = law - 0.8 * early[int(np.argmax(gaps))][at]
            found.append(np.where(np.exp(law) < 0.1 * np.exp(law).max(), -np.inf, row))
        return torch.tensor(np.array(found))
    other = whole(small, text).logits[0].log_softmax(-1).numpy()
    if name == "plugin":
        return torch.tensor(own + 0.7 * other)
    p = np.exp(own)
    return torch.tensor(np.where(p < 0.05 * p.max(-1, keepdims=True), -np.inf, 1.6 * own - 0.6 * other))


@pytest.mark.parametrize("name", LAWS)
def test_texts_are_those_of_the_formula(name: str, lm: outpace.LanguageModel, small: outpace.LanguageModel) -> None:
    for result in lm.generate(PROMPTS, law=LAWS[name], max_tokens=16):
        text = [*result.prompt_tokens, *result.tokens]
        wanted = laws(name, lm, small, text)[len(result.prompt_tokens) - 1 : -1].argmax(-1)
        assert result.tokens == wanted.tolist()
    plain = lm.generate(PROMPTS, max_tokens=16)
    assert [r.tokens for r in plain] != [r.tokens for r in lm.generate(PROMPTS, law=LAWS[name], max_tokens=16)]


@pytest.mark.parametrize("method", ["token-recycling", "draft-model"])
@pytest.mark.parametrize("name", LAWS)
def test_drafts_change_nothing(name: str, method: str, lm: outpace.LanguageModel) -> None:
    asked = {"max_tokens": 16, "temperature": 0.7, "law": LAWS[name], "seed": 1}
    plain, drafted = lm.generate(PROMPTS, **asked), lm.generate(PROMPTS, method=method, **asked)
    assert [r.tokens for r in drafted] == [r.tokens for r in plain]
    assert lm.generate(PROMPTS[1], method=method, **asked).tokens == plain[1].tokens
    if method == "draft-model":
        assert sum(r.usage.num_accepted for r in drafted) > 0


@pytest.mark.parametrize("law", ["plugin:model=stories-draft,weight=0", "contrast:weight=0", "dola:weight=0"])
def test_no_weight_is_plain_decoding(law: str, lm: outpace.LanguageModel) -> None:
    asked = {"max_tokens": 16, "temperature": 0.9, "seed": 5}
    plain, ours = lm.generate(PROMPTS, **asked), lm.generate(PROMPTS, law=law, **asked)
    assert [r.tokens for r in ours] == [r.tokens for r in plain]


def test_a_uniform_plugin_changes_nothing() -> None:
    """Row 96: a plugin that finds all tokens alike leaves every text as it is."""
    toy, flat = ToyModel(sharpness=2.0), ToyModel(seed=3, sharpness=0.0)
    lm = outpace.LanguageModel(toy)
    lm.partners.named = lambda name: flat  # type: ignore[method-assign]
    for temperature in (0.0, 1.0):
        asked = {"max_tokens": 30, "temperature": temperature, "seed": 2}
        plain = lm.generate([[1, 2, 3], [4]], **asked)
        ours = lm.generate([[1, 2, 3], [4]], law="plugin:model=flat", method="token-recycling", **asked)
        assert [r.tokens for r in ours] == [r.tokens for r in plain]


def test_laws_stand_behind_each_other(lm: outpace.LanguageModel) -> None:
    asked = {"max_tokens": 16, "law": ["hmm:keywords=dog", "contrast:weight=0.3,floor=0"]}
    plain, drafted = lm.generate(PROMPTS, **asked), lm.generate(PROMPTS, method="prompt-lookup", **asked)
    assert all("dog" in result.text for result in plain)
    assert [r.tokens for r in drafted] == [r.tokens for r in plain]
    strict = lm.generate(PROMPTS[1], max_tokens=8, law=["hmm:keywords=zebra", "contrast:floor=1"])
    assert strict.finish_reason == "error"  # only the likeliest token was left, and it leads nowhere
    assert any("leaves no token" in note for note in strict.notes)


def test_the_pieces() -> None:
    own, other = (torch.randn(3, 5, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    torch.testing.assert_close(against(own, other, 0.0, 0.0), own)
    assert (divergence(own, own).abs() < 1e-12).all() and (divergence(own, other) > 0).all()


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ("plugin", "names no model"),
        ("plugin:model=nowhere", "nowhere"),
        ("plugin:model=translate", "Scores are summed|left to right"),
        ("contrast:floor=2", "floor is 2.0"),
        ("dola:layers=99", "no layer 99"),
    ],
)
def test_mistakes_are_told(law: str, message: str, lm: outpace.LanguageModel) -> None:
    with pytest.raises(OutpaceError, match=message):
        lm.generate(PROMPTS[0], law=law, max_tokens=4)


def test_a_model_without_an_amateur_is_told() -> None:
    with pytest.raises(ConfigError, match="No drafter is known"):
        outpace.LanguageModel(ToyModel()).generate([1], law="contrast", max_tokens=2)
