"""Searches that look at tokens, entropies and rollouts, against slow searches from the model's laws in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from outpace import LanguageModel
from outpace.draft.datastore import write_datastore
from outpace.errors import ConfigError
from outpace.methods.registry import load_method
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.sampling import Sampling, Stream, fork_key, gumbel, node_key, row_key
from outpace.search.cautious import Cautious
from outpace.search.checks import fresh
from outpace.testing.toy import ToyModel

PROMPTS = [[1, 2, 3, 4], [5], [7, 8] * 9]


def toy(vocab: int = 13, sharpness: float = 1.2, end: int = 3) -> LanguageModel:
    return LanguageModel(ToyModel(vocab_size=vocab, sharpness=sharpness), None, end_tokens=[end])


def law(lm: LanguageModel, text: Sequence[int]) -> list[float]:
    """The model's log-probabilities of the next token, from a forward of the whole text."""
    cache = lm.target.new_cache(1, len(text) + 1)
    places = torch.arange(len(text)).unsqueeze(0)
    logits = lm.target.score(torch.tensor([list(text)]), places, None, cache).logits[0, -1]
    return logits.double().log_softmax(-1).tolist()


def price(lm: LanguageModel, text: Sequence[int], start: int) -> list[float]:
    return [law(lm, text[:at])[text[at]] for at in range(start, len(text))]


def is_over(lm: LanguageModel, text: Sequence[int], prompt: Sequence[int], room: int) -> bool:
    return len(text) - len(prompt) >= room or (len(text) > len(prompt) and text[-1] in lm.end_tokens)


def rolled(lm: LanguageModel, text: list[int], prompt: list[int], tokens: int, room: int) -> list[int]:
    """The text with the likeliest tokens behind it."""
    for _ in range(tokens):
        if not is_over(lm, text, prompt, room):
            values = law(lm, text)
            text = [*text, values.index(max(values))]
    return text


def looked_ahead(lm: LanguageModel, prompt: list[int], beams: int, ahead: int, reward: Any, room: int) -> list[int]:
    """Beam search whose candidates are rewarded where they lead."""
    alive: list[tuple[float, list[int]]] = [(0.0, list(prompt))]
    ended: list[tuple[float, list[int]]] = []
    while alive:
        grown = [(total + p, [*text, at]) for total, text in alive for at, p in enumerate(law(lm, text))]
        grown = sorted(grown, key=lambda one: -one[0])[: 2 * beams]
        worth = [
            (
                total / (len(text) - len(prompt)) + reward(rolled(lm, text, prompt, ahead, room)[len(prompt) :]),
                total,
                text,
            )
            for total, text in grown
        ]
        worth.sort(key=lambda one: -one[0])
        ended += [(value, text) for value, _, text in worth[:beams] if is_over(lm, text, prompt, room)]
        ended = sorted(ended, key=lambda one: -one[0])[:beams]
        going = [one for one in worth if not is_over(lm, one[2], prompt, room)][:beams]
        if len(ended) == beams and going and going[0][0] <= ended[-1][0]:
            break
        alive = [(total, text) for _, total, text in going]
    return ended[0][1][len(prompt) :]


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_beam_that_looks_ahead_is_the_slow_one(ahead: int) -> None:
    lm = toy()

    def reward(text: Sequence[int]) -> float:
        return 0.7 * len({*text} & {2, 6, 11})

    for prompt in PROMPTS:
        options = {"beams": 2, "lookahead": ahead, "weight": 0.7, "reward": lambda ts: [reward(t) / 0.7 for t in ts]}
        for method in ("autoregressive", "suffix"):
            found = lm.generate(prompt, search="lookahead-beam", options=options, method=method, max_tokens=7)
            assert found.tokens == looked_ahead(lm, prompt, 2, ahead, reward, 7)


def test_a_reward_raises_what_it_counts_above_plain_beams() -> None:
    lm, wanted = toy(), {2, 6, 11}
    options = {"beams": 3, "width": 16, "lookahead": 4, "reward": lambda ts: [len({*t} & wanted) / 3 for t in ts]}
    beams = [lm.generate(p, method="beam-search", options={"beams": 3}, max_tokens=8) for p in PROMPTS]
    found = [lm.generate(p, search="lookahead-beam", options=options, max_tokens=8) for p in PROMPTS]
    assert sum(len({*one.tokens} & wanted) for one in found) > sum(len({*one.tokens} & wanted) for one in beams)


def test_conditional_beams_that_hold_all_texts_find_the_likeliest_that_may_be() -> None:
    lm = LanguageModel(ToyModel(vocab_size=3, sharpness=1.0), None)
    texts = [list(text) for text in itertools.product(range(3), repeat=4)]

    def may(text: Sequence[int]) -> bool:
        return sum(text) % 5 == 1 and text[0] != 0

    best = max((text for text in texts if may(text)), key=lambda text: math.fsum(price(lm, [1, *text], 1)))
    options = {"beams": 81, "predicate": lambda ts: [may(t) for t in ts], "early": lambda ts: [t[0] != 0 for t in ts]}
    found = lm.generate([1], search="conditional-beam", options=options, max_tokens=4)
    assert found.tokens == best and not found.notes
    assert found.score == pytest.approx(math.fsum(price(lm, [1, *best], 1)) / 4)


@pytest.mark.parametrize("early", [False, True])
def test_a_condition_that_nothing_meets_gives_the_best_of_the_others_and_says_so(early: bool) -> None:
    lm, never = toy(end=99), lambda ts: [0.0] * len(ts)  # no text ends before its length
    found = lm.generate(
        PROMPTS[0], search="conditional-beam", options={"early" if early else "predicate": never}, max_tokens=6
    )
    assert any("found no text that may be returned" in note for note in found.notes) and found.tokens
    if not early:
        assert found.tokens == lm.generate(PROMPTS[0], method="beam-search", max_tokens=6).tokens


def test_what_is_fresh_repeats_no_three_words() -> None:
    assert fresh(["", "a b c d a b", "a b c x a b C", "one"]) == [0.0, 1.0, 0.0, 1.0]


def alone(lm: LanguageModel, text: list[int], prompt: list[int], key: int, tokens: int, room: int) -> list[int]:
    """Write on a text in a run of its own, at temperature 1."""
    if is_over(lm, text, prompt, room):
        return text
    row = Row(list(text), len(prompt), key, min(room, len(text) - len(prompt) + tokens), lm.end_tokens)
    run = Run(lm.target, load_method("autoregressive")(), Sampling(temperature=1.0), capacity=80)
    run.join([row])
    while run.rows:
        run.step()
    return row.tokens


def forked(key: int, text: Sequence[int], number: int) -> int:
    return fork_key(key, (len(text) << 32) + number) if number else key


def cautious_alone(lm: LanguageModel, prompt: list[int], asked: Cautious, room: int) -> list[int]:
    text, key = list(prompt), row_key(0, 0)
    while not is_over(lm, text, prompt, room):
        first = alone(lm, text, prompt, key, asked.step, room)
        entropies = [-sum(math.exp(p) * p for p in law(lm, first[:at])) for at in range(len(text), len(first))]
        unsure = [at for at, one in enumerate(entropies) if one > asked.threshold]
        trials, start = [(first, key)], len(text)
        if unsure:
            start = len(text) + unsure[0]
            for number in range(1, asked.count(entropies[unsure[0]])):
                own = forked(key, first[:start], number)
                trials.append((alone(lm, first[:start], prompt, own, asked.step, room), own))
        means = [math.fsum(price(lm, one, start)) / (len(one) - start) for one, _ in trials]
        text, key = trials[means.index(max(means))]
    return text[len(prompt) :]


@pytest.mark.parametrize("method", ["autoregressive", "prompt-lookup"])
def test_a_cautious_text_is_that_of_trials_written_alone(method: str) -> None:
    lm, asked = toy(), Cautious(threshold=1.9, high=2.4, trials=4, marks="", step=5)
    for prompt in PROMPTS:
        found = lm.generate(prompt, search=asked, method=method, temperature=1.0, max_tokens=16)
        assert found.tokens == cautious_alone(lm, prompt, asked, 16)


def test_trials_rise_with_entropy() -> None:
    counts = [Cautious(threshold=1.0, high=3.0, trials=5).count(entropy) for entropy in (0.5, 1.0, 1.1, 2.0, 3.0, 9.0)]
    assert counts == [1, 1, 2, 3, 5, 5]


def foreseen_alone(lm: LanguageModel, prompt: list[int], ways: int, step: int, ahead: int, room: int) -> list[int]:
    text, key = list(prompt), row_key(0, 0)
    while not is_over(lm, text, prompt, room):
        keys = [forked(key, text, number) for number in range(ways)]
        steps = [alone(lm, text, prompt, own, step, room) for own in keys]
        weights = []
        for one, own in zip(steps, keys, strict=True):
            seen = alone(lm, one, prompt, own, ahead, room)
            start = len(one) if len(seen) > len(one) else len(prompt)
            weights.append(math.fsum(price(lm, seen, start)) / (len(seen) - start) / 0.1)
        noise = gumbel(node_key([key], Stream.ACCEPT, torch.tensor([[len(text)]])), torch.arange(ways))[0, 0]
        at = int((torch.tensor(weights, dtype=torch.float64) + noise).argmax())
        text, key = steps[at], keys[at]
    return text[len(prompt) :]


@pytest.mark.parametrize("method", ["autoregressive", "prompt-lookup"])
def test_steps_are_drawn_by_rollouts_written_alone(method: str) -> None:
    lm, options = toy(), {"ways": 3, "step": 2, "foresight": 3}
    for prompt in PROMPTS:
        found = lm.generate(prompt, search="foresight", options=options, method=method, temperature=1.0, max_tokens=9)
        assert found.tokens == foreseen_alone(lm, prompt, 3, 2, 3, 9)


def test_rollouts_and_trials_raise_the_likelihood() -> None:
    lm = toy(end=99)

    def mean(**given: Any) -> float:
        found = [lm.generate([1, 2], temperature=1.0, max_tokens=16, seed=seed, **given) for seed in range(6)]
        return sum(math.fsum(price(lm, [1, 2, *one.tokens], 2)) for one in found)

    plain = mean()
    assert mean(search="foresight", options={"foresight": 4, "step": 2}) > plain
    assert mean(search="cautious", options={"threshold": 1.5, "high": 2.0, "step": 4}) > plain


def test_resampled_texts_approach_the_product_of_both_laws() -> None:
    lm = LanguageModel(ToyModel(vocab_size=3, sharpness=1.0), None)
    texts = list(itertools.product(range(3), repeat=2))
    plain = [math.exp(math.fsum(price(lm, [1, *text], 1))) for text in texts]

    def energy(ts: Sequence[Sequence[int]]) -> list[float]:
        return [2.0 * (t[0] == t[1]) - 1.0 * (t[0] == 2) for t in ts]

    tilted = [p * math.exp(e) for p, e in zip(plain, energy(texts), strict=True)]
    product, num = [one / sum(tilted) for one in tilted], 150
    far = []
    for n in (1, 16):
        counts = dict.fromkeys(texts, 0)
        for seed in range(num):
            options = {"n": n, "reward": energy}
            found = lm.generate(
                [1], search="residual-energy", options=options, temperature=1.0, max_tokens=2, seed=seed
            )
            counts[tuple(found.tokens)] += 1
        far.append(sum(abs(counts[text] / num - one) for text, one in zip(texts, product, strict=True)) / 2)
    # Of one candidate the law is the model's, half as far again as noise; of 16 no more than noise (0.07) is left.
    assert far[0] > 0.2 and far[1] < 0.12, far


def superposed_slowly(lm: LanguageModel, prompt: list[int], k: int, room: int) -> list[list[int]]:
    """Superposed decoding from forwards of the whole mixture, without a cache."""
    embed = lm.target.embed(torch.arange(lm.target.capabilities.vocab_size).unsqueeze(0))[0]
    mixture, drafts = [embed[token] for token in prompt], [(0.0, list[int]())]
    for number in range(room):
        cache, size = lm.target.new_cache(1, len(mixture) + 1), len(mixture)
        tokens, places = torch.zeros(1, size, dtype=torch.int64), torch.arange(size).unsqueeze(0)
        logits = lm.target.score(tokens, places, None, cache, inputs=torch.stack(mixture).unsqueeze(0)).logits[0, -1]
        law = logits.log_softmax(-1).tolist()
        grown = [(score + p, [*text, at]) for score, text in drafts for at, p in enumerate(law)]
        drafts = sorted(grown, key=lambda one: -one[0])[:k]
        weights = [math.exp(score - drafts[0][0]) for score, _ in drafts]
        last = [weight / sum(weights) * embed[text[number]] for weight, (_, text) in zip(weights, drafts, strict=True)]
        mixture.append(torch.stack(last).sum(0))
    return [text for _, text in drafts]


def test_superposed_drafts_are_those_of_whole_mixtures() -> None:
    lm = toy(end=99)
    for k in (1, 3, 4):
        found = lm.generate(PROMPTS[0], search="superposed", options={"k": k}, max_tokens=8)
        found = found if isinstance(found, list) else [found]
        assert [one.tokens for one in found] == superposed_slowly(lm, PROMPTS[0], k, 8)
        assert found[0].usage.target_nfe == 1 + 8  # the prompt, and one forward per token of all drafts
        assert len({tuple(one.tokens) for one in found}) == k
    assert lm.generate(PROMPTS[0], search="superposed", options={"k": 1}, max_tokens=8).tokens == (
        lm.generate(PROMPTS[0], max_tokens=8).tokens
    )


def test_n_grams_keep_drafts_to_what_was_seen(tmp_path: Any) -> None:
    lm, seen = toy(end=99), [1, 2, 3, 4, 9, 8, 7, 6, 5]
    write_datastore(tmp_path / "seen.idx", [seen], 13)
    options = {"k": 3, "index": str(tmp_path / "seen.idx"), "alpha": 1.0}
    found = lm.generate([1, 2, 3, 4], search="superposed", options=options, max_tokens=5)
    assert found[0].tokens == [9, 8, 7, 6, 5]  # known contexts alone count


def test_what_takes_the_likeliest_refuses_a_temperature() -> None:
    for name in ("superposed", "lookahead-beam", "conditional-beam"):
        with pytest.raises(ConfigError, match=r"takes the likeliest texts, but temperature is 0\.5"):
            toy().generate([1], search=name, temperature=0.5, max_tokens=2)
