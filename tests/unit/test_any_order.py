"""Texts written in any order: the network against itself place by place, the law by enumerating every outcome."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence

import pytest
import torch

from outpace.accept.any_subset import Burst, write_places
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


def laws_of(net: AnyOrderNet, is_joint: bool) -> Callable[[list[int], list[int], int], list[list[float]]]:
    def laws(text: list[int], order: list[int], known: int) -> list[list[float]]:
        tokens, places = torch.tensor([text]), torch.tensor([order])
        found = net(tokens, places)[:, known:] if is_joint else net.side_by_side(tokens, places, known)
        return found[0].exp().tolist()

    return laws


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
    side, joint = laws_of(net, False), laws_of(net, True)
    for weight, burst in every_outcome(
        lambda chance: write_places([0, 0, 1], ORDER, known, side, joint, chance, exact=exact, most=most)
    ):
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


def test_a_burst_of_negative_length_is_refused(net: AnyOrderNet) -> None:
    with pytest.raises(ConfigError, match="most is -1"):
        law_of(net, 0, exact=True, most=-1)


def test_side_by_side_is_each_place_asked_next(net: AnyOrderNet) -> None:
    for known, text in itertools.product(range(3), itertools.product(range(2), repeat=3)):
        found = net.side_by_side(torch.tensor([text]), torch.tensor([ORDER]), known)[0]
        for index, place in enumerate(ORDER[known:]):
            order = [*ORDER[:known], place, *(other for other in ORDER[known:] if other != place)]
            alone = net(torch.tensor([text]), torch.tensor([order]))[0, known]
            torch.testing.assert_close(found[index], alone, rtol=0, atol=1e-12)


def test_a_later_place_is_not_seen(net: AnyOrderNet) -> None:
    first, second = (net(torch.tensor([text]), torch.tensor([ORDER]))[0] for text in ([0, 0, 1], [0, 1, 1]))
    torch.testing.assert_close(first, second, rtol=0, atol=0)  # place 1 comes last


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [0, 1, 3]])
def test_an_order_names_each_place_once(net: AnyOrderNet, order: list[int]) -> None:
    with pytest.raises(ConfigError, match="each of the 3 places once"):
        net(torch.tensor([[0, 0, 0]]), torch.tensor([order]))
