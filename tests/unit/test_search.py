"""Searches: reduced they are plain decoding, what they hold is written as alone, and rewards fail by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest

import outpace
from outpace import LanguageModel
from outpace.api.searching import pool_for
from outpace.api.starting import new_run, prepare
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.registry import load_method
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.sampling import Sampling, fork_key, row_key
from outpace.search.base import Search
from outpace.search.registry import built_in_searches, load_search
from outpace.search.rewards import read_reward
from outpace.search.table import Shelf, Table
from outpace.testing.toy import ToyModel

PROMPTS = [[1, 2, 3, 4], [5], [7, 8] * 20]
METHODS = ["autoregressive", "prompt-lookup", "jacobi", "lookahead", "token-recycling", "suffix"]


def toy(end: int = 3) -> LanguageModel:
    return LanguageModel(ToyModel(sharpness=1.2), None, end_tokens=[end])


def told(result: Any) -> tuple[Any, ...]:
    return result.tokens, result.finish_reason


def length(texts: Sequence[Sequence[int]]) -> list[float]:
    return [float(len(text)) for text in texts]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", built_in_searches())
def test_a_reduced_search_is_its_reference(name: str, method: str) -> None:
    lm, search = toy(), load_search(name)().reduced()
    reference = search.reference()
    laws: list[dict[str, Any]] = [{"temperature": 0.0}]
    if reference.draws and not search.takes_likeliest:
        laws = [{"temperature": 0.8}, {"temperature": 1.1, "repetition_penalty": 1.1, "top_k": 6, "seed": 4}]
    for law in laws:
        plain = lm.generate(PROMPTS, method=reference, max_tokens=20, **law)
        ours = lm.generate(PROMPTS, search=search, method=method, max_tokens=20, **law)
        assert [told(one) for one in ours] == [told(one) for one in plain]


def test_best_of_n_is_the_best_of_n_samples() -> None:
    lm = toy()
    for method in METHODS:
        samples = lm.generate(PROMPTS[0], temperature=1.0, num_samples=5, max_tokens=20)
        wanted = sorted((one.tokens for one in samples), key=lambda ids: sum(ids))[::-1]
        options = {"n": 5, "n_best": 5, "reward": lambda texts: [float(sum(text)) for text in texts]}
        found = lm.generate(
            PROMPTS[0], search="best-of", options=options, method=method, temperature=1.0, max_tokens=20
        )
        assert [one.tokens for one in found] == wanted
        assert [one.score for one in found] == [float(sum(ids)) for ids in wanted]


def test_without_a_reward_the_likeliest_text_per_token_is_the_best() -> None:
    lm = toy()
    samples = lm.generate(PROMPTS[0], temperature=1.0, num_samples=6, max_tokens=12, record=["log_probs"])
    best = max(samples, key=lambda one: math.fsum(one.log_probs) / len(one.log_probs))
    found = lm.generate(PROMPTS[0], search="best-of", options={"n": 6}, max_tokens=12)
    assert found.tokens == best.tokens and found.score == pytest.approx(math.fsum(best.log_probs) / len(best.log_probs))
    assert "The search best-of draws: temperature is 1." in found.notes


def alone(lm: LanguageModel, text: list[int], prompt: list[int], key: int, tokens: int, room: int) -> list[int]:
    """Write on a text in a run of its own."""
    row = Row(list(text), len(prompt), key, min(room, len(text) - len(prompt) + tokens), lm.end_tokens)
    run = Run(lm.target, load_method("autoregressive")(), Sampling(temperature=1.0), capacity=80)
    run.join([row])
    while run.rows:
        run.step()
    return row.tokens


def beams_alone(lm: LanguageModel, prompt: list[int], beams: int, ways: int, step: int, room: int) -> list[int]:
    """Search with beams of steps, every text by itself."""
    texts = [(alone(lm, prompt, prompt, row_key(0, i), step, room), row_key(0, i)) for i in range(beams * ways)]
    while True:
        texts = [one for at, one in enumerate(texts) if one[0] not in [other[0] for other in texts[:at]]]
        kept = sorted(texts, key=lambda one: -(sum(one[0][len(prompt) :]) % 17))[:beams]
        is_over = [ids[-1] in lm.end_tokens or len(ids) - len(prompt) >= room for ids, _ in kept]
        if all(is_over):
            return kept[0][0][len(prompt) :]
        texts = []
        for (ids, key), ended in zip(kept, is_over, strict=True):
            for number in range(1 if ended else ways):
                own = key if not number else fork_key(key, (len(ids) << 32) + number)
                texts.append((ids if ended else alone(lm, ids, prompt, own, step, room), own))


@pytest.mark.parametrize("method", ["autoregressive", "prompt-lookup"])
def test_beams_of_steps_are_those_of_texts_written_alone(method: str) -> None:
    lm = toy()
    for prompt in PROMPTS:
        options = {"beams": 2, "ways": 3, "step": 3, "reward": lambda texts: [sum(text) % 17 for text in texts]}
        found = lm.generate(prompt, search="step-beam", options=options, method=method, max_tokens=14)
        assert found.tokens == beams_alone(lm, prompt, 2, 3, 3, 14)


def test_a_tree_finds_what_a_reward_of_partial_texts_points_at() -> None:
    # Of two tokens, the reward counts how many 1s a text begins with: the tree has to follow them, against the odds.
    lm, seen = LanguageModel(ToyModel(vocab_size=3, sharpness=0.1), None), set[int]()

    def ones(texts: Sequence[Sequence[int]]) -> list[float]:
        seen.update(len(text) for text in texts)
        return [float(next((at for at, token in enumerate(text) if token != 1), len(text))) for text in texts]

    options = {"rounds": 30, "ways": 8, "step": 1, "explore": 0.2, "reward": ones}
    found = lm.generate([0], search="tree-search", options=options, max_tokens=10)
    drawn = lm.generate([0], temperature=1.0, num_samples=240, max_tokens=10)
    assert found.score == 10.0 > max(ones([one.tokens for one in drawn]))
    assert seen == set(range(11))


def test_rows_share_the_pages_of_their_prompt() -> None:
    lm, prompt, n, most = toy(end=99), [5, 6, 7, 8] * 125, 16, list[int]()
    arguments = {"search": "best-of", "options": {"n": n}, "max_tokens": 40, "temperature": 1.0}
    plan = prepare(lm, prompt, arguments)
    run = new_run(lm, plan, 540)
    assert run.pages is not None and plan.search is not None
    table = Table(Shelf(run), plan.rows[0], 0)
    for _ in (writing := plan.search.search(table)):
        run.step()
        most.append(run.pages.num_pages - run.pages.num_free)
    del writing
    row, tail = -(-540 // run.pages.page_size), -(-40 // run.pages.page_size) + 1
    assert max(most) <= row + (n - 1) * tail + n  # the page that prompt and text share has a copy per row
    del table, run.batch.cache
    assert pool_for(lm.target, plan, 600).num_free > 0


def test_pages_come_back_when_leaves_go() -> None:
    lm = toy(end=99)
    plan = prepare(
        lm, [1] * 40, {"search": "step-beam", "options": {"beams": 2, "ways": 2, "step": 5}, "max_tokens": 30}
    )
    run = new_run(lm, plan, 80)
    assert run.pages is not None and plan.search is not None
    table = Table(Shelf(run), plan.rows[0], 0)
    found = plan.search.search(table)
    try:
        while True:
            next(found)
            run.step()
    except StopIteration as last:
        assert len(last.value[0].written) == 30
    del found, table
    assert run.pages.num_free == run.pages.num_pages


@pytest.mark.parametrize(
    ("reward", "note"),
    [
        (lambda texts: [float("nan") if at == 1 else 1.0 for at, _ in enumerate(texts)], "gave nan for text 1"),
        (lambda texts: [1 / (len(texts[0]) - 12) if len(texts) == 1 else [][1] for _ in texts], "ZeroDivisionError"),
    ],
)
def test_a_reward_that_fails_on_a_text_leaves_it_out(reward: Any, note: str) -> None:
    prompt = [9]
    found = toy().generate(prompt, search="best-of", options={"n": 5, "reward": reward}, max_tokens=12, seed=3)
    assert found.finish_reason in ("eos", "length") and any(note in one for one in found.notes), found.notes


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        (lambda texts: [1.0], "gave 1 values for 4 texts"),
        (lambda texts: 3.0, "gave a float for 4 texts"),
        (lambda texts: [math.nan] * len(texts), "gave nan for text 0 and all others"),
        (lambda texts: 1 / 0, "failed (ZeroDivisionError: division by zero) on text 0"),
    ],
)
def test_a_reward_that_cannot_be_used_ends_its_text_and_no_other(reward: Any, sentence: str) -> None:
    lm = toy()

    def some(texts: Any, prompts: Any) -> Any:
        return reward(texts) if list(prompts[0]) == PROMPTS[0] else [1.0] * len(texts)

    bad, good = lm.generate(PROMPTS[:2], search="best-of", options={"n": 4, "reward": some}, max_tokens=6)
    assert bad.finish_reason == "error" and not bad.tokens and sentence in bad.notes[-1], bad.notes
    assert good.tokens == lm.generate(PROMPTS[1], temperature=1.0, max_tokens=6).tokens


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"search": "best"}, "There is no search 'best'"),
        ({"search": "best-of", "options": {"n": 0}}, "n is 0"),
        ({"search": "best-of", "options": {"n": 2, "n_best": 3}}, "n_best is 3, but only 2"),
        ({"search": "best-of", "options": {"draft_len": 3}}, "Neither the search 'best-of' nor the method"),
        ({"search": "best-of", "options": {"reward": "nowhere.py:f"}}, "The file of reward is not there"),
        ({"search": "best-of", "options": {"reward": "nowhere"}}, "reward is 'nowhere'"),
        ({"search": "best-of", "options": {"reward": 3}}, "reward is 3"),
        ({"search": "best-of", "method": "beam-search"}, "cannot write with the method 'beam-search'"),
        ({"search": "best-of", "method": "typical-acceptance"}, "cannot write with the method 'typical-acceptance'"),
        ({"search": "best-of", "num_samples": 2}, "searches once per prompt"),
        ({"search": 3}, "search is 3"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ConfigError, CapabilityError)) as caught:
        toy().generate([1, 2], max_tokens=4, models={"draft": ToyModel(seed=2)}, **arguments)
    assert sentence in str(caught.value)


def test_a_canvas_is_not_searched() -> None:
    with pytest.raises(CapabilityError):
        LanguageModel(ToyModel(attention="full"), None).generate([1, 2], search="best-of", method="masked-diffusion")


def test_options_of_the_method_go_to_the_method() -> None:
    found = toy().generate(
        [1, 2], search="best-of", method="prompt-lookup", options={"n": 2, "draft-len": 3}, max_tokens=4
    )
    assert found.settings["draft_len"] == 3 and found.search["n"] == 2 and found.guarantee == "approximate"


def test_a_file_of_rewards_is_read_once_it_is_named(tmp_path: Any) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def good(texts, prompts):\n    return [len(p) for p in prompts]\nother = 3\n")
    reward = read_reward("reward", f"{file}:good")
    assert reward(["a"], ["abc"], [0]) == ([3.0], [])
    for name in ("other", "none"):
        with pytest.raises(ConfigError, match="has no function"):
            read_reward("reward", f"{file}:{name}")
    file.write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="cannot be run"):
        read_reward("reward", f"{file}:good")


def test_a_search_that_is_cancelled_gives_what_its_first_row_has() -> None:
    lm, asked = toy(end=99), list[int]()
    found = lm.generate(
        [1, 2],
        search="best-of",
        options={"n": 3},
        max_tokens=30,
        is_cancelled=lambda: bool(asked.append(1)) or len(asked) > 8,
    )
    plain = lm.generate([1, 2], temperature=1.0, max_tokens=30)
    assert found.finish_reason == "cancelled" and 0 < len(found.tokens) < 30
    assert found.tokens == plain.tokens[: len(found.tokens)]


def test_a_search_obeys_constraints_and_stops() -> None:
    lm = outpace.load("stories")
    options = {"n": 3, "n_best": 3, "reward": lambda texts: [float(len(text)) for text in texts]}
    given: dict[str, Any] = {"temperature": 1.0, "regex": "[a-z ]{5,20}", "max_tokens": 16, "stop": ["e"]}
    found = lm.generate("Once upon a time", search="best-of", options=options, **given)
    plain = lm.generate("Once upon a time", num_samples=3, **given)
    assert sorted(one.text for one in found) == sorted(one.text for one in plain)
    assert [len(one.text) for one in found] == sorted((len(one.text) for one in plain), reverse=True)


def test_a_translator_searches_too() -> None:
    lm = outpace.load("translate")
    text = "Ein Hund rennt."
    plain = lm.generate(text, temperature=0.9, max_tokens=12)
    assert lm.generate(text, search="best-of", options={"n": 1}, temperature=0.9, max_tokens=12).text == plain.text
    samples = lm.generate(text, temperature=0.9, max_tokens=12, num_samples=3)
    found = lm.generate(text, search="best-of", options={"n": 3, "n_best": 3}, temperature=0.9, max_tokens=12)
    assert sorted(one.text for one in found) == sorted(one.text for one in samples)


def test_every_search_says_what_it_is() -> None:
    for name in built_in_searches():
        kind = load_search(name)
        assert issubclass(kind, Search) and kind.name == name and kind.summary.endswith(".")
        assert isinstance(kind().reduced(), Search) and set(kind().to_dict()) == {one.name for one in fields(kind)}
