"""The sampler against transformers' processors, against ties, and its margins against brute force."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.kernels import load_library
from outpace.sampling import Sampler, Sampling, noise, row_key, truncation

VOCAB = 60
TEXTS = [[3, 5, 5, 9, 1, 2], [7, 8, 7, 8, 7, 1], [4, 4, 4, 2, 3, 1]]
PROMPT = 3


def hf(name: str, *arguments: Any, **named: Any) -> Callable[[Tensor, Tensor], Tensor]:
    process = pytest.importorskip("transformers.generation.logits_process")
    return lambda ids, scores: getattr(process, name)(*arguments, **named)(ids, scores)


def random_logits(rows: int = 3, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


WORDS = [[2, 1, 6], [1, 8], [30]]
CASES: dict[str, tuple[dict[str, Any], list[tuple[Any, ...]]]] = {
    "temperature": ({}, []),
    "top-k": ({"top_k": 7}, [("TopKLogitsWarper", 7)]),
    "top-p": ({"top_p": 0.8}, [("TopPLogitsWarper", 0.8)]),
    "min-p": ({"min_p": 0.1}, [("MinPLogitsWarper", 0.1)]),
    "typical-p": ({"typical_p": 0.7}, [("TypicalLogitsWarper", 0.7)]),
    "top-k, top-p": ({"top_k": 9, "top_p": 0.6}, [("TopKLogitsWarper", 9), ("TopPLogitsWarper", 0.6)]),
    "repetition": ({"repetition_penalty": 1.7}, [("RepetitionPenaltyLogitsProcessor", 1.7)]),
    "bad words": (
        {"bad_words": tuple(map(tuple, WORDS))},
        [("NoBadWordsLogitsProcessor", [[2, 1, 6], [1, 8], [30]])],
    ),
    "minimum length": ({"min_tokens": 4}, [("MinNewTokensLengthLogitsProcessor", PROMPT, 4, [11])]),
    "minimum reached": ({"min_tokens": 3}, [("MinNewTokensLengthLogitsProcessor", PROMPT, 3, [11])]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_laws_equal_those_of_transformers(name: str, temperature: float) -> None:
    options, steps = CASES[name]
    sampler = Sampler(Sampling(temperature=temperature, **options), [1, 2, 3], [[11]] * 3)
    for seed in range(4):
        logits = random_logits(seed=seed)
        history = sampler.history(TEXTS, [PROMPT] * 3, VOCAB)
        ours = sampler.law(sampler.process(logits.clone(), history)).probs()
        ids, scores = torch.tensor(TEXTS), logits.clone()
        is_warper = [step[0].endswith("Warper") for step in steps]
        ordered = [step for step, last in zip(steps, is_warper, strict=True) if not last]
        ordered += [("TemperatureLogitsWarper", temperature)]
        ordered += [step for step, last in zip(steps, is_warper, strict=True) if last]
        for process, *arguments in ordered:
            scores = hf(process, *arguments)(ids, scores)
        theirs = scores.softmax(-1)
        assert torch.equal(ours > 0, theirs > 0)
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_presence_and_frequency_count_the_output_only() -> None:
    sampler = Sampler(Sampling(presence_penalty=0.5, frequency_penalty=0.25), [1, 2, 3])
    logits = random_logits()
    out = sampler.process(logits.clone(), sampler.history(TEXTS, [PROMPT] * 3, VOCAB)) - logits
    for row, text in enumerate(TEXTS):
        for token in range(VOCAB):
            count = text[PROMPT:].count(token)
            assert abs(float(out[row, token]) + 0.5 * (count > 0) + 0.25 * count) < 1e-12


def test_bias_is_added_to_its_token() -> None:
    out = Sampler(Sampling(logit_bias={4: 2.0, 9: -1.0}), [1]).process(torch.zeros(1, 2, VOCAB), None)
    assert out.sum() == 2 and out[0, 1, 4] == 2 and out[0, 0, 9] == -1


@pytest.fixture(params=["numpy", "compiled"])
def selector(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks for the candidates of top-k."""
    if request.param == "compiled" and load_library() is None:
        pytest.skip("no compiled kernels here")
    monkeypatch.setattr(truncation, "_selector", truncation._selector if request.param == "compiled" else None)


@pytest.mark.usefixtures("selector")
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 50},
        {"top_k": 5, "top_p": 0.9},
        {"top_p": 0.5},
        {"top_p": 0.9, "min_p": 0.2},
        {"top_k": 40, "typical_p": 0.6},
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_short_list_and_full_sort_agree_on_tied_logits(
    options: dict[str, Any], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Sampling(temperature=0.8, **options)
    sampler = Sampler(settings, [row_key(1, i) for i in range(40)])
    # bfloat16 logits of 1,000 tokens hold many ties, as real ones do.
    logits = (random_logits(40, vocab=1000) * scale).bfloat16()
    place = torch.arange(40) + 7
    short, picks = sampler.law(logits).probs(), sampler.pick(logits, place)
    monkeypatch.setattr(truncation, "_short_list", lambda *arguments: None)
    full = sampler.law(logits).probs()
    assert torch.equal(short > 0, full > 0)
    torch.testing.assert_close(short, full, atol=1e-12, rtol=0)
    assert torch.equal(picks, sampler.pick(logits, place))


def test_the_short_list_is_used() -> None:
    logits = random_logits(2, vocab=1000) * 4
    total = logits.logsumexp(-1, keepdim=True)
    assert truncation._short_list(logits, Sampling(temperature=1.0, top_k=5), None) is not None
    assert truncation._short_list(logits, Sampling(temperature=1.0, top_p=0.5), total) is not None
    assert truncation._short_list(torch.zeros(2, 1000), Sampling(temperature=1.0, top_k=5), None) is not None
    assert truncation._short_list(logits, Sampling(temperature=1.0, min_p=0.5), None) is not None
    assert truncation._short_list(logits, Sampling(temperature=1.0, typical_p=0.5), None) is None
    logits[1, 999] = float("nan")
    assert truncation._short_list(logits, Sampling(temperature=1.0, top_k=5), None) is None


def test_compiled_code_finds_the_candidates_of_top_k() -> None:
    if load_library() is None:
        pytest.skip("no compiled kernels here")
    assert truncation._selector is not None
    logits = random_logits(3, vocab=1003)
    logits[1, 7:] = float("-inf")  # fewer than are asked for
    for dtype in (torch.float32, torch.bfloat16):
        values, ids = truncation._selector(logits.to(dtype), 50)  # type: ignore[misc]
        largest = logits.to(dtype).float().topk(50).values[:, -1:].tolist()
        for row, (least,) in enumerate(largest):
            wanted = {i for i, value in enumerate(logits[row].to(dtype).tolist()) if value >= max(least, -1e30)}
            found = {i for i, value in zip(ids[row].tolist(), values[row].tolist(), strict=True) if value > -1e30}
            assert wanted <= found
            assert all(values[row, at] == logits[row, ids[row, at]].to(dtype) for at in range(len(found)))
    assert truncation._selector(torch.zeros(1, 1000), 50) is None  # all are equal: too many
    logits[0, 5] = float("nan")
    assert truncation._selector(logits, 50) is None


def random_settings(source: random.Random, vocab: int) -> Sampling:
    """Settings of any kind that needs no history, each on in some draws."""
    choices: dict[str, list[Any]] = {
        "top_k": [1, 5, 50, 300],
        "top_p": [1e-6, 0.1, 0.9, 0.9999, 1 - 1e-12],
        "min_p": [1e-5, 0.05, 1.0],
        "typical_p": [0.2, 0.9],
        "logit_bias": [{source.randrange(vocab): 4.0}, {source.randrange(vocab): -100.0}],
        "suppress_tokens": [[source.randrange(vocab)]],
    }
    given = {name: source.choice(values) for name, values in choices.items() if source.random() < 0.4}
    return Sampling(temperature=source.choice([0.0, 0.3, 1.0, 1.7]), **given)


@pytest.mark.usefixtures("selector")
@pytest.mark.parametrize("kind", ["any", "tied", "grammar", "one residue", "broken"])
def test_what_the_cpu_does_faster_changes_no_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists instead of sorts, numpy's argmax and mixing: the picks and laws are those of the way that GPUs go."""
    source, numbers = random.Random(kind), torch.Generator().manual_seed(3)
    for case in range(60):
        rows, vocab = source.choice([1, 3, 17]), source.choice([7, 200, 513, 1000, 4096])
        dtype = source.choice([torch.float32, torch.float64, torch.bfloat16, torch.float16])
        logits = torch.randn(rows, vocab, generator=numbers) * source.choice([0.3, 3.0, 8.0])
        if kind == "tied":
            logits = logits.round()
        elif kind == "grammar":
            logits.masked_fill_(torch.rand(rows, vocab, generator=numbers) < 0.98, float("-inf"))
            logits[:, source.randrange(vocab)] = 1.0
        elif kind == "one residue":
            logits[:, ::64] += 20
        elif kind == "broken":
            logits[source.randrange(rows), source.randrange(vocab)] = source.choice([float("nan"), float("inf")])
        settings = random_settings(source, vocab)
        sampler = Sampler(settings, [row_key(case, row) for row in range(rows)])
        logits, place = sampler.process(logits.to(dtype), None), torch.arange(rows) + source.randrange(1 << 40)
        with monkeypatch.context() as slow:
            slow.setattr(truncation, "on_host", lambda *arguments: None)
            slow.setattr(noise, "is_on_host", lambda *arguments: False)
            slow.setattr(truncation, "is_on_host", lambda *arguments: False)
            picks, law = sampler.pick(logits, place), sampler.law(logits).probs()
            margin = sampler.margin(logits[0], int(place[0]), 0)
        found = sampler.law(logits).probs()
        assert torch.equal(sampler.pick(logits, place), picks), settings
        assert repr(sampler.margin(logits[0], int(place[0]), 0)) == repr(margin), settings
        assert torch.equal(found > 0, law > 0), settings
        torch.testing.assert_close(found, law, atol=1e-15, rtol=0)


def test_ties_at_a_cut_keep_the_lowest_ids() -> None:
    logits = torch.zeros(1, 1000)
    kept = Sampler(Sampling(temperature=1.0, top_k=4), [1]).law(logits).probs()[0].nonzero().flatten().tolist()
    assert kept == [0, 1, 2, 3]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_give_the_loops_sign(temperature: float) -> None:
    logits = torch.zeros(4, VOCAB)
    logits[0, 3], logits[1, 3], logits[2] = float("nan"), float("inf"), float("-inf")
    sampler = Sampler(Sampling(temperature=temperature, top_k=3), [1, 2, 3, 4])
    picks = sampler.pick(logits, torch.arange(4))
    assert picks[:3].tolist() == [-1, -1, -1] and picks[3] >= 0


CUTS = [{}, {"top_k": 4}, {"top_p": 0.6}, {"min_p": 0.25}, {"typical_p": 0.6}, {"top_k": 6, "top_p": 0.8}]


@pytest.mark.parametrize("options", CUTS, ids=str)
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_nothing_flips_within_its_margin(options: dict[str, Any], temperature: float) -> None:
    """No change of the logits that moves any two of them apart by less than the margin changes the pick."""
    source = torch.Generator().manual_seed(1)
    flips = 0
    for case in range(40):
        logits = torch.randn(1, 9, generator=source, dtype=torch.float64) * 2
        if case % 2:  # near ties, as low precision makes them
            logits = (logits * 2).round() / 2 + torch.randn(1, 9, generator=source, dtype=torch.float64) * 1e-3
        sampler, place = Sampler(Sampling(temperature=temperature, **options), [row_key(case)]), torch.tensor([3])
        pick, margin = int(sampler.pick(logits, place)), sampler.margin(logits[0], 3, 0)
        assert margin >= 0
        moves = torch.rand(30, 9, generator=source, dtype=torch.float64) * 2 - 1
        # Distances in mass are of first order: a larger move shifts the mass and the ranking at once.
        is_mass = "typical_p" in options or "top_p" in options
        reach = 0.49 * margin * temperature * (0.1 if is_mass else 1)
        for move in moves.sign() * reach:
            assert int(sampler.pick(logits + move, place)) == pick
        flips += any(
            int(sampler.pick(logits + (200 if is_mass else 20) * reach * move, place)) != pick for move in moves
        )
    assert flips > 10  # margins are no mere lower bounds


def test_greedy_margin_is_the_gap_of_the_best_two() -> None:
    sampler, logits = Sampler(Sampling(), [1]), random_logits(1)[0]
    best = logits.topk(2)
    margin = sampler.margin(logits, 0, 0)
    assert margin == pytest.approx(float(best.values[0] - best.values[1]))
    first, second = best.indices.tolist()
    for share, winner in ((0.99, first), (1.01, second)):
        moved = logits.clone()
        moved[second] += share * margin
        assert int(sampler.pick(moved.unsqueeze(0), torch.tensor([0]))) == winner


def test_margin_at_a_tied_top_p_cut_is_small() -> None:
    """Two near-equal tokens on either side of the cut can change places, however far the mass is from the cut."""
    logits = torch.tensor([0.4, 0.2 + 1e-9, 0.2, 0.2], dtype=torch.float64).log()
    settings = Sampling(temperature=1.0, top_p=0.5)
    for seed in range(50):
        sampler = Sampler(settings, [row_key(seed)])
        if int(sampler.pick(logits.unsqueeze(0), torch.tensor([1]))) == 1:
            assert sampler.margin(logits, 1, 0) < 1e-6
            return
    raise AssertionError("Token 1 was never drawn.")


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 2.0},
        {"typical_p": 0.0},
        {"repetition_penalty": 0.0},
        {"bad_words": ((),)},
        {"logit_bias": {1: float("inf")}},
        {"min_tokens": -2},
    ],
    ids=str,
)
def test_settings_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Sampling(**options)


def test_keys_differ_by_seed_sample_and_fork() -> None:
    from outpace.sampling import fork_key

    keys = {row_key(seed, sample) for seed in range(30) for sample in range(30)}
    assert len(keys | {fork_key(key, n) for key in keys for n in range(3)}) == 900 * 4
    assert row_key(7) == row_key(7, 0)
