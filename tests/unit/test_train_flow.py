"""Subtrajectory balance: its loss pair by pair, rewards and laws enumerated, and a sampler that nears a posterior."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from outpace.bench.infills import distance, main, posterior, sampler_law, toy_trainer
from outpace.train.flow import Gap, balance_loss, drawn, gaps, log_law, log_rewards, prompt_of
from outpace.train.network import Llama


@pytest.fixture(scope="module")
def network() -> Llama:
    return toy_trainer(1, 3).network


def law(network: Llama, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(torch.tensor([tokens]))[0, -1].double().log_softmax(-1)
    return found


def test_the_loss_is_the_mean_over_stretches() -> None:
    generator = torch.Generator().manual_seed(0)
    reward, token, end = (torch.randn(2, size, generator=generator, dtype=torch.float64) for size in (4, 3, 4))
    length = [3, 1]
    wanted = []
    for b, size in enumerate(length):
        parts = []
        for i, j in itertools.combinations(range(size + 1), 2):
            forward = reward[b, i] + sum(token[b, k] for k in range(i, j)) + end[b, j]
            parts.append(float(forward - reward[b, j] - end[b, i]) ** 2)
        wanted.append(sum(parts) / len(parts))
    found = balance_loss(reward, token, end, torch.tensor(length))
    assert float(found) == pytest.approx(sum(wanted) / 2)


def test_a_sampler_of_the_posterior_has_no_loss(network: Llama) -> None:
    """Laws made from rewards by summing over all continuations meet every condition."""
    gap, most = Gap((1, 2), (), (3,)), 2
    texts = [list(t) for size in range(most + 1) for t in itertools.product(range(1, 5), repeat=size)]
    reward = {tuple(t): math.exp(float(log_rewards(network, gap, t, most)[len(t)])) for t in texts}

    def mass(prefix: tuple[int, ...]) -> float:
        return sum(value for text, value in reward.items() if text[: len(prefix)] == prefix)

    for text in [t for t in texts if len(t) == most]:
        prefixes = [tuple(text[:size]) for size in range(most + 1)]
        token = [math.log(mass(after) / mass(before)) for before, after in itertools.pairwise(prefixes)]
        end = [math.log(reward[prefix] / mass(prefix)) for prefix in prefixes]
        given = ([math.log(reward[prefix]) for prefix in prefixes], token, end)
        loss = balance_loss(*(torch.tensor([row], dtype=torch.float64) for row in given), torch.tensor([most]))
        assert float(loss) < 1e-20


def test_rewards_and_laws_are_those_of_whole_texts(network: Llama) -> None:
    gap, text = Gap((1, 2), (), (3, 1)), [4, 2]
    rewards = log_rewards(network, gap, text, 3)
    for end in range(3):
        row = [0, 1, 2, *text[:end], 3, 1]
        wanted = sum(float(law(network, row[:at])[row[at]]) for at in range(3, len(row)))
        assert float(rewards[end]) == pytest.approx(wanted, abs=1e-4)
    assert rewards[3] == rewards[2]
    stopped = [0, 1, 2, 4, 2, 3, 1]  # 2 ends the text, and stands in it
    wanted = sum(float(law(network, stopped[:at])[stopped[at]]) for at in range(3, len(stopped)))
    assert float(log_rewards(network, gap, [4], 3, end=2)[1]) == pytest.approx(wanted, abs=1e-4)
    last = log_law(network, [prompt_of(gap)], [[4]], 3, end=2)[1][0, 1].detach()
    assert float(last) == pytest.approx(float(law(network, [*prompt_of(gap), 4])[2]), abs=1e-4)
    prompt = prompt_of(gap)
    assert prompt == [0, 3, 1, 0, 1, 2]
    tokens, ends = (part.detach() for part in log_law(network, [prompt, prompt[2:]], [text, [4, 2, 1]], 3))
    for at, token in enumerate(text):
        now = law(network, [*prompt, *text[:at]])
        assert float(tokens[0, at]) == pytest.approx(float(now[token]), abs=1e-4)
        assert float(ends[0, at]) == pytest.approx(float(now[0]), abs=1e-4)
    assert ends[:, 3].tolist() == [0.0, 0.0]  # a full text has to end
    assert float(tokens[1, 2]) == pytest.approx(float(law(network, [*prompt[2:], 4, 2])[1]), abs=1e-4)
    exact = sampler_law(network, gap)
    assert float(exact.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(posterior(network, gap, 1.0).sum()) == pytest.approx(1.0)
    texts = drawn(network, [prompt] * 2000, 3, [1.0] * 2000, torch.Generator().manual_seed(0))
    share = sum(not text for text in texts) / 2000
    assert share == pytest.approx(float(exact[0]), abs=0.05)


def test_the_sampled_law_nears_the_exact_posterior() -> None:
    trainer = toy_trainer(60, 0)
    exact = posterior(trainer.teller, trainer.gaps[0], 1.0)
    before = distance(sampler_law(trainer.network, trainer.gaps[0]), exact)
    while trainer.step < 60:
        trainer.advance()
    after = distance(sampler_law(trainer.network, trainer.gaps[0]), exact)
    assert before > 0.25 and after < 0.1


def test_gaps_are_middle_sentences_and_mistakes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    text = "One two. Three four. Five? Six! " + "a " * 20 + "b. End."
    found = gaps([text], lambda text: [ord(c) for c in text[:16]], 16)
    assert [["".join(map(chr, part)) for part in (gap.before, gap.inside, gap.behind)] for gap in found] == [
        ["One two.", " Three four", " Five?"],
    ]
    assert main(["--steps", "0"]) == 2
    assert "0 steps were asked for" in capsys.readouterr().err
    assert main(["--models", "stories-draft", "--draws", "1"]) == 2
    assert "Texts are compared." in capsys.readouterr().err
    assert main(["--models", "stories-draft", "--temperatures", "nan"]) == 2
    assert "temperatures from 0.01" in capsys.readouterr().err
