"""Switching by entropy: the algorithm token by token without caches, and its extremes, which are one model alone."""

from __future__ import annotations

import pytest
import torch

from outpace.methods.autoregressive import Autoregressive
from outpace.methods.speculative.entropy_switch import EntropySwitch, entropy
from outpace.testing import check_method
from outpace.testing.world import SETTINGS, drafter_for, reference, target_for, write
from outpace.types import Adapter

NEVER = float("inf")


def next_logits(model: Adapter, text: list[int]) -> torch.Tensor:
    """The model's logits after a text, by one forward of the whole of it."""
    cache, tokens = model.new_cache(1, len(text)), torch.tensor([text])
    return model.score(tokens, torch.arange(len(text)).unsqueeze(0), None, cache).logits[0, -1]


def simulated(prompt: list[int], count: int, method: EntropySwitch) -> tuple[list[int], int]:
    """The algorithm without caches: the text, and how many of its tokens the small model wrote."""
    large, small = target_for("causal"), drafter_for("causal")
    text, recent, is_large, num_small = list(prompt), list[float](), method.threshold == 0, 0

    def mean(values: list[float]) -> float:
        return sum(values[-method.window :]) / len(values[-method.window :])

    for _ in range(count):
        if not is_large:
            logits = next_logits(small, text)
            one = entropy(logits.unsqueeze(0))[0]
            is_large = mean([*recent, one]) > method.threshold
        if is_large:
            logits = next_logits(large, text)
            one = entropy(logits.unsqueeze(0))[0]
            is_large = method.threshold == 0 or mean([*recent, one]) > method.threshold
        else:
            num_small += 1
        recent.append(one)
        text.append(int(logits.argmax()))
    return text[len(prompt) :], num_small


@pytest.mark.parametrize("threshold", [0.0, 1.6, 1.9, 2.2, NEVER])
@pytest.mark.parametrize(("window", "draft_len"), [(1, 4), (3, 2), (3, 16)])
def test_the_whole_algorithm(threshold: float, window: int, draft_len: int) -> None:
    method = EntropySwitch(threshold=threshold, window=window, draft_len=draft_len)
    for row in write(method):
        text, num_small = simulated(row.tokens[: row.num_prompt], row.max_tokens, method)
        assert row.written == text
        assert num_small - row.usage.num_accepted in (0, 1)  # a text's last token is no node


@pytest.mark.parametrize("name", ["greedy", "temperature 0.7", "repetition penalty", "everything"])
def test_extreme_thresholds_are_one_model_alone(name: str) -> None:
    small = [row.written for row in write(Autoregressive(), SETTINGS[name], target=drafter_for("causal"))]
    large = [list(tokens) for tokens in reference(name)]
    assert [row.written for row in write(EntropySwitch(threshold=NEVER, draft_len=3), SETTINGS[name])] == small
    assert [row.written for row in write(EntropySwitch(threshold=0.0), SETTINGS[name])] == large


def test_contract() -> None:
    check_method(EntropySwitch(threshold=1.8, draft_len=3), every=3)


def test_entropies_are_those_of_the_law() -> None:
    law = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert entropy(law.log()) == pytest.approx([1.5 * 0.6931471805599453, 0.0])
