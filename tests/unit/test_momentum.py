"""Momentum decoding: the published rule written out by n-grams, greedy decoding at resistance 0, few repeats."""

from __future__ import annotations

import pytest
import torch

import outpace
from outpace.bench.steer import isotropy, main, measure
from outpace.errors import ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.search.momentum import Momentum, circuit
from outpace.sampling import Sampling
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, SETTINGS, make_rows, make_run

TARGET = ToyModel(sharpness=1.5)


def written(method: Method, settings: Sampling = SETTINGS["greedy"]) -> list[list[int]]:
    run, rows = make_run(method, settings, target=TARGET, capacity=80), make_rows(max_tokens=30)
    run.join(rows)
    while run.rows:
        run.step()
    return [row.written for row in rows]


def slow_circuit(text: list[int], token: int, most: int) -> int:
    """Return the longest n-gram that ends with the token and that the text holds, by listing all that it holds."""
    held = {tuple(text[i:j]) for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
    whole = [*text, token]
    return max((n for n in range(1, min(most, len(whole)) + 1) if tuple(whole[-n:]) in held), default=0)


def slow(prompt: tuple[int, ...], count: int, resistance: float, top_k: int) -> list[int]:
    table, text = {0: 0, 1: 1, 2: 3, 3: 4, 4: 5, 5: 6}, list(prompt)
    for _ in range(count):
        places = torch.arange(len(text)).unsqueeze(0)
        logits = TARGET.score(torch.tensor([text]), places, None, TARGET.new_cache(1, 90)).logits[0, -1]
        probs = logits.softmax(-1)
        merit = {
            t: float(probs[t]) - resistance * table[slow_circuit(text, t, 5)]
            for t in probs.topk(top_k).indices.tolist()
        }
        text.append(max(merit, key=lambda token: merit[token]))
    return text[len(prompt) :]


@pytest.mark.parametrize(("resistance", "top_k"), [(0.2, 5), (0.05, 3), (0.5, 13)])
def test_texts_are_those_of_the_published_rule(resistance: float, top_k: int) -> None:
    found = written(Momentum(resistance, top_k))
    assert found == [slow(prompt, 30, resistance, top_k) for prompt in PROMPTS]
    assert found != written(Autoregressive())


@pytest.mark.parametrize("name", ["greedy", "repetition penalty", "bad words", "n-grams"])
def test_without_resistance_it_is_greedy_decoding(name: str) -> None:
    assert written(Momentum(resistance=0.0), SETTINGS[name]) == written(Autoregressive(), SETTINGS[name])
    assert written(Momentum(table=()), SETTINGS[name]) == written(Autoregressive(), SETTINGS[name])


def test_circuits_are_the_longest_repeats() -> None:
    generator = torch.Generator().manual_seed(0)
    for length in range(20):
        text = torch.randint(3, (length,), generator=generator).tolist()
        for token in range(4):
            for most in (0, 1, 3, 5):
                assert circuit(text, token, most) == slow_circuit(text, token, most)


def test_what_is_forbidden_is_not_written_to_escape_a_repeat() -> None:
    only = Sampling(suppress_tokens=tuple(range(1, 13)))
    assert written(Momentum(resistance=5.0), only) == [[0] * 30] * len(PROMPTS)


def test_stories_repeat_less_at_one_forward_per_token() -> None:
    lm, prompts = outpace.load("stories"), ["One day, Tom"]
    greedy, ours = (measure(lm, prompts, name, 120) for name in ("autoregressive", "momentum"))
    assert all(a > b for a, b in zip(greedy[:3], ours[:3], strict=True))
    assert ours[3] == greedy[3] and measure(lm, prompts, "momentum:resistance=0", 120) == greedy


def test_isotropy_is_one_less_the_mean_cosine() -> None:
    assert isotropy(torch.eye(4)) == 1
    assert isotropy(torch.ones(3, 2)) == pytest.approx(0)
    assert isotropy(torch.tensor([[1.0, 0], [0, 1], [1, 1]])) == pytest.approx(1 - 2 * 0.5**0.5 / 3)


def test_the_bench_prints_a_line_per_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--methods", "momentum:top_k=2", "--max-tokens", "8"]) == 0
    assert "| momentum:top_k=2 |" in capsys.readouterr().out


@pytest.mark.parametrize("given", [{"resistance": -1}, {"top_k": 0}, {"table": "1,-2"}, {"resistance": "inf"}])
def test_bad_settings_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        Momentum.from_settings(given)
