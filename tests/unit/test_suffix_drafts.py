"""Suffix decoding: counts and drafts against brute force and by hand, and what earlier calls are good for."""

import random

import pytest

from outpace.draft.suffix import Draft, Place, SuffixCounts, SuffixRule, Tip
from outpace.draft.suffix_history import SuffixHistory, SuffixMemory
from outpace.errors import ConfigError
from outpace.methods.speculative.suffix import Suffix
from outpace.run.loop import Run
from outpace.sampling import Sampling
from outpace.testing import check_method
from outpace.testing.world import PeriodicModel, drive, make_rows

EVERYTHING = SuffixRule(64, 0.0, 64.0, 0.0, True)


def history(text: list[int], depth: int = 32) -> SuffixHistory:
    found = SuffixHistory(depth, len(text))
    found.extend(text)
    return found


def occurrences(text: list[int], part: tuple[int, ...]) -> list[int]:
    """Return where each occurrence of a part ends."""
    size = len(part)
    return [end for end in range(size, len(text) + 1) if tuple(text[end - size : end]) == part]


def test_counts_of_a_short_text() -> None:
    counts, tip = SuffixCounts(8), Tip()
    for token in (0, 1, 2, 0, 1, 3, 0, 1):  # abcabdab
        counts.append(tip, token)
    assert [counts.count(part) for part in ([0], [1], [0, 1], [1, 2], [0, 1, 3], [2, 2], [3, 0, 1])] == [
        3, 3, 3, 1, 1, 0, 1,
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_counts_and_matches_equal_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    depth, vocab, number = rng.choice([1, 2, 3, 8]), rng.choice([1, 2, 3, 5]), rng.choice([1, 2, 3])
    counts, tips, texts, place = (
        SuffixCounts(depth),
        [Tip() for _ in range(number)],
        [[] for _ in range(number)],
        Place(),
    )
    for _ in range(50):
        which, token = rng.randrange(number), rng.randrange(vocab)
        if which == 0:
            counts.advance(place, token)
            ends = [tuple([*texts[0], token][-size:]) for size in range(1, min(depth, len(texts[0]) + 1) + 1)]
            longest = max((len(end) for end in ends if any(occurrences(text, end) for text in texts)), default=0)
            # Others may write a longer match later; alone, a text's match is the longest there is.
            assert place.length == longest if number == 1 else place.length <= longest
        counts.append(tips[which], token)
        texts[which].append(token)
    for size in range(1, depth + 1):
        for _ in range(20):
            part = tuple(rng.randrange(vocab + 1) for _ in range(size))
            assert counts.count(part) == sum(len(occurrences(text, part)) for text in texts)
    assert len(counts._link) <= 2 * counts.num_tokens + 1


def brute_score(text: list[int], rule: SuffixRule) -> float:
    """Return the best score over all matching ends of a text, from scans and the likeliest paths one by one."""
    best = 0.0
    for size in range(1, len(text)):
        end = tuple(text[-size:])
        if len(occurrences(text, end)) < 2:
            break
        paths, score = [(1.0, ())], 0.0
        for _ in range(rule.limit(size) + 1):
            prob, path = max(paths)
            paths.remove((prob, path))
            score += prob if path else 0.0
            after = [text[at] for at in occurrences(text, (*end, *path)) if at < len(text)]
            paths += [(prob * after.count(token) / len(after), (*path, token)) for token in sorted(set(after))]
            if not paths:
                break
        best = max(best, score)
    return best


@pytest.mark.parametrize("seed", range(40))
def test_the_tree_is_the_likeliest_of_all_matches(seed: int) -> None:
    rng = random.Random(seed)
    text = [rng.randrange(3) for _ in range(rng.randrange(4, 26))]
    rule = SuffixRule(6, rng.choice([1.0, 2.0]), rng.choice([0.0, 2.0]), 0.0, True)
    found = history(text, depth=40).draft(rule)
    assert found.score == pytest.approx(brute_score(text, rule))
    assert all(parent < node for node, parent in enumerate(found.parents))


# 1 2 was followed by 3, 3 and 4; 1 2 3 by 9 and 8; the end 7 1 2 is new, so the match is 1 2.
BRANCHING = [1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2]


def test_a_tree_by_hand() -> None:
    found = history(BRANCHING).draft(SuffixRule(8, 4.0, 0.0, 0.3, True))
    assert (found.tokens, found.match_len) == ([3, 4, 7, 1, 2, 9, 1, 2], 2)
    assert found.parents == [-1, -1, 1, 2, 3, 0, 5, 6]
    assert found.probs == pytest.approx([2 / 3] + [1 / 3] * 7)
    assert found.score == pytest.approx(3.0)


def test_a_chain_stops_where_counts_make_it_unlikely() -> None:
    drafts = [history(BRANCHING).draft(SuffixRule(8, 4.0, 0.0, least, False)) for least in (0.7, 0.5, 0.3)]
    assert [draft.tokens for draft in drafts] == [[], [3], [3, 9, 1, 2, 3, 8, 1, 2]]


def test_the_length_follows_the_match() -> None:
    rule = SuffixRule(budget=10, factor=1.5, offset=0.5, min_prob=0.1, is_tree=False)
    assert [rule.limit(length) for length in (1, 3, 4, 9)] == [2, 5, 6, 10]
    text = [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2]  # the match is 0 1 2
    assert history(text).draft(SuffixRule(10, 1.0, 0.0, 0.1, False)).tokens == [3, 4, 5]
    assert history(text, depth=2).draft(SuffixRule(10, 1.0, 0.0, 0.1, False)).tokens == [3, 4]


def test_a_copy_goes_its_own_way() -> None:
    first = history([1, 2, 3, 1])
    second = first.copy()
    second.extend([1, 2, 3, 1, 2, 9, 2])
    first.extend([1, 2, 3, 1, 2])
    assert first.draft(EVERYTHING).tokens == [3, 1, 2] and set(second.draft(EVERYTHING).tokens) >= {3, 9}


def test_an_empty_history_drafts_nothing() -> None:
    assert history([5]).draft(EVERYTHING) == Draft()


def run(memory: object = None, tokens: int = 24) -> int:
    """Write a periodic text after one token; return how many steps it took."""
    rows = make_rows([[0]], tokens)
    drive(Run(PeriodicModel(12), Suffix(), Sampling(), capacity=96, memory=memory), rows)
    assert rows[0].written == [(1 + i) % 12 for i in range(tokens)]
    return rows[0].usage.num_steps


def test_memory_shortens_later_calls_and_nothing_else_does() -> None:
    memory = SuffixMemory()
    alone = run()
    first, second = run(memory), run(memory)
    assert second < first == alone == run()
    assert memory.num_tokens == 48  # what was written, and no prompt
    assert run({"suffix": memory}) < alone == run({"another": memory})


def test_memory_can_be_filled_by_hand() -> None:
    memory = SuffixMemory()
    memory.add(list(range(12)) * 3)
    assert run(memory) < run()


def test_memory_forgets_the_oldest_half() -> None:
    memory = SuffixMemory(max_tokens=40)
    for first in range(20):
        memory.add([first] * 10)
    assert 20 <= memory.num_tokens <= 40
    assert sum(counts.count([0]) for counts in memory.generations) == 0
    assert sum(counts.count([19]) for counts in memory.generations) == 10


def test_a_wrong_memory_is_named() -> None:
    with pytest.raises(ConfigError, match="cannot use a memory of type list"):
        run([])
    memory = SuffixMemory()
    memory.bind(500, b"one")
    with pytest.raises(ConfigError, match="500 tokens, the model has 13"):
        run(memory)
    with pytest.raises(ConfigError, match="another tokenizer"):
        memory.bind(500, b"two")
    memory = SuffixMemory()
    memory.add([99])
    with pytest.raises(ConfigError, match="the id 99"):
        run(memory)
    with pytest.raises(ConfigError, match="outside the vocabulary"):
        SuffixMemory().add([-1])
    with pytest.raises(ConfigError, match="max_tokens is 0"):
        SuffixMemory(max_tokens=0)


@pytest.mark.parametrize(
    "settings", [{"nodes": 0}, {"max_match": 0}, {"factor": 0.0}, {"factor": -1.0}, {"min_prob": 1.5}], ids=str
)
def test_bad_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Suffix(**settings)


@pytest.mark.parametrize(
    "method",
    [Suffix(is_tree=True, nodes=12, factor=2.0, min_prob=0.05), Suffix(max_match=2, factor=0.0, offset=3.0)],
    ids=str,
)
def test_variants_fulfil_the_contract(method: Suffix) -> None:
    check_method(method, every=3)
