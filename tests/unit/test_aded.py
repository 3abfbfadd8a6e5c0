"""ADED: tri-gram probabilities and the search's choices by hand, and drafts that get better as the text goes on."""

import math

import pytest

from outpace.draft.trigram import TrigramLaw, TrigramMemory, TrigramTable, bonus, search
from outpace.errors import ConfigError
from outpace.methods.speculative.aded import Aded
from outpace.run.loop import Run
from outpace.sampling import Sampling
from outpace.testing import check_method
from outpace.testing.world import PeriodicModel, drive, make_rows, make_run


def table(text: list[int], memory: TrigramMemory | None = None, branch: int = 12) -> TrigramTable:
    found = TrigramTable(branch, len(text), memory)
    found.extend(text)
    return found


def near(law: TrigramLaw, wanted: TrigramLaw) -> bool:
    """Return whether two laws list the same tokens with the same probabilities."""
    tokens, probs = zip(*law, strict=True)
    return list(tokens) == [token for token, _ in wanted] and list(probs) == pytest.approx([prob for _, prob in wanted])


def test_the_law_by_hand() -> None:
    found = table([1, 2, 3, 1, 2, 3, 1, 2, 4])  # 1 2 was followed by 3, 3 and 4
    assert near(found.law(1, 2), [(3, 2 / 3), (4, 1 / 3)])
    assert found.law(2, 3) == [(1, 1.0)] and found.law(2, 4) == []
    assert near(table([1, 2, 3, 1, 2, 3, 1, 2, 4], branch=1).law(1, 2), [(3, 2 / 3)])
    found.extend([1, 2, 3, 1, 2, 3, 1, 2, 4, 1, 2, 4])  # 1 2 4 came again: the law follows
    assert [prob for _, prob in found.law(1, 2)] == pytest.approx([0.5, 0.5])


def test_a_corpus_weighs_as_much_as_25_occurrences() -> None:
    memory = TrigramMemory()
    memory.add([1, 2, 4, 9, 1, 2, 4])
    assert memory.prior((1, 2)) == {4: 1.0}
    assert near(table([1, 2, 3, 1, 2, 3], memory).law(1, 2), [(4, 1 / 1.08), (3, 0.08 / 1.08)])
    assert near(table([1, 2, 3] * 26, memory).law(1, 2), [(3, 1.04 / 2.04), (4, 1 / 2.04)])


def test_weight_is_capped() -> None:
    often = [1, 2, 3] * 100 + [1, 2, 5]
    assert near(table(often).law(1, 2), [(3, 3 / 3.04), (5, 0.04 / 3.04)])


def test_a_full_memory_forgets_what_is_rare() -> None:
    memory = TrigramMemory(max_trigrams=3)
    memory.add([1, 2, 1, 2, 1, 2])  # 1 2 1 and 2 1 2, twice each
    memory.add([7, 8, 9])
    assert memory.num_trigrams == 3 and memory.prior((7, 8)) == {9: 1.0}
    memory.add([4, 5, 6])  # the fourth: counts of 2 become 1, counts of 1 go
    assert memory.num_trigrams == 2 and memory.prior((7, 8)) == memory.prior((4, 5)) == {}
    assert memory.prior((1, 2)) == {1: 1.0} and memory.prior((2, 1)) == {2: 1.0}


def test_the_bonus_by_hand() -> None:
    assert bonus(0, 1.25) == 0.0
    assert bonus(4, 1.25) == pytest.approx(2 * (1.25 + math.log(19657 / 19652)))


LAWS: dict[tuple[int, int], TrigramLaw] = {
    (0, 1): [(10, 0.6), (11, 0.4)],
    (1, 10): [(20, 1.0)],
    (10, 20): [(30, 0.5), (31, 0.5)],
}


def chosen(exploration: float, nodes: int = 4, depth: int = 8) -> tuple[list[int], list[int]]:
    return search(lambda first, second: LAWS.get((first, second), []), 0, 1, nodes, depth, exploration)


def test_the_search_by_hand() -> None:
    # 1: nothing visited, so 10, the likelier. 2: 10 scores 0.6 + 1.25 * 0.6 / 2 = 0.975, 11 scores 1.25 * 0.4 = 0.5.
    # 3: 10 was worth 0.6 twice and scores 0.6 + 1.77 * 0.6 / 3 = 0.95, 11 scores 0.71; below 20, 30 comes first and is
    # worth 0.5, so 10 has now been worth 0.6, 0.6 and 0.3. 4: 10 scores 0.5 + 2.17 * 0.6 / 4 = 0.82, 11 scores 0.87.
    assert chosen(1.25) == ([10, 20, 30, 11], [-1, 0, 1, -1])
    # Less curious, it stays: 0.5 + 0.17 * 0.6 / 4 against 0.07.
    assert chosen(0.1) == ([10, 20, 30, 31], [-1, 0, 1, 1])
    # More curious, it looks at 11 at once: 0.6 + 5 * 0.6 / 2 = 2.1 against 5 * 0.4 = 2.0, then 2.72 against 2.83.
    assert chosen(5.0, nodes=3) == ([10, 20, 11], [-1, 0, -1])


def test_the_search_ends_with_the_tree() -> None:
    assert sorted(chosen(1.25, nodes=99)[0]) == [10, 11, 20, 30, 31]
    assert sorted(chosen(1.25, nodes=99, depth=1)[0]) == [10, 11]
    assert chosen(1.25, depth=0) == ([], [])


def test_more_is_accepted_as_repetitive_text_goes_on() -> None:
    run = make_run(Aded(), target=PeriodicModel(10), capacity=160)
    run.join(make_rows([[0]], 90))
    accepted = []
    while run.rows:
        run.step()
        assert run.last is not None
        accepted.append(run.last.accepted[0])
    half = len(accepted) // 2
    assert sum(accepted[half:]) > 3 * sum(accepted[:half])
    assert accepted[0] == 0 and max(accepted) == 6  # the depth


def run_once(memory: object = None) -> int:
    rows = make_rows([[0, 1]], 24)
    drive(Run(PeriodicModel(12), Aded(), Sampling(), capacity=96, memory=memory), rows)
    return rows[0].usage.num_steps


def test_a_memory_helps_later_calls() -> None:
    memory, alone = TrigramMemory(), run_once()
    first, second = run_once(memory), run_once(memory)
    assert first == alone == run_once() and second < first
    with pytest.raises(ConfigError, match="cannot use a memory of type str"):
        run_once("memory")
    with pytest.raises(ConfigError, match="max_trigrams is 0"):
        TrigramMemory(0)


def test_a_copy_goes_its_own_way() -> None:
    first = table([1, 2, 3])
    second = first.copy()
    second.extend([1, 2, 3, 1, 2, 9])
    assert first.law(1, 2) == [(3, 1.0)] and dict(second.law(1, 2)) == {3: 0.5, 9: 0.5}


@pytest.mark.parametrize("settings", [{"nodes": 0}, {"depth": 0}, {"branch": 0}, {"exploration": 0.0}], ids=str)
def test_bad_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Aded(**settings)


@pytest.mark.parametrize("method", [Aded(nodes=5, depth=2, branch=2), Aded(exploration=50.0, depth=12)], ids=str)
def test_variants_fulfil_the_contract(method: Aded) -> None:
    check_method(method, every=3)
