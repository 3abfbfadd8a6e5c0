"""What a hidden Markov model says of the future, beside the sum over every text, in float64."""

import functools
import itertools

import numpy as np
import pytest
import torch

from outpace.errors import ConfigError
from outpace.laws.automaton import Automaton
from outpace.laws.future import Future
from outpace.laws.markov import Markov

VOCAB, STATES, END = 5, 2, 4


@functools.cache
def toy(seed: int = 0) -> Markov:
    rng = np.random.default_rng(seed)
    first, move, emit = rng.random(STATES), rng.random((STATES, STATES)), rng.random((VOCAB, STATES))
    return Markov(first / first.sum(), move / move.sum(1, keepdims=True), emit / emit.sum(0))


@functools.cache
def likelihood(model: Markov, text: tuple[int, ...]) -> float:
    """The chance that a text begins so, as a sum over all paths of hidden states."""
    total = 0.0
    for path in itertools.product(range(STATES), repeat=len(text)):
        chance = 1.0
        for at, (state, token) in enumerate(zip(path, text, strict=True)):
            chance *= model.first[state] if at == 0 else model.move[path[at - 1], state]
            chance *= model.emit[token, state]
        total += chance
    return total


def continuations(text: tuple[int, ...], limit: int, ends: tuple[int, ...], size: int) -> list[tuple[int, ...]]:
    """Every whole text that goes on from one, which has `size` tokens of prompt."""
    if len(text) == limit or (len(text) > size and text[-1] in ends):
        return [text]
    return [whole for token in range(VOCAB) for whole in continuations((*text, token), limit, ends, size)]


def holds(text: tuple[int, ...], words: list[list[list[int]]]) -> bool:
    def stands(spelling: list[int]) -> bool:
        return any(list(text[at : at + len(spelling)]) == spelling for at in range(len(text)))

    return all(any(map(stands, word)) for word in words)


WORDS = [
    pytest.param([], id="none"),
    pytest.param([[[1]]], id="one"),
    pytest.param([[[1, 2]], [[2, 1], [3]]], id="two that overlap"),
    pytest.param([[[1, 1, 2]], [[1, 2]]], id="one inside the other"),
]


@pytest.mark.parametrize("ends", [(), (END,)], ids=["to the limit", "with an end"])
@pytest.mark.parametrize("is_weighted", [False, True], ids=["words", "attribute"])
@pytest.mark.parametrize("words", WORDS)
def test_chances_are_the_sums_over_all_futures(
    words: list[list[list[int]]], is_weighted: bool, ends: tuple[int, ...]
) -> None:
    model, prompt, limit = toy(), (0, 3), 6
    factors = np.log(np.array([0.9, 0.3, 0.5, 1.0, 0.7])) if is_weighted else None
    future = Future(model, Automaton.of_words(words), factors, reach=float("inf"))

    def weight(text: tuple[int, ...], start: int) -> float:
        """Of a whole text: whether it is wanted, times the factors from `start` on."""
        written = text[len(prompt) :]
        product = 1.0 if factors is None else float(np.exp(sum(factors[token] for token in text[start:])))
        return product * holds(written[:-1] if written[-1] in ends else written, words)

    for written in ((), (1,), (1, 2), (2, 1), (3, 1, 0)):
        state = future.start(prompt, ends, limit)
        for token in written:
            state = state.after(token)
        text = prompt + written
        futures = [(whole, likelihood(model, whole)) for whole in continuations(text, limit, ends, len(prompt))]
        total = sum(chance for _, chance in futures)
        expected = sum(chance * weight(whole, len(text)) for whole, chance in futures) / total
        assert state.chance == pytest.approx(expected, rel=1e-12, abs=1e-300)
        if state.is_free or expected == 0:  # beyond rescue: no text leads here
            continue
        logits = torch.zeros(VOCAB, dtype=torch.float64)
        state.apply(logits)
        of_token = np.zeros(VOCAB)
        for token in range(VOCAB):
            own = [(whole, chance) for whole, chance in futures if whole[len(text)] == token]
            sums = sum(chance for _, chance in own)
            of_token[token] = sum(chance * weight(whole, len(text)) for whole, chance in own) / sums
        wanted = of_token / of_token.sum()
        np.testing.assert_allclose(logits.softmax(-1).numpy(), wanted, rtol=1e-12, atol=1e-300)


def test_the_automaton_finds_what_a_search_finds() -> None:
    rng = np.random.default_rng(1)
    words = [[[0, 1], [2]], [[1, 0, 1]], [[3, 3]]]
    automaton = Automaton.of_words(words)
    seen = set()
    for _ in range(400):
        text = tuple(rng.integers(0, 4, 12).tolist())
        state = 0
        for at, token in enumerate(text):
            state = automaton.after(state, token)
            assert automaton.is_accepting[state] == holds(text[: at + 1], words)
        seen.add(automaton.is_accepting[state])
    assert seen == {False, True}


def test_tokens_out_of_reach_share_the_chance_of_any_token() -> None:
    future = Future(toy(), Automaton.of_words([[[1]]]), reach=1.0)
    every = Future(toy(), Automaton.of_words([[[1]]]), reach=float("inf"))
    state, near = future.start((0,), (END,), 6), every.start((0,), (END,), 6)
    logits = torch.tensor([0.0, -9.0, -9.0, -0.5, -9.0], dtype=torch.float64)
    ours, exact = logits.clone(), logits.clone()
    state.apply(ours)
    near.apply(exact)
    shift = ours[0] - exact[0]  # laws are told up to a factor
    torch.testing.assert_close(ours[[0, 1, 3]], exact[[0, 1, 3]] + shift, rtol=1e-12, atol=0)
    assert float(ours[2] - exact[2] - shift) != 0  # token 2 has the chance of any
    assert ours[END] == float("-inf")  # the text may not end yet


def test_what_does_not_fit_is_refused() -> None:
    future = Future(toy(), Automaton.of_words([[[1, 2, 3]]]), what="the keywords dog")
    assert future.start((0,), (END,), 4).chance > 0
    with pytest.raises(ConfigError, match="2 tokens are too few for the keywords dog"):
        future.start((0,), (END,), 3)
    with pytest.raises(ConfigError, match="how long the text may be"):
        future.start((0,), (END,), 0)


def test_the_last_chance_is_taken() -> None:
    """Where only the words themselves still fit, nothing else can be drawn."""
    state = Future(toy(), Automaton.of_words([[[1, 2]]]), reach=0.5).start((0,), (END,), 3)
    logits = torch.tensor([5.0, -5.0, 0.0, 0.0, 9.0])
    state.apply(logits)
    assert torch.isfinite(logits).tolist() == [False, True, False, False, False]
