"""Prefix beam search of CTC against all texts there are, and on the loop."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from outpace.errors import ConfigError
from outpace.methods.whole.ctc_beam import CtcBeamSearch
from outpace.models.nar.language import Language
from outpace.models.nar.prefixes import Features, prefix_beam
from outpace.testing.one_pass import toy_network
from outpace.testing.spelling import plain_spellings, toy_tokenizer
from outpace.types import Context

V = 3
TEXTS = [[0, 1, 2], [0, 1, 1], [2, 0, 1, 2], [1, 2, 0]]
LANGUAGE = Language(TEXTS, 4, 3, order=3)
FEATURES = (Features(), Features(weight=0.7), Features(weight=0.3, bonus=0.4, blanks=0.5, ratio=0.5))


def masses(log_probs: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Return how likely each text is, by all its alignments."""
    found: dict[tuple[int, ...], float] = {}
    for path in product(range(V + 1), repeat=len(log_probs)):
        text = tuple(c for at, c in enumerate(path) if c != V and (at == 0 or path[at - 1] != c))
        mass = math.exp(sum(float(log_probs[at, c]) for at, c in enumerate(path)))
        found[text] = found.get(text, 0.0) + mass
    return found


@pytest.mark.parametrize("features", FEATURES)
def test_a_beam_that_holds_all_finds_the_best_text(features: Features) -> None:
    torch.manual_seed(0)
    for places in (1, 3, 5):
        log_probs = torch.randn(places, V + 1, dtype=torch.float64).log_softmax(-1)
        found = prefix_beam(log_probs, 10**6, V + 1, scorer=LANGUAGE, features=features)
        wanted = {}
        for text, mass in masses(log_probs).items():
            said = sum(LANGUAGE(text[:at], token) for at, token in enumerate(text)) + LANGUAGE(text, -1)
            silent = max(0.0, (places - len(text)) / max(len(text), 1) - features.ratio)
            score = features.weight * said + features.bonus * len(text) - features.blanks * silent
            wanted[text] = math.log(mass) + score
        assert {text for _, text in found} == set(wanted)
        for score, text in found:
            assert score == pytest.approx(wanted[text], abs=1e-9)
        assert found[0][1] == max(wanted, key=lambda text: wanted[text])


def test_sums_find_more_than_the_likeliest_alignment() -> None:
    log_probs = torch.tensor([[0.4, 1e-9, 1e-9, 0.6], [0.4, 1e-9, 1e-9, 0.6]]).double().log()
    assert log_probs.argmax(-1).tolist() == [V, V]  # the likeliest alignment says nothing, 0.36
    found = prefix_beam(log_probs, 3, 2, least=1e-3)
    assert found[0][1] == (0,) and math.exp(found[0][0]) == pytest.approx(0.64)


def test_the_language_model_has_a_say() -> None:
    log_probs = torch.tensor([[0.5, 0.02, 0.46, 0.02], [0.02, 0.5, 0.46, 0.02]]).double().log()
    best = [prefix_beam(log_probs, 5, 4, 0.0, LANGUAGE, Features(weight=weight))[0][1] for weight in (0.0, 5.0)]
    assert best[0] == (0, 1) and LANGUAGE(best[1], -1) + LANGUAGE(best[1][:1], best[1][1] if best[1][1:] else -1) > -9
    assert sum(LANGUAGE(best[1][:at], token) for at, token in enumerate(best[1])) + LANGUAGE(best[1], -1) > sum(
        LANGUAGE((0, 1)[:at], token) for at, token in enumerate((0, 1))
    ) + LANGUAGE((0, 1), -1)


def write(method: CtcBeamSearch, sources: list[list[int]]) -> list[list[int]]:
    """Return the texts of sources side by side, without ends."""
    model = toy_network("ctc")
    cache = model.new_cache(len(sources), 64)
    model.encode(sources, cache)
    tokenizers = {"target": toy_tokenizer(plain_spellings(13))}
    context = SimpleNamespace(target=model, sources=sources, cache=cache, tokenizers=tokenizers)
    return [law.argmax(-1).tolist()[:-1] for law in method.start(cast("Context", context))]


def test_rows_are_themselves_in_a_batch() -> None:
    sources = [[4, 5, 6, 7, 8, 3], [9, 3], [4, 4, 5, 3]]
    method = CtcBeamSearch(beam=3)
    assert write(method, sources) == [write(method, [source])[0] for source in sources]


def test_a_text_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no text to count"):
        write(CtcBeamSearch(language=str(tmp_path / "none.txt")), [[4, 3]])
    with pytest.raises(ConfigError, match="beam is 0"):
        CtcBeamSearch(beam=0)
