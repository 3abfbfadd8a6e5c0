"""The figures of drafting cost are there; the bound is loose, since tests share their cores."""

from outpace.bench.drafting import LIMIT_US, drafters, drafting, repeating_text
from outpace.draft.ngram import NgramIndex
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.methods.speculative.suffix import Suffix
from outpace.methods.speculative.token_recycling import TokenRecycling


def test_drafting_costs_little() -> None:
    limited = [m for m in drafters(64) if isinstance(m, PromptLookup | Suffix | TokenRecycling)]
    rows = drafting(steps=60, prompt=512, methods=limited)
    assert [row["method"] for row in rows] == ["prompt-lookup", "suffix", "suffix", "token-recycling"]
    for row in rows:
        assert row["nodes"] > 20 and row["best_us"] <= row["step_us"]
        assert row["step_us"] < 10 * LIMIT_US, row
        assert row["index_us"] < 100, row
    assert rows[-1]["table_bytes"] == 8193 * 8 * 4


def test_every_drafter_is_measured() -> None:
    rows = drafting(vocab_size=512, nodes=8, steps=5, prompt=256)
    assert len(rows) == len(drafters(8)) and all(row["step_us"] > 0 for row in rows)


def test_the_text_repeats_itself_and_stays_in_the_vocabulary() -> None:
    text = repeating_text(100, 3000)
    assert len(text) == 3000 and 0 <= min(text) <= max(text) < 100
    assert text == repeating_text(100, 3000)


def test_an_index_does_the_same_work_for_every_token() -> None:
    # Entries grow by at most one per n-gram size and token, and nothing is looked at twice.
    index, text = NgramIndex(1, 4), repeating_text(50, 2000)
    for end in range(0, 2001, 5):
        before = len(index._last)
        index.extend(text[:end])
        assert len(index._last) - before <= 4 * 5
    whole = NgramIndex(1, 4)
    whole.extend(text)
    assert whole._last == index._last
