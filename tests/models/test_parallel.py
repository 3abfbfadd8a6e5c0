"""A model that two processes hold together against the same model in one, for families that differ in what is cut."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from shapes import saved
from split_work import Seen, forward, texts, work

from outpace.errors import CapabilityError, ConfigError
from outpace.models.loading import load_model
from outpace.models.opening import open_model
from outpace.models.parallel import Split, join, together

TOLERANCE = 1e-12  # of the largest logit: sums over heads and columns are taken in another order
FAMILIES = ["llama", "qwen3", "gpt2", "gpt_neox", "opt-350m", "gemma2"]


@pytest.fixture(scope="module")
def seen(model_root: Path) -> Seen:
    """What the first of two processes saw of all families."""
    directories = [saved(case, model_root)[0] for case in FAMILIES]
    with together(2, work, directories) as split:
        return work(split, directories)


@pytest.mark.parametrize("case", FAMILIES)
def test_logits_and_texts_are_those_of_one_process(case: str, seen: Seen, model_root: Path) -> None:
    whole = load_model(saved(case, model_root)[0], "float64", pack=False)
    expected = forward(whole)
    assert float((seen.logits[case] - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())
    assert seen.tokens[case] == texts(whole, is_plain=True)
    assert seen.num_bytes[case] < 0.75 * whole.weights.num_bytes  # norms and the embedding are whole


def test_a_wish_is_the_firsts(seen: Seen) -> None:
    assert seen.wishes == [True, False]


def test_processes_that_part_are_told_apart_and_a_lost_one_is_missed(seen: Seen) -> None:
    assert "went different ways" in seen.told[0] and "lost each other" in seen.told[1] and len(seen.told) == 2


@pytest.mark.parametrize(
    ("case", "size", "message"),
    [
        ("olmo2", 2, "Norms over all query heads at once are not split"),
        ("llama", 4, "6 query heads cannot be split over 4"),
        ("llama", 3, "2 key and value heads cannot be split over 3"),
        ("opt", 6, "80 MLP columns cannot be split over 6"),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(case: str, size: int, message: str, model_root: Path) -> None:
    with pytest.raises(CapabilityError, match=message) as caught:
        load_model(saved(case, model_root)[0], split=Split(0, size))
    assert caught.value.hint


def test_models_that_transformers_runs_are_not_split(model_root: Path) -> None:
    with pytest.raises(CapabilityError, match="is not split: transformers runs it"):
        open_model(f"hf:{saved('llama', model_root)[0]}", split=Split(0, 2))


def test_joining_needs_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delitem(os.environ, name, raising=False)
    with pytest.raises(ConfigError, match="RANK is not set") as caught:
        join()
    assert "torchrun" in caught.value.hint
