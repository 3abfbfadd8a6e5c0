"""Texts written in any order: the network against itself place by place, the law by enumerating every outcome."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch

from outpace.accept.any_subset import keep_drafts
from outpace.errors import ConfigError
from outpace.models.any_order import AnyOrderConfig, AnyOrderNet

ORDER = [2, 0, 1]


@pytest.fixture(scope="module")
def net() -> AnyOrderNet:
    torch.manual_seed(0)
    network = AnyOrderNet(AnyOrderConfig(vocab=2, places=3, width=16)).double().eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.4 * torch.randn_like(weight))  # far from uniform laws
    return network.requires_grad_(False)


@dataclass
class Burst:
    """A text by place, and the passes that it took."""

    tokens: list[int]
    calls: int = 0


def one_by_one(net: AnyOrderNet, text: list[int], known: int) -> torch.Tensor:
    """Return the laws [T - known, V] of the open places, each asked in a pass of its own as if it came next."""
    found = []
    for place in ORDER[known:]:
        order = [*ORDER[:known], place, *(other for other in ORDER[known:] if other != place)]
        found.append(net(torch.tensor([text]), torch.tensor([order]))[0, known])
    return torch.stack(found).exp()


def written(net: AnyOrderNet, known: int, chance: Callable[[Sequence[float]], int], exact: bool, most: int) -> Burst:
    """Write a text burst after burst; where `known` is 1, place 2 is given and holds 1."""
    text = Burst([0, 0, 1])
    while known < 3:
        stop = min(3, known + most) if most else 3
        drafts = one_by_one(net, text.tokens, known)[: stop - known]
        text.calls += 1
        for place, law in zip(ORDER[known:stop], drafts.tolist(), strict=True):
            text.tokens[place] = chance(law)
        known += 1
        if known == stop:
            continue
        targets = net(torch.tensor([text.tokens]), torch.tensor([ORDER]))[0, known:stop].exp()
        text.calls += 1
        kept = keep_drafts(
            torch.tensor([text.tokens[place] for place in ORDER[known:stop]]),
            targets,
            drafts[1:],
            lambda _, keep: chance([1 - keep, keep]) == 1,
            (lambda _, law: chance(law.tolist())) if exact else None,
        )
        for place, token in zip(ORDER[known:stop], kept, strict=False):
            text.tokens[place] = token
        known += len(kept)
    return text


def every_outcome(run: Callable[[Callable[[Sequence[float]], int]], Burst]) -> list[tuple[float, Burst]]:
    """Run once for every sequence of choices that has a chance; return the probability and the text of each."""
    found, paths = [], [[]]
    while paths:
        path = paths.pop()
        weight, at = 1.0, 0

        def chance(probs: Sequence[float], path: list[int] = path) -> int:
            nonlocal weight, at
            if at == len(path):
                possible = [index for index, prob in enumerate(probs) if prob > 0]
                paths.extend([*path, index] for index in possible[1:])
                path.append(possible[0])
            at += 1
            weight *= probs[path[at - 1]]
            return path[at - 1]

        burst = run(chance)
        found.append((weight, burst))
    return found


def sequential(net: AnyOrderNet, text: tuple[int, ...], known: int) -> float:
    law = net(torch.tensor([text]), torch.tensor([ORDER]))[0]
    return float(sum(law[i, text[ORDER[i]]] for i in range(known, 3)).exp())


def law_of(net: AnyOrderNet, known: int, *, exact: bool, most: int = 0) -> tuple[dict[tuple[int, ...], float], int]:
    """Return the probability of every text, and the most passes that any outcome takes."""
    laws, calls = defaultdict[tuple[int, ...], float](float), 0
    for weight, burst in every_outcome(lambda chance: written(net, known, chance, exact, most)):
        laws[tuple(burst.tokens)] += weight
        calls = max(calls, burst.calls)
    return laws, calls


def gap(net: AnyOrderNet, laws: dict[tuple[int, ...], float], known: int) -> float:
    """Return the total variation between laws of texts and drawing place by place; the known place holds 1."""
    texts = [text for text in itertools.product(range(2), repeat=3) if known == 0 or text[2] == 1]
    return sum(abs(laws.get(text, 0.0) - sequential(net, text, known)) for text in texts) / 2


@pytest.mark.parametrize("most", [0, 1, 2])
@pytest.mark.parametrize("known", [0, 1])
def test_speculation_has_the_law_of_drawing_one_by_one(net: AnyOrderNet, known: int, most: int) -> None:
    laws, calls = law_of(net, known, exact=True, most=most)
    assert sum(laws.values()) == pytest.approx(1, abs=1e-12)
    assert gap(net, laws, known) < 1e-12
    assert calls <= 3 - known


def test_bursts_of_one_are_ordinary_sampling_and_longer_ones_are_not(net: AnyOrderNet) -> None:
    laws, calls = law_of(net, 0, exact=False, most=1)
    assert gap(net, laws, 0) < 1e-12
    assert calls == 3
    assert gap(net, law_of(net, 0, exact=False)[0], 0) > 1e-4  # without the residual


def test_a_later_place_is_not_seen(net: AnyOrderNet) -> None:
    first, second = (net(torch.tensor([text]), torch.tensor([ORDER]))[0] for text in ([0, 0, 1], [0, 1, 1]))
    torch.testing.assert_close(first, second, rtol=0, atol=0)  # place 1 comes last


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [0, 1, 3]])
def test_an_order_names_each_place_once(net: AnyOrderNet, order: list[int]) -> None:
    with pytest.raises(ConfigError, match="each of the 3 places once"):
        net(torch.tensor([[0, 0, 0]]), torch.tensor([order]))
