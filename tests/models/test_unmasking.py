"""The unmasking test: it catches a wrong shift on trained weights, and says nothing where it cannot know."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_layouts import LAYOUTS, MASK, VOCAB, written
from torch import Tensor

import outpace
from outpace import zoo
from outpace.errors import ConfigError, ModelError
from outpace.models.loading import load_model, read_config
from outpace.models.unmasking import SENTENCE, Unmasking, check_unmasking, unmask_test
from outpace.testing.toy import ToyModel
from outpace.text.tokenizer import Tokenizer
from outpace.types import Adapter, Capabilities, Scores

MASKED = [name for name in zoo.names() if "mask_token_id" in read_config(zoo.path(name))]


class Knows(Adapter):
    """Knows a text by heart: an output names the next token (shift) or its own.

    `is_odd`: only where that token is masked, as training asks; elsewhere it names the one of the other setting.
    """

    def __init__(self, text: Sequence[int], is_shifted: bool, is_declared: bool, is_odd: bool = False) -> None:
        self.text, self.is_shifted, self.is_odd = torch.tensor(list(text)), is_shifted, is_odd
        self.capabilities = Capabilities(VOCAB, 96, attention="full", mask_id=MASK, logits_shift=is_declared)

    def new_cache(self, rows: int, capacity: int, counter: Any = None) -> None:
        del rows, capacity, counter

    def embed(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def head(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError

    def score(self, tokens: Tensor, position: Tensor, visible: Any, cache: Any, ask: Any = None) -> Scores:
        assert torch.equal(torch.where(tokens == MASK, self.text, tokens), self.text.expand_as(tokens))
        assert (tokens[:, 0] != MASK).all() and visible is None and ask is None
        own, following = (text.expand_as(tokens) for text in (self.text, self.text.roll(-1)))
        says, other = (following, own) if self.is_shifted else (own, following)
        is_masked = (tokens == MASK).roll(-1, 1) if self.is_shifted else tokens == MASK
        says = torch.where(is_masked, says, other) if self.is_odd else says
        raw = torch.nn.functional.one_hot(says, VOCAB) * 9.0
        return Scores(torch.cat([raw[:, :1], raw[:, :-1]], 1) if self.capabilities.logits_shift else raw)


TEXT = list(range(40, 70))


def test_of_blocks_behind_causal_text_one_block_is_asked() -> None:
    """In it every token sees every other, as under full attention."""
    tokens = [1, 5, 2, 9, 3, 3, 7, 8, 4, 2, 6, 1]
    for size in (8, 64):
        blocks, full = (ToyModel(attention=kind, block_size=size) for kind in ("causal-block", "full"))
        assert unmask_test(blocks, tokens) == unmask_test(full, tokens[:size])


@pytest.mark.parametrize("is_odd", [False, True])
@pytest.mark.parametrize("is_shifted", [False, True])
def test_a_model_that_knows_the_text(is_shifted: bool, is_odd: bool) -> None:
    right = unmask_test(Knows(TEXT, is_shifted, is_shifted, is_odd), TEXT)  # type: ignore[arg-type]
    wrong = unmask_test(Knows(TEXT, is_shifted, not is_shifted, is_odd), TEXT)  # type: ignore[arg-type]
    assert (right.verdict, wrong.verdict) == ("right", "wrong")
    assert right.count == wrong.count == len(TEXT) - 3  # all but the first two and the last
    assert (right.hits, right.other_hits) == (right.count, 0) == (wrong.other_hits, wrong.hits)
    assert right.log_prob == pytest.approx(wrong.other_log_prob) and right.log_prob > wrong.log_prob + 8


@pytest.mark.parametrize("name", MASKED)
def test_a_wrong_flag_on_a_trained_model_is_caught(name: str) -> None:
    declared = bool(read_config(zoo.path(name)).get("logits_shift", False))
    lm = outpace.load(name)
    assert lm.notes == []
    found = unmask_test(lm.target, lm.encode(SENTENCE))
    assert (found.verdict, found.is_shifted) == ("right", declared)
    with pytest.raises(ModelError, match="wrong for these weights") as caught:
        outpace.load(name, card={"logits_shift": not declared})
    assert f'card={{"logits_shift": {declared}}}' in caught.value.hint
    assert f"--card logits_shift={str(declared).lower()}" in caught.value.hint
    assert f"{found.hits} " in str(caught.value) and f"of {found.count} masked tokens" in str(caught.value)
    unchecked = outpace.load(name, card={"logits_shift": not declared}, is_checked=False)
    assert unchecked.target.capabilities.logits_shift is not declared


def test_there_is_a_trained_masked_model() -> None:
    assert "stories-mask" in MASKED


@pytest.mark.parametrize("name", LAYOUTS)
def test_random_weights_are_never_accused(name: str, model_root: Path) -> None:
    """Of 40 texts per layout and setting, each with words that occur again and again."""
    directory, _ = written(name, model_root)
    source = torch.Generator().manual_seed(1)
    for is_shifted in (False, True):
        model = load_model(directory, "float32", card={"logits_shift": is_shifted})
        for _ in range(40):
            text = torch.randint(0, 25, (31,), generator=source).tolist()
            assert unmask_test(model, text).verdict == "unclear"


def test_one_forward_on_a_cache_of_its_own(model_root: Path) -> None:
    directory, _ = written("dream", model_root)
    model = load_model(directory, "float64")
    caches = []
    new_cache = model.new_cache
    model.new_cache = lambda *given: caches.append(new_cache(*given)) or caches[-1]  # type: ignore
    unmask_test(model, range(100))
    assert [(cache.counter.nfe, cache.counter.positions) for cache in caches] == [(1, 6 * 64)]


def test_too_little_to_conclude() -> None:
    assert Unmasking(False, 7, 0, 7, -9.0, 0.0).verdict == "unclear"  # too few positions
    assert Unmasking(False, 30, 10, 15, -9.0, -3.0).verdict == "unclear"  # too few hits apart
    assert Unmasking(False, 30, 5, 25, -3.0, -2.5).verdict == "unclear"  # hardly likelier
    assert Unmasking(False, 30, 5, 25, -3.0, -4.5).verdict == "unclear"  # hits and likelihood disagree
    assert Unmasking(False, 30, 5, 25, -3.0, -1.5).verdict == "wrong"
    assert Unmasking(True, 30, 25, 5, -1.5, -3.0).verdict == "right"


def test_what_cannot_be_tested(model_root: Path, tiny: Path) -> None:
    causal, tokenizer = load_model(tiny), Tokenizer.from_directory(tiny)
    assert check_unmasking(causal, tokenizer) == check_unmasking(causal, None) == ""
    masked = load_model(written("llada", model_root)[0], "float32")
    assert "no tokenizer" in check_unmasking(masked, None)
    with pytest.raises(ConfigError, match="four tokens"):
        unmask_test(masked, [1, 2, 3])
    with pytest.raises(ConfigError, match="masked model"):
        unmask_test(causal, TEXT)


def test_a_note_where_the_test_could_not_tell(tiny: Path, tmp_path: Path) -> None:
    """Random weights with a tokenizer: they load, write, and say that nothing is known."""
    folder = Path(shutil.copytree(tiny, tmp_path / "masked"))
    config = json.loads((folder / "config.json").read_text())
    more = {"model_type": "outpace_masked_llama", "mask_token_id": 7}
    (folder / "config.json").write_text(json.dumps(config | more))
    for card in (None, {"logits_shift": True}, {"attention": "block", "block_length": 8}):
        lm = outpace.load(folder, dtype="float32", card=card)
        assert len(lm.notes) == 1 and "could not tell" in lm.notes[0]
        result = lm.generate("the quick", method="masked-diffusion", max_tokens=4, ignore_eos=True)
        assert lm.notes[0] in result.notes and len(result.tokens) == 4
