"""Models that fill masks, written with from left to right: a random mT5, a masked model of the zoo."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from pairs import SOURCES, pair_logits, saved_pair

import outpace
from outpace.api.appended import Appending, append, main
from outpace.api.engine import LanguageModel
from outpace.errors import CapabilityError, ConfigError
from outpace.models.opening import open_model

END, MARKS = 3, (120, 119)


@pytest.fixture(scope="module")
def mt5(model_root: Path) -> tuple[LanguageModel, Any]:
    directory, model = saved_pair("mt5", model_root)
    return LanguageModel(open_model(str(directory), "float64", "cpu", None), end_tokens=[END]), model


@pytest.fixture(scope="module")
def masked() -> LanguageModel:
    return outpace.load("stories-mask", dtype="float32")


def by_hand(model: Any, prompt: list[int], span: int, keep: int, count: int) -> list[int]:
    """The same loop over transformers' whole forwards: prompt, text and sentinel in, likeliest tokens out."""
    written: list[int] = []
    while len(written) < count:
        source, decoded = [*prompt[:-1], *written, MARKS[0], END], [2, MARKS[0]]
        while len(decoded) < span + 2 and decoded[-1] not in (MARKS[1], END):
            decoded.append(int(pair_logits(model, source, decoded).logits[0, -1].argmax()))
        found = [token for token in decoded[2:] if token not in (MARKS[1], END)][:keep]
        if not found:
            break
        written += found[: count - len(written)]
    return written


@pytest.mark.parametrize(("span", "keep"), [(4, 1), (4, 3), (5, 5)])
def test_a_random_mt5_writes_what_transformers_tells(mt5: Any, span: int, keep: int) -> None:
    lm, model = mt5
    for prompt in (SOURCES[0], SOURCES[2]):
        rounds = list(append(lm, prompt, Appending(span, keep, MARKS), max_tokens=9))
        assert list(chain(*rounds)) == by_hand(model, prompt, span, keep, 9)
        assert all(1 <= len(kept) <= keep for kept in rounds)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_text_goes_on_where_it_stopped(mt5: Any, masked: LanguageModel, temperature: float) -> None:
    cases = [
        (mt5[0], SOURCES[0], Appending(4, 2, MARKS), {}),
        (masked, "Once upon a time", Appending(4, 2), {"method": "masked-diffusion"}),
    ]
    for lm, prompt, asked, more in cases:
        law = {"temperature": temperature, "seed": 5, "max_tokens": 8, **more}
        rounds = list(append(lm, prompt, asked, **law))
        assert len(rounds) > 2
        for cut in (1, 2):
            held = list(chain(*rounds[:cut]))
            assert list(append(lm, prompt, asked, written=held, **law)) == rounds[cut:]


def test_all_kept_is_block_after_block(masked: LanguageModel) -> None:
    prompt = masked.encode("Once upon a time")
    found = list(append(masked, prompt, Appending(4, 4), max_tokens=8, method="masked-diffusion"))
    text = list(prompt)
    for kept in found:
        one = masked.generate(text, method="masked-diffusion", canvas=[-1] * 4, max_tokens=4)
        assert one.tokens == kept
        text += kept
    assert list(append(masked, prompt, Appending(4, 4), max_tokens=6, method="masked-diffusion"))[1] == found[1][:2]


def test_an_end_that_is_written_ends_the_text(masked: LanguageModel) -> None:
    free = list(chain(*append(masked, "Once upon a time", Appending(4, 2), max_tokens=8, method="masked-diffusion")))
    ending = masked.ending_with([free[3]])
    ended = list(chain(*append(ending, "Once upon a time", Appending(4, 2), max_tokens=8, method="masked-diffusion")))
    assert ended == free[: free.index(free[3])]


def test_what_cannot_fill_is_told(mt5: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for span, keep in ((0, 1), (4, 0), (4, 5)):
        with pytest.raises(ConfigError, match="are kept"):
            Appending(span, keep)
    with pytest.raises(CapabilityError, match="fills no masks"):
        next(append(outpace.load("stories-draft"), "a", Appending()))
    with pytest.raises(ConfigError, match="no <extra_id_0>"):
        next(append(mt5[0], SOURCES[0], Appending()))
    assert main(["Once", "--span", "2", "--keep", "3"]) == 2
    assert "Of 2 tokens 3 are kept." in capsys.readouterr().err
