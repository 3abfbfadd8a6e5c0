"""Aggressive decoding: copies that find their place again, and far fewer forwards on texts that repeat their source."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from outpace.draft.copying import Copy
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.speculative.generalised_aggressive import GeneralisedAggressive
from outpace.methods.speculative.input_guided import InputGuided
from outpace.models.one_pass import OnePassModel, end_law
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.sampling import Sampling, row_key
from outpace.testing.world import PeriodicModel, drive, make_run
from outpace.text.tokenizer import Tokenizer
from outpace.types import Adapter
from outpace.zoo import path

VOCAB, END, START, WRONG = 60, 0, 1, 50  # a word w from 2 to 9 is misspelt as w + WRONG
LAWS = {"greedy": Sampling(), "sampled": Sampling(temperature=0.7)}


def steps(original: Sequence[int], text: Sequence[int]) -> int:
    """How many forwards a text takes whose every token is decided by itself."""
    copy, at, count = Copy(original), 0, 0
    while at < len(text):
        drafts = copy.ahead(len(text))
        same = next((i for i, (a, b) in enumerate(zip(drafts, text[at:], strict=False)) if a != b), None)
        kept = min(len(drafts), len(text) - at) if same is None else same
        copy.write(text[at : at + kept + 1])
        at, count = at + kept + 1, count + 1
    return count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ([11, 12, 13, 14, 15, 16, 17], 1),
        ([11, 12, 13, 99, 15, 16, 17], 2),  # a replaced word costs the step that wrote it
        ([11, 12, 13, 98, 99, 16, 17], 3),  # two of them one more
        ([11, 12, 13, 15, 16, 17], 2),  # a word left out: the one behind it is near
        ([11, 12, 13, 99, 14, 15, 16, 17], 3),  # a new word: the one behind it says that it was no replacement
        ([14, 15, 16, 17, 11, 12, 13], 5),  # moved: two words say where
    ],
    ids=str,
)
def test_copying_goes_on_behind_a_change(text: list[int], count: int) -> None:
    assert steps([11, 12, 13, 14, 15, 16, 17], text) <= count


def test_whatever_is_written_a_copy_stays_within_its_original() -> None:
    draw = random.Random(3)
    for _ in range(200):
        original, text = ([draw.randrange(6) for _ in range(draw.randrange(12))] for _ in range(2))
        copy = Copy(original, largest=draw.randrange(1, 5))
        for token in text:
            copy.write([token])
            fork = copy.copy()
            fork.write(original)
            assert copy.ahead(3) == original[copy.at + copy.num_lost :][:3]
        assert 1 <= steps(original, [*text, 9]) <= len(text) + 1


def test_a_single_token_is_believed_near_and_ahead_alone() -> None:
    copy = Copy([1, 2, 3, 4, 5, 6, 7, 8, 1])
    copy.write([1, 2, 3, 1])  # an old word, and one far ahead
    assert (copy.at, copy.ahead(2)) == (3, [5, 6])
    copy.write([6])
    assert copy.ahead(2) == [7, 8]


def test_tokens_before_a_text_say_nothing() -> None:
    copy = Copy([4, 5, 6], passed=frozenset({40}))
    copy.write([40, 4, 40])
    assert copy.ahead(9) == [5, 6]


def corrected(source: Sequence[int]) -> list[int]:
    """Words misspelt are put right, doubled ones are written once, and 20 is followed by 21."""
    found: list[int] = []
    for word in source[:-1]:
        right = word - WRONG if word >= WRONG else word
        if found[-1:] != [right]:
            found += [right] if right != 20 else [20, 21]
    return [*found, source[-1]]


class Corrector(OnePassModel):
    """What a trained corrector would be: sure of each token of the corrected text; some are spoilt, if asked for."""

    def __init__(self, spoilt: float = 0.0) -> None:
        super().__init__(VOCAB, 512, 512, START)
        self.dtype, self.spoilt = torch.float64, spoilt

    def write(self, sources: Sequence[list[int]]) -> list[Tensor]:
        return [self._text(source) for source in sources]

    def _text(self, source: list[int]) -> Tensor:
        draw, text = random.Random(sum(source)), corrected(source)
        words = [draw.randrange(2, 40) if draw.random() < self.spoilt else word for word in text[:-1]]
        laws = torch.full((len(words), VOCAB), -2.0, dtype=torch.float64)
        laws[range(len(words)), words] = 4.0
        return torch.cat([laws, end_law(VOCAB, END, torch.float64)])


def mistaken(count: int = 6, share: float = 0.08) -> list[list[int]]:
    """Sources of 20 to 45 words, some misspelt, doubled, or without what should follow them."""
    draw, found = random.Random(1), []
    for _ in range(count):
        words = [draw.randrange(2, 48) for _ in range(draw.randrange(20, 46))]
        wrong = [word + WRONG if word < 10 and draw.random() < 4 * share else word for word in words]
        doubled = [word for word in wrong for _ in range(2 if draw.random() < share / 2 else 1)]
        found.append([*doubled, END])
    return found


def written(method: Method, law: Sampling, target: Adapter, **models: Adapter) -> tuple[list[list[int]], Run, int]:
    """The texts of all sources side by side, and the forwards that each took alone, summed."""

    def rows() -> list[Row]:
        keys = [row_key(5, i) for i in range(len(sources))]
        return [Row([START], 1, key, 64, (END,), source=source) for key, source in zip(keys, sources, strict=True)]

    sources = mistaken()
    given: dict[str, Any] = {"target": target, "models": models, "capacity": 160}
    batch, calls = rows(), 0
    run = drive(make_run(method, law, **given), batch)
    for row, other in zip(rows(), batch, strict=True):
        drive(make_run(method, law, **given), [row])
        assert row.written == other.written
        calls += row.usage.num_steps
    return [row.written for row in batch], run, calls


@pytest.mark.parametrize("law", LAWS)
def test_a_correction_takes_a_third_of_the_forwards(law: str) -> None:
    target = Corrector()
    plain, _, calls = written(Autoregressive(), LAWS[law], target)
    assert law != "greedy" or plain == [corrected(source) for source in mistaken()]
    for method in (InputGuided(), InputGuided(is_adaptive=True), InputGuided(draft_len=5, max_match=1)):
        found, _, fewer = written(method, LAWS[law], target)
        assert found == plain
        if law == "greedy":
            assert fewer * (3 if method == InputGuided() else 1.8) <= calls


@pytest.mark.parametrize("law", LAWS)
def test_a_drafter_of_one_pass_writes_the_whole_text_once(law: str) -> None:
    target, drafter = Corrector(), Corrector(spoilt=0.1)
    plain, _, calls = written(Autoregressive(), LAWS[law], target)
    found, run, fewer = written(GeneralisedAggressive(), LAWS[law], target, draft=drafter)
    assert found == plain
    assert law != "greedy" or fewer * 1.5 <= calls
    assert run.counters["draft"].nfe == 1  # for all rows together


def test_what_a_drafter_by_tokens_writes_ends_with_its_end() -> None:
    target = Corrector()
    plain, _, _ = written(Autoregressive(), LAWS["greedy"], target)
    slow = Corrector(spoilt=0.1)
    slow.capabilities = replace(slow.capabilities, is_one_pass=False)
    found, run, _ = written(GeneralisedAggressive(most=40), LAWS["greedy"], target, draft=slow)
    assert found == plain
    assert run.counters["draft"].nfe <= 41  # the longest text, and the decoder's start


def test_a_decoder_copies_its_prompt() -> None:
    prompt = [*range(6), 3, 4, 5]
    rows = [Row(list(prompt), len(prompt), row_key(1, 0), 30) for _ in range(2)]
    target = PeriodicModel()
    drive(make_run(Autoregressive(), target=target), rows[:1])
    drive(make_run(InputGuided(), target=target), rows[1:])
    assert rows[0].written == rows[1].written
    assert rows[1].usage.num_steps < 15  # six tokens a lap, copied from the prompt


def test_a_source_is_copied_without_what_stands_before_it() -> None:
    tokenizer = Tokenizer.from_directory(path("translate"))
    ids = tokenizer.encode("Ein Mann.")
    assert ids[-1] == tokenizer.eos_id
    assert tokenizer.rewritten([2, *ids]) == ids  # 2 starts the decoder
    assert tokenizer.rewritten(ids[:-1]) == ids[:-1] and tokenizer.rewritten([2]) == []
