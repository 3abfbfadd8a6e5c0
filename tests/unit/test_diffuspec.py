"""The path search of DiffuSpec: against all paths, by hand, and in a run."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from outpace.api.engine import LanguageModel
from outpace.canvas.path_drafter import Candidates, best_path
from outpace.draft.trigram import TrigramMemory, TrigramTable
from outpace.errors import ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.speculative.diffuspec import DiffuSpec
from outpace.sampling import Sampling
from outpace.testing.toy import ToyModel
from outpace.testing.world import make_rows, target_for, write


def table_of(*texts: list[int]) -> TrigramTable:
    memory = TrigramMemory()
    for text in texts:
        memory.add(text)
    return TrigramTable(64, 0, memory)


def places_of(seed: int, length: int, count: int) -> list[Candidates]:
    logits = torch.randn(length, 6, generator=torch.Generator().manual_seed(seed)).double().log_softmax(-1)
    top = logits.topk(count)
    return [
        list(zip(tokens, values, strict=True))
        for tokens, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_best_of_all_paths(seed: int) -> None:
    places, before, weight = places_of(seed, 4, 3), [1, 2], 0.4
    source = torch.Generator().manual_seed(seed)
    table = table_of(*[torch.randint(0, 6, (40,), generator=source).tolist() for _ in range(2)])

    def score(path: tuple[tuple[int, float], ...]) -> float:
        total, first, second = 0.0, *before
        for (token, log_p), candidates in zip(path, places, strict=True):
            law = dict(table.law(first, second))
            log_n = math.log(0.9 * law.get(token, 0.0) + 0.1 / len(candidates)) if law else log_p
            total += (1 - weight) * log_p + weight * log_n
            first, second = second, token
        return total

    best = max(itertools.product(*places), key=score)
    assert best_path(places, before, table, 81, weight) == [token for token, _ in best]


def test_the_text_so_far_turns_the_path() -> None:
    """Each place alone likes 3 and 5; the text says that 4 follows 1 2, and 5 follows 2 4."""
    places = [[(3, -0.7), (4, -0.8)], [(5, -0.6), (0, -0.9)]]
    assert best_path(places, [1, 2], table_of(), 3, 0.5) == [3, 5]
    assert best_path(places, [1, 2], table_of([1, 2, 4, 5]), 3, 0.5) == [4, 5]
    assert best_path(places, [1, 2], table_of([1, 2, 4, 5]), 3, 0.0) == [3, 5]
    assert best_path([], [1, 2], table_of(), 3, 0.5) == []
    # A beam of one takes the locally best; two see that the second pays later.
    late = [[(3, -0.5), (4, -0.6)], [(5, -1.0)]]
    table = table_of([2, 4, 5], [2, 3, 0])
    assert best_path(late, [1, 2], table, 1, 0.5) == [3, 5] and best_path(late, [1, 2], table, 2, 0.5) == [4, 5]


@pytest.mark.parametrize("law", [Sampling(), Sampling(temperature=0.8)], ids=["greedy", "warm"])
def test_a_drafter_that_is_the_target_is_accepted_always(law: Sampling) -> None:
    """Blocks of one with a shift are causal: with one candidate a place the path is what the target writes."""
    target = target_for("causal")
    twin = ToyModel(attention="block", like=target, noise=0.0, seed=5, block_size=1, logits_shift=True)
    law = Sampling(temperature=law.temperature, logit_bias={12: -1e9})  # the drafter's mask token
    method = DiffuSpec(draft_len=5, fewest=5, is_adaptive=False, candidates=1, proxy=0.0)
    rows = write(method, law, make_rows(max_tokens=24), models={"draft": twin})
    for row, plain in zip(rows, write(Autoregressive(), law, make_rows(max_tokens=24)), strict=True):
        assert row.written == plain.written
        assert row.usage.num_accepted == row.usage.num_proposed > 0


def test_a_memory_of_the_same_text_helps() -> None:
    target = target_for("causal")
    lm = LanguageModel(target)
    drafter = ToyModel(attention="block", like=target, noise=0.6, seed=5, block_size=4, logits_shift=True)
    wanted = lm.generate([1, 2, 3], max_tokens=40).tokens
    steps = []
    for texts in ([], [[1, 2, 3, *wanted]] * 3):
        memory = TrigramMemory()
        for text in texts:
            memory.add(text)
        method = DiffuSpec(is_adaptive=False, proxy=0.7, mass=1.0)
        result = lm.generate([1, 2, 3], method=method, models={"draft": drafter}, max_tokens=40, memory=memory)
        assert result.tokens == wanted
        steps.append(result.usage.num_steps)
    assert steps[1] < steps[0]


def test_bad_settings_are_named() -> None:
    for bad in ({"beam": 0}, {"candidates": 0}, {"mass": 0.0}, {"proxy": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            DiffuSpec(**bad)  # type: ignore[arg-type]
