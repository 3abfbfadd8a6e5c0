"""Noise for denoising pre-training: what is kept, what goes missing, and how often."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from outpace.errors import ConfigError
from outpace.train.data import EOS_ID, MASK_ID
from outpace.train.pairs import encode_pairs, train_pair_tokenizer
from outpace.train.translation.noise import (
    Noise,
    delete_tokens,
    infill_text,
    mask_tokens,
    noiser,
    permute_sentences,
    rotate_text,
)

TEXT = list(range(10, 30))


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


def test_masking_keeps_places_and_hits_its_share() -> None:
    spoilt = [mask_tokens(TEXT, 0.3, generator) for generator in generators(400)]
    assert all(token in (MASK_ID, was) for row in spoilt for token, was in zip(row, TEXT, strict=True))
    share = sum(row.count(MASK_ID) for row in spoilt) / (400 * len(TEXT))
    assert share == pytest.approx(0.3, abs=0.02)  # four deviations
    assert mask_tokens(TEXT, 0.0, generators(1)[0]) == TEXT


def test_deletion_keeps_the_order_and_hits_its_share() -> None:
    spoilt = [delete_tokens(TEXT, 0.25, generator) for generator in generators(400)]
    assert all(row == sorted(row) and set(row) <= set(TEXT) for row in spoilt)
    assert sum(map(len, spoilt)) / (400 * len(TEXT)) == pytest.approx(0.75, abs=0.02)
    assert delete_tokens(TEXT, 1.0, generators(1)[0]) == []


def test_infilling_takes_out_its_share_one_mask_for_each_span() -> None:
    spans, empty = Counter[int](), 0
    for generator in generators(600):
        row = infill_text(TEXT, 0.3, generator)
        kept = [token for token in row if token != MASK_ID]
        assert kept == sorted(kept) and len(kept) == 14  # 6 of 20 tokens are missing
        assert row.count(MASK_ID) >= 1
        # Between two kept tokens (or the ends) stand masks; what is missing there is what they cover.
        places = [-1, *(index for index, token in enumerate(row) if token != MASK_ID), len(row)]
        values = [TEXT[0] - 1, *kept, TEXT[-1] + 1]
        for left, right, low, high in zip(places, places[1:], values, values[1:], strict=False):
            masks, missing = right - left - 1, high - low - 1
            assert masks or not missing  # nothing goes missing without a mask
            spans[missing] += masks == 1
            empty += masks == 1 and not missing
    assert empty > 0  # a span of no length: a mask where nothing is missing
    # Single spans of 1 to 5 tokens all come up, and those of 2 or 3 more often than those of 5 (Poisson of mean 3).
    assert all(spans[size] for size in range(1, 6)) and min(spans[2], spans[3]) > spans[5]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_infilling_of_nothing_and_of_all(share: float) -> None:
    row = infill_text(TEXT, share, generators(1)[0])
    assert row == TEXT if share == 0 else set(row) == {MASK_ID}
    assert infill_text([], share, generators(1)[0]) == []


def test_sentences_are_permuted_whole_and_evenly() -> None:
    text, ends = [5, 6, 1, 7, 1, 8, 9], {1}  # "5 6 ." "7 ." "8 9", the last without its full stop
    found = Counter(tuple(permute_sentences(text, ends, generator)) for generator in generators(600))
    pieces = ((5, 6, 1), (7, 1), (8, 9))
    wanted = {
        sum((pieces[index] for index in order), ())
        for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    }
    assert set(found) == wanted and min(found.values()) > 60  # 100 each are expected


def test_rotation_begins_anywhere_and_keeps_the_cycle() -> None:
    starts = Counter(rotate_text(TEXT, generator)[0] for generator in generators(400))
    assert set(starts) == set(TEXT)
    row = rotate_text(TEXT, generators(1)[0])
    at = row.index(TEXT[0])
    assert [*row[at:], *row[:at]] == TEXT and rotate_text([], generators(1)[0]) == []


def test_batches_hold_spoilt_sources_and_whole_targets_and_depend_on_the_step_alone() -> None:
    texts = ["A dog runs. A man sleeps.", "Two boys play in the snow. They laugh."]
    tokenizer = train_pair_tokenizer([(text, text) for text in texts], 300)
    plain = encode_pairs(tokenizer, [(text, text) for text in texts], 1000, 96, 0)
    spoil = noiser(Noise(permute=True, infill=0.3), tokenizer)
    batches = type(plain)(plain.sources, plain.targets, plain.budget, plain.seed, spoil)
    sources = []
    for step in range(12):
        batch, again = batches.batch(step), batches.batch(step)
        assert all(bool((a == b).all()) for a, b in zip(batch, again, strict=True))
        assert sorted(tokenizer.decode(row[row >= 0].tolist()) for row in batch.labels) == sorted(texts)
        assert (batch.sources[batch.mask.cumsum(1) == batch.mask.sum(1, keepdim=True)] == EOS_ID).all()
        assert (batch.sources == MASK_ID).any()
        sources.append(batch.sources.tolist())
    assert len({str(one) for one in sources}) > 6
    # Sentences of one text change places: the second one begins some of the sources.
    orders = noiser(Noise(permute=True, infill=0.0), tokenizer)
    found = {tokenizer.decode(orders(plain.sources[0], generator).tolist()).strip() for generator in generators(20)}
    assert len(found) == 2


def test_impossible_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"infill=2"):
        Noise(infill=2)
    with pytest.raises(ConfigError, match=r"span=0"):
        Noise(span=0)
