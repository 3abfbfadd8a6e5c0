"""Unmasking rules against slow formulas: what a rule chooses is a pure function of a reading and a row."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from outpace.canvas import Canvas, CanvasRow, FixedBlocks, Reading
from outpace.canvas.background import SHIPPED, frequencies
from outpace.canvas.reading import read
from outpace.canvas.rules import Ranked, eligible
from outpace.canvas.rules.ancestral import Ancestral
from outpace.canvas.rules.parallel import EntropyBounded, Factor
from outpace.canvas.rules.position import Position
from outpace.canvas.rules.revise import Revise
from outpace.canvas.rules.spread import Spread, plan_steps
from outpace.errors import ConfigError
from outpace.sampling import Sampler, Sampling, row_key
from outpace.text.fingerprint import fingerprint
from outpace.text.tokenizer import Tokenizer
from outpace.train.background import main as count

MASK, WORDS, PROMPT = 9, 9, 3
CANVAS = Canvas(MASK)
SEEDS = range(12)


def make_row(size: int = 12, end: int = 9, written: Sequence[tuple[int, int, float]] = ()) -> CanvasRow:
    """A row of `size` places after a prompt of three, its block ending at `end` places of them."""
    row = CanvasRow.begin([1, 2, 3], [-1] * size, CANVAS, ())
    tokens, log_probs = row.tokens.copy(), row.log_probs.copy()
    for place, token, prob in written:
        tokens[PROMPT + place], log_probs[PROMPT + place] = token, math.log(prob)
    return replace(row, tokens=tokens, log_probs=log_probs, end=PROMPT + end)


def make_reading(row: CanvasRow, seed: int = 0, sharpness: float = 2.0, number: int = 0) -> Reading:
    """Greedy draws from random laws at every masked place of the row."""
    places = row.undecided(CANVAS, row.base, len(row.tokens))
    noise = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(len(places), WORDS + 1, generator=noise, dtype=torch.float64)
    sampler = Sampler(Sampling(), [row_key(seed, number)])
    return read(logits, places, row, CANVAS, sampler, torch.tensor([MASK]))


@pytest.mark.parametrize("factor", [1e-9, 0.5, 1.0, 2.0, 5.0])
def test_factor_writes_the_longest_sure_run(factor: float) -> None:
    for seed in SEEDS:
        row = make_row()
        reading = make_reading(row, seed, sharpness=4.0)
        sure = sorted((float(c) for c in reading.confidence[:9]), reverse=True)
        held = [all(sure[r - 1] >= 1 - factor / (r + 1) for r in range(1, n + 1)) for n in range(1, 10)]
        count = max([n + 1 for n in range(9) if held[n]], default=1)
        writes = Factor(factor).choose(reading, row, row.memo).writes
        assert sorted(reading.confidence[writes], reverse=True) == sure[:count] and not writes[9:].any()
        assert factor > 1e-6 or writes.sum() == 1


@pytest.mark.parametrize("order", ["entropy", "confidence", "margin"])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.5, 100.0])
def test_entropy_bound(gamma: float, order: str) -> None:
    for seed in SEEDS:
        row = make_row()
        reading = make_reading(row, seed)
        score = {
            "entropy": [-h for h in reading.entropy],
            "confidence": list(reading.confidence),
            "margin": [a - b for a, b in reading.top_two],
        }[order]
        ranked = sorted(range(9), key=lambda place: (-score[place], place))
        best = 1
        for k in range(1, 10):
            entropies = [float(reading.entropy[place]) for place in ranked[:k]]
            if math.fsum(entropies) - max(entropies) <= gamma + 1e-12:
                best = k
        writes = EntropyBounded(gamma, order).choose(reading, row, row.memo).writes
        assert set(np.flatnonzero(writes)) == set(ranked[:best])
    if gamma == 0:
        assert best == 1
    if gamma == 100:
        assert best == 9


@pytest.mark.parametrize("weight", [0.0, 0.25, 3.0])
@pytest.mark.parametrize("alpha", [0.4, 10.0])
def test_position_and_frequency(weight: float, alpha: float) -> None:
    shares = np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.02, 0.0, 0.0, 0.0])
    for seed in SEEDS:
        for known in (shares, None):
            row = make_row(written=[(2, 4, 0.5)])
            reading = make_reading(row, seed)
            scores = {}
            for index, place in enumerate(reading.places):
                prob = float(reading.probs[index, reading.tokens[index]])
                content = prob if known is None else min(-prob * math.log(shares[reading.tokens[index]] + 1e-9), alpha)
                if place < row.end:
                    scores[index] = math.exp(-weight * (int(place) - PROMPT)) * content
            best = sorted(scores, key=lambda index: (-scores[index], index))[:2]
            choice = Position(weight, alpha, 2, known).choose(reading, row, row.memo)
            assert set(np.flatnonzero(choice.writes)) == set(best)
            if weight == 0 and known is None:
                assert (choice.writes == Ranked(per_step=2).choose(reading, row, row.memo).writes).all()


def test_far_places_are_still_told_apart() -> None:
    row = make_row(size=6000, end=6000)
    row = replace(row, tokens=np.where(np.arange(6003) < 5990, 1, row.tokens), base=5990)
    writes = Position(0.25, 10.0).choose(make_reading(row, 1), row, row.memo).writes
    assert np.flatnonzero(writes).tolist() == [0]  # exp(-0.25 * 5987) is 0, and all places would tie


def test_frequencies_come_from_counts(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(SHIPPED.parent / "stories-mask")
    text = "Once upon a time there was a dog. The dog was happy.\n" * 3
    (tmp_path / "text.txt").write_text(text)
    made = tmp_path / "counts.json"
    count(["--model", "stories-mask", "--out", str(made), "--licence", "CC0-1.0", str(tmp_path / "text.txt")])
    shares = frequencies(str(made), tokenizer, tokenizer.vocab_size + 2)
    ids = tokenizer.encode(text, is_special=False)
    assert shares is not None and len(shares) == tokenizer.vocab_size + 2
    assert [shares[i] for i in set(ids)] == [ids.count(i) / len(ids) for i in set(ids)]
    assert shares.sum() == pytest.approx(1) and json.loads(made.read_text())["licence"] == "CC0-1.0"
    shipped = frequencies("auto", tokenizer, tokenizer.vocab_size)
    dog, was = (tokenizer.encode(word, is_special=False)[0] for word in (" dog", " was"))
    assert shipped is not None and shipped[was] > shipped[dog] > 0
    assert frequencies("none", tokenizer, 9) is None and frequencies("auto", None, 9) is None


def test_backgrounds_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    other = Tokenizer.from_directory(SHIPPED.parent / "translate")
    assert fingerprint(other) != json.loads(SHIPPED.read_text())["tokenizer"]
    with pytest.raises(ConfigError, match="No background frequencies ship"):
        frequencies("auto", other, other.vocab_size)
    with pytest.raises(ConfigError, match="another vocabulary"):
        frequencies(str(SHIPPED), other, other.vocab_size)
    with pytest.raises(ConfigError, match="cannot be read"):
        frequencies(str(tmp_path / "none.json"), None, 9)
    with pytest.raises(ConfigError, match="the model has 9"):
        frequencies(str(SHIPPED), None, 9)
    for index, held in enumerate(
        ["[1]", "{", '{"tokenizer": "x", "counts": [0, 0]}', '{"tokenizer": "x", "counts": [-1]}']
    ):
        path = tmp_path / f"bad{index}.json"
        path.write_text(held)
        with pytest.raises(ConfigError, match="counts"):
            frequencies(str(path), None, 9)


@pytest.mark.parametrize(("size", "block", "steps"), [(12, 12, 5), (12, 4, 7), (12, 4, 3), (10, 4, 10), (12, 12, 1)])
def test_steps_are_spread_remainder_first(size: int, block: int, steps: int) -> None:
    row, schedule = make_row(size), FixedBlocks(block)
    row = replace(row, end=row.base)
    plan = plan_steps(row, CANVAS, schedule, steps)
    lengths = [min(block, size - start) for start in range(0, size, block)]
    wanted = [steps // len(lengths) + (index < steps % len(lengths)) for index in range(len(lengths))]
    wanted = lengths if steps == size else wanted  # as many steps as tokens: one token each, whatever the blocks
    assert list(plan.values()) == wanted and [end - PROMPT for end in plan] == list(np.cumsum(lengths))
    for end, length, share in zip(plan, lengths, wanted, strict=True):
        counts, masked = [], length
        for step in range(share):
            tokens = np.full(len(row.tokens), 1)
            tokens[end - masked : end] = MASK
            inside = replace(row, tokens=tokens, base=end - length, end=end, step=step)
            choice = Spread(Ranked(), steps).choose(make_reading(inside, step), inside, plan)
            assert choice.memo is plan
            counts.append(int(choice.writes.sum()))
            masked -= counts[-1]
        least, rest = divmod(length, min(share, length))
        assert counts[: min(share, length)] == [least + (step < rest) for step in range(min(share, length))]


def test_steps_that_do_not_fit_are_refused() -> None:
    row = replace(make_row(12), end=PROMPT)
    with pytest.raises(ConfigError, match="12 tokens are to be written"):
        plan_steps(row, CANVAS, FixedBlocks(12), 13)
    with pytest.raises(ConfigError, match="3 blocks"):
        plan_steps(row, CANVAS, FixedBlocks(4), 2)


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy", "random", "left"])
def test_an_end_token_waits_for_what_comes_before(order: str) -> None:
    waited = 0
    for seed in range(40):
        row = replace(make_row(), ends=(4, 5))
        reading = make_reading(row, seed)
        last = read(
            reading.logits.clone(),
            reading.places,
            row,
            Canvas(MASK, ends_last=True),
            reading.sampler,
            torch.tensor([MASK]),
        )
        allowed = [i for i in range(9) if last.tokens[i] not in (4, 5) or i == 0]
        assert np.flatnonzero(eligible(last, row)).tolist() == allowed
        writes = Ranked(order, per_step=9).choose(last, row, row.memo).writes
        assert np.flatnonzero(writes).tolist() == allowed
        waited += 9 - len(allowed)
    assert waited > 20  # the rule was put to the test


def test_places_are_drawn_by_their_scores() -> None:
    row = make_row(end=4, size=4)
    reading = make_reading(row)
    temp = 0.3
    law = np.exp(reading.confidence / temp)
    law /= law.sum()
    counts = np.zeros(4)
    for number in range(1500):
        drawn = replace(reading, sampler=Sampler(Sampling(), [row_key(5, number)]))
        counts += Ranked(order_temp=temp).choose(drawn, row, row.memo).writes
    assert counts.sum() == 1500 and np.abs(counts / 1500 - law).max() < 0.05
    cold = Ranked(per_step=2, order_temp=1e-6).choose(reading, row, row.memo).writes
    assert (cold == Ranked(per_step=2).choose(reading, row, row.memo).writes).all()


def ancestral_by_hand(reading: Reading, row: CanvasRow, rule: Ancestral, start: int) -> tuple[set[int], set[int], int]:
    """The time steps one by one, with canvases as sets; returns places written, masked again, and the time reached."""
    total = rule.steps
    inside = {int(p) for p in reading.places if p < row.end}
    known = {p: math.exp(row.log_probs[p]) for p in range(row.base, row.end) if row.tokens[p] != MASK}
    fresh = {int(p): float(c) for p, c in zip(reading.places, reading.confidence, strict=True)}
    masked, before = set(inside), set(inside)

    def noise(place: int, visit: int) -> float:
        return float(replace(reading, places=np.array([place])).noise(visit)[0])

    time = start
    while time < total:
        alpha_t, alpha_s = time / total, (time + 1) / total
        most = 1.0 if time == 0 else min(1.0, (1 - alpha_s) / alpha_t)
        written = {p: known.get(p, fresh.get(p, 0.0)) for p in range(row.base, row.end) if p not in masked}
        base = min(rule.eta, most) if rule.strategy == "cap" else rule.eta * most
        weight = sum(math.exp(-c) for c in written.values())
        sigma = {p: base * (math.exp(-c) / weight if rule.strategy == "conf" else 1) for p, c in written.items()}
        held = 0.0 if rule.strategy == "conf" else base
        chance = (alpha_s - (1 - held) * alpha_t) / (1 - alpha_t)
        now = {p for p in masked if noise(p, 2 * time) < chance}
        back = {p for p in written if time and noise(p, 2 * time + 1) < sigma[p]}
        masked = (masked - now) | back
        time += 1
        # The model is asked again when the canvas is another one and holds a mask.
        if masked and masked != before:
            break
    return before - masked, masked - before, time


@pytest.mark.parametrize("strategy", ["cap", "rescale", "conf"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_time_steps_are_those_of_the_posterior(strategy: str, eta: float) -> None:
    rule, back = Ancestral(8, eta, strategy), 0
    for seed in range(25):
        for start in (0, 2, 5, 7):
            written = [(1, 2, 0.9), (3, 4, 0.2), (4, 0, 0.5)] if start else []
            row = replace(make_row(end=6, written=written), memo=(PROMPT, start))
            reading = make_reading(row, seed)
            choice = rule.choose(reading, row, row.memo)
            writes, again, time = ancestral_by_hand(reading, row, rule, start)
            assert set(reading.places[choice.writes].tolist()) == writes
            assert set(choice.masked.tolist()) == again and choice.memo[0] == PROMPT
            assert choice.memo[1] == time or len(writes) == reading.within(row.end).sum()  # time no longer matters
            assert writes or again
            back += len(again)
    assert (back > 0) == (eta > 0)


def test_what_the_caller_gave_is_never_masked_again() -> None:
    row = CanvasRow.begin([1, 2, 3], [-1, 5, -1, 6, 7, -1], CANVAS, ())
    tokens = row.tokens.copy()
    tokens[3] = 4
    row = replace(row, tokens=tokens, end=9, memo=(PROMPT, 3))
    masked: set[int] = set()
    for seed in range(30):
        reading = make_reading(row, seed)
        masked |= set(Ancestral(6, 1.0, "rescale").choose(reading, row, row.memo).masked.tolist())
        masked |= set(Revise(1.0, per_step=6).choose(reading, row, row.memo).masked.tolist())
    assert masked == {3}


def test_a_full_block_is_revised_once() -> None:
    row = make_row(size=5, end=5, written=[(0, 1, 0.9), (1, 2, 0.1), (2, 3, 0.3)])
    reading = make_reading(row, 2, sharpness=9.0)
    assert reading.confidence.min() > 0.3
    choice = Revise(0.4, per_step=2).choose(reading, row, row.memo)
    assert choice.writes.all() and choice.masked.tolist() == [PROMPT + 1, PROMPT + 2] and choice.memo == PROMPT
    after = row
    assert not len(Revise(0.4, per_step=2).choose(reading, after, choice.memo).masked)
    half = Revise(0.4, per_step=1).choose(reading, row, row.memo)
    assert half.writes.sum() == 1 and not len(half.masked) and half.memo is None
    assert not len(Revise(0.19, per_step=2).choose(reading, row, row.memo).masked)
