"""Filling gaps: pieces to a canvas and back, on full and on block attention."""

from __future__ import annotations

import dataclasses

import pytest

import outpace
from outpace.api.engine import LanguageModel
from outpace.api.infill import filled, lay_pieces, read_gaps
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.models.transformer import Transformer


def letters(text: str, is_first: bool) -> list[int]:
    return [ord(letter) - 96 for letter in text if letter != " "]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return outpace.load("stories-mask", dtype="float64", is_compiled=False)


@pytest.fixture(scope="module")
def blocks() -> LanguageModel:
    lm = outpace.load("stories-mask", dtype="float64", is_compiled=False)
    assert isinstance(lm.target, Transformer)
    lm.target = Transformer(dataclasses.replace(lm.target.spec, attention="block", block_size=8), lm.target.weights)
    return lm


def test_pieces_become_a_prompt_and_a_canvas() -> None:
    assert lay_pieces(["ab", 2, "c", 1], letters, [9]) == ([1, 2], [-1, -1, 3, -1])
    assert lay_pieces([1, [7, 8]], letters, [9]) == ([9], [-1, 7, 8])
    assert read_gaps("ab[[2]]c[[1]]") == ["ab", 2, "c", 1]
    assert filled([-1, -1, 3, -1], [5, 6, 3, 7], lambda ids: str(list(ids))) == ["[5, 6]", "[7]"]
    assert filled([-1, -1, 3, -1], [5], lambda ids: str(list(ids))) == ["[5]"]


@pytest.mark.parametrize("pieces", [["ab"], ["ab", 0], ["ab", -3]])
def test_a_text_without_a_gap_is_refused(pieces: list[object]) -> None:
    with pytest.raises(ConfigError, match=r"[Gg]ap"):
        lay_pieces(pieces, letters, [9])  # type: ignore[arg-type]


def test_a_gap_at_the_beginning_needs_a_start_token() -> None:
    with pytest.raises(ConfigError, match="begins with a gap"):
        lay_pieces([3, "a"], letters, [])


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("model", ["lm", "blocks"])
def test_given_pieces_stay_and_gaps_are_filled(model: str, temperature: float, request: pytest.FixtureRequest) -> None:
    chosen: LanguageModel = request.getfixturevalue(model)
    last = " and they went home. Then they slept. The end was near for the old day."
    result = chosen.infill(
        ["Once upon a time", 7, " there was a dog.", 5, last], method="masked-diffusion", temperature=temperature
    )
    assert result.text.endswith(last)
    assert " there was a dog." in result.text
    assert len(result.filled) == 2
    assert result.text == f"{result.filled[0]} there was a dog.{result.filled[1]}{last}"
    assert result.usage.num_emitted == len(result.tokens)
    assert 0 not in result.tokens, "no text ends between given pieces"


def test_what_comes_after_a_gap_is_seen_under_full_attention(lm: LanguageModel) -> None:
    texts = [
        lm.infill(["Once upon a time", 8, end], method="masked-diffusion").filled[0] for end in (" Lily", " 1 + 1")
    ]
    assert texts[0] != texts[1]


def test_samples_differ_and_repeat(lm: LanguageModel) -> None:
    asked = {"method": "masked-diffusion", "temperature": 1.0, "num_samples": 3}
    first, again = (lm.infill(["The cat", 6, " the mat."], **asked) for _ in range(2))
    assert [result.tokens for result in first] == [result.tokens for result in again]
    assert len({tuple(result.tokens) for result in first}) > 1


def test_a_causal_model_fills_no_gaps() -> None:
    with pytest.raises(CapabilityError, match="cannot fill gaps"):
        outpace.load("stories").infill(["a", 3, "b"])


def test_a_canvas_beyond_the_context_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(CapabilityError, match="context"):
        lm.infill(["a", 2000, "b"], method=MaskedDiffusion())


def test_a_given_mask_is_refused(lm: LanguageModel) -> None:
    mask = lm.target.capabilities.mask_id
    assert mask is not None
    with pytest.raises(ConfigError, match="mask token"):
        lm.infill(["a", 2, [mask]], method=MaskedDiffusion())
    with pytest.raises(ConfigError, match="mask token"):
        lm.generate([5, mask, 6], method=MaskedDiffusion())
