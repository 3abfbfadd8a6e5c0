from __future__ import annotations

import random
import statistics

import pytest

from outpace.bench.stats import copied_share, ratio_of_pairs, repeated_share


def test_repeated_share_on_hand_made_texts() -> None:
    assert repeated_share(list(range(50))) == 0
    assert repeated_share([]) == 0
    assert repeated_share(list(range(7)) * 1) == 0
    # Eight tokens that occur twice, far apart: 16 of 26 tokens lie in a repeated 8-gram.
    block = list(range(8))
    assert repeated_share([*block, *range(100, 110), *block]) == pytest.approx(16 / 26)
    # Seven tokens that occur twice are no 8-gram.
    assert repeated_share([*block[:7], *range(100, 110), *block[:7]]) == 0
    # A loop: every token lies in one.
    assert repeated_share([1, 2, 3] * 20) == 1
    # Nine equal tokens hold the same 8-gram twice, overlapping.
    assert repeated_share([5] * 9) == 1


def test_copies_of_the_prompt_are_counted_apart() -> None:
    prompt = list(range(20))
    assert copied_share(prompt, list(range(4, 14))) == 1
    assert repeated_share(list(range(4, 14))) == 0
    assert copied_share(prompt, [*range(10), *range(50, 60)]) == 0.5
    assert copied_share(prompt, list(range(7))) == 0


def test_interval_of_constant_ratios_is_a_point() -> None:
    found = ratio_of_pairs({"a": [2.0, 2.0], "b": [2.0]})
    assert found is not None
    assert (found.median, found.low, found.high, found.pairs) == (2.0, 2.0, 2.0, 3)
    assert ratio_of_pairs({"a": []}) is None


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """40 prompts with medians around 1.5, two repetitions each: 95% intervals over prompts must hold 1.5 mostly."""
    rng, hits = random.Random(0), 0
    for trial in range(60):
        pairs = {}
        for prompt in range(40):
            centre = rng.gauss(1.5, 0.3)
            pairs[str(prompt)] = [centre + rng.gauss(0, 0.01) for _ in range(2)]
        found = ratio_of_pairs(pairs, seed=trial, draws=300)
        assert found is not None
        assert found.low <= found.median <= found.high
        assert found.median == statistics.median(value for values in pairs.values() for value in values)
        hits += found.low <= 1.5 <= found.high
    assert hits >= 50


def test_repeating_a_prompt_feigns_no_certainty() -> None:
    few = ratio_of_pairs({"a": [1.0], "b": [2.0], "c": [3.0]})
    many = ratio_of_pairs({"a": [1.0] * 50, "b": [2.0] * 50, "c": [3.0] * 50})
    assert few is not None and many is not None
    assert (many.low, many.high) == (few.low, few.high) == (1.0, 3.0)
