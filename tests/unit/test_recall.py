"""What a model has read before is not read again, and changes no token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace import Conversation, LanguageModel, Recall, kernels
from outpace.api import recall as recalling
from outpace.errors import ConfigError
from outpace.methods import registry

pytestmark = pytest.mark.skipif(kernels.load_library() is None, reason=kernels.note())
TEMPLATE = (
    "{% for m in messages %}{{ 'user: ' if m.role == 'user' else 'story:' }}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}story:{% endif %}"
)
PAGE = 32
SAID = (
    "Once upon a time there was a little dog who lived in a big house with a red door and a green garden.",
    "The dog and the cat and the dog and the cat went to the park to play with the ball in the sun.",
    "Then the cat said to the dog that she was sad, and the dog and the cat went home to sleep.",
)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    """The shipped model with a template, as an instruct model has one."""
    lm = outpace.load("stories", dtype="float32", context=1024)
    assert lm.tokenizer is not None
    lm.tokenizer.templates = {"default": TEMPLATE}
    return lm


def talk(lm: LanguageModel, is_kept: bool, **settings: Any) -> Conversation:
    held = Conversation(lm, **{"max_tokens": 24, "ignore_eos": True, **settings})
    held.recall = held.recall if is_kept else None
    return held


class Told:
    """What a recall must know: the full pages of all texts that were written."""

    def __init__(self) -> None:
        self.texts: list[list[int]] = []

    def add(self, result: outpace.Result) -> int:
        """Return how much of a prompt was known, and note its text."""
        known = max([shared(text, result.prompt_tokens[:-1]) for text in self.texts], default=0)
        text = [*result.prompt_tokens, *result.tokens][:-1]  # the last token was never forwarded
        self.texts.append(text[: len(text) // PAGE * PAGE])
        return known


def shared(left: list[int], right: list[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(left), len(right)))


def forwarded(result: outpace.Result) -> int:
    return result.usage.positions_scored


@pytest.mark.parametrize(
    ("method", "temperature"),
    [(name, 0.0) for name in ("autoregressive", "auto", "suffix", "draft-model", "token-recycling")]
    + [("auto", 0.9), ("draft-model", 0.9)],
)
def test_answers_are_the_same_and_only_what_is_new_is_read(lm: LanguageModel, method: str, temperature: float) -> None:
    law = {"method": method, "temperature": temperature, "seed": 5, "max_tokens": 12 if temperature else 24}
    kept, anew = talk(lm, True, **law), talk(lm, False, **law)
    told = Told()
    for text in SAID:
        ours, theirs = kept.say(text), anew.say(text)
        assert (ours.tokens, ours.prompt_tokens) == (theirs.tokens, theirs.prompt_tokens)
        known = told.add(ours)
        assert theirs.cached_tokens == 0
        assert ours.cached_tokens == (0 if method == "token-recycling" else known)  # it looks at every prompt position
        if method == "autoregressive":
            assert forwarded(theirs) - forwarded(ours) == ours.cached_tokens
    assert known >= 2 * PAGE


def test_undo_goes_back_to_a_branch_and_retry_takes_another(lm: LanguageModel) -> None:
    kept, anew, told = (*(talk(lm, is_kept, temperature=1.0, max_tokens=10) for is_kept in (True, False)), Told())

    def both(name: str, *said: str) -> int:
        ours, theirs = getattr(kept, name)(*said), getattr(anew, name)(*said)
        assert ours.tokens == theirs.tokens and ours.cached_tokens == told.add(ours)
        return int(ours.cached_tokens)

    both("say", SAID[0])
    found = [both("say", SAID[1]), both("retry")]
    for held in (kept, anew):
        held.undo()
    found += [both("say", SAID[2]), both("say", SAID[1])]
    assert 0 < found[0] < found[1] and found[2] >= found[0] and found[3] > found[2]


def test_a_saved_conversation_begins_where_the_same_one_was(lm: LanguageModel, tmp_path: Path) -> None:
    first, told = talk(lm, True), Told()
    told.add(first.say(SAID[0]))
    first.save(tmp_path / "talk.json")
    fresh, sharing = (Conversation.load(tmp_path / "talk.json", lm) for _ in range(2))
    sharing.recall = first.recall
    ours, theirs = sharing.say(SAID[1]), fresh.say(SAID[1])
    assert ours.tokens == theirs.tokens
    assert (ours.cached_tokens, theirs.cached_tokens) == (told.add(ours), 0) and ours.cached_tokens > 0


def test_a_cancelled_answer_leaves_what_was_read(lm: LanguageModel) -> None:
    held, pieces, told = talk(lm, True), list[str](), Told()
    first = held.say(" ".join(SAID), on_text=lambda _, text: pieces.append(text), is_cancelled=lambda: len(pieces) > 2)
    assert first.finish_reason == "cancelled"
    told.add(first)
    second = held.say(SAID[1])
    assert second.cached_tokens == told.add(second) > 0
    assert second.tokens == lm.generate(second.prompt_tokens, max_tokens=24, ignore_eos=True).tokens


def test_a_pool_that_grows_hands_on_what_it_holds(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recalling, "_FIRST", 64)
    monkeypatch.setattr(recalling, "_SPARE", 0)
    kept, anew = talk(lm, True), talk(lm, False)
    sizes, told = list[int](), Told()
    for text in SAID * 2:
        ours, theirs = kept.say(text), anew.say(text)
        assert ours.tokens == theirs.tokens and ours.cached_tokens == told.add(ours)
        assert kept.recall is not None and kept.recall._prefixes is not None
        sizes.append(kept.recall._prefixes.pages.num_pages)
    assert sizes[0] < sizes[-1]


def test_texts_that_crowd_a_pool_drive_out_old_ones(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recalling, "_FIRST", 64)
    monkeypatch.setattr(recalling, "_SPARE", 0)
    recall, prompts = Recall(), [f"Number {index}. {' '.join(SAID)}" for index in range(16)]
    for prompt in prompts:
        kept = lm.generate(prompt, max_tokens=8, recall=recall)
        assert kept.tokens == lm.generate(prompt, max_tokens=8).tokens
    assert recall._prefixes is not None and recall._prefixes.pages.num_pages < 2 * len(prompts)
    assert lm.generate(prompts[-1], max_tokens=4, recall=recall).cached_tokens >= 2 * PAGE
    assert lm.generate(prompts[0], max_tokens=4, recall=recall).cached_tokens < PAGE


def test_every_exact_method_may_use_one(lm: LanguageModel) -> None:
    """Text read in one method's run serves another's, and what its runs leave serves the next one."""
    recall, prompt, tried = Recall(), lm.encode(" ".join(SAID)), 0
    expected = lm.generate(prompt, max_tokens=12).tokens
    for name in registry.method_names():
        try:
            found = lm.generate(prompt, max_tokens=12, method=name, recall=recall)
        except outpace.OutpaceError:  # it needs other models, or another kind of target
            continue
        tried += 1
        if found.guarantee == "exact":
            assert found.tokens == expected, name
    after = lm.generate(prompt, max_tokens=12, recall=recall)
    assert tried > 10 and after.tokens == expected and after.cached_tokens > 0


def test_another_model_begins_anew(lm: LanguageModel) -> None:
    other, recall = outpace.load("stories-draft", dtype="float32"), Recall()
    for model in (lm, other, lm):
        prompt = model.encode(SAID[0])
        kept = model.generate(prompt, max_tokens=24, recall=recall)
        assert kept.cached_tokens == 0 and kept.tokens == model.generate(prompt, max_tokens=24).tokens
    assert lm.generate(SAID[0], max_tokens=24, recall=recall).cached_tokens > 0


def test_what_it_cannot_serve_is_read_whole(lm: LanguageModel) -> None:
    eager, masked = outpace.load("stories", dtype="float32", is_compiled=False), outpace.load("stories-mask")
    for model, settings in ((eager, {}), (masked, {"method": "masked-diffusion"}), (lm, {"num_samples": 2})):
        recall = Recall()
        for _ in range(2):
            found = model.generate(SAID[0], max_tokens=4, recall=recall, **settings)
            for result in found if isinstance(found, list) else [found]:
                assert result.cached_tokens == 0
    with pytest.raises(ConfigError, match="recall"):
        lm.generate(SAID[0], recall="yes")  # type: ignore[call-overload]


def test_a_stream_may_use_one(lm: LanguageModel) -> None:
    recall = Recall()
    texts = ["".join(lm.stream(SAID[0], max_tokens=30, recall=recall)) for _ in range(2)]
    assert texts[0] == texts[1] and lm.generate(SAID[0], max_tokens=2, recall=recall).cached_tokens > 0
