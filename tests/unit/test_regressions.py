"""Faults that a review found, each held down by one small test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import outpace
from outpace import LanguageModel, Sampling
from outpace.cache import Cache
from outpace.errors import CapabilityError, ConfigError
from outpace.sampling import Sampler
from outpace.testing import ToyModel
from outpace.text.stream import TextStream
from outpace.types import Scores

CONTEXT = 40
SHORT = [3, 1, 4, 1, 5]
LONG = [(7 * place + place // 3) % 12 for place in range(CONTEXT - 1)]  # one token short of the whole context


class Strict(ToyModel):
    """A toy that refuses what a real model refuses: entries beyond its context."""

    def score(
        self, tokens: Tensor, position: Tensor, visible: Tensor | None, cache: Cache, *rest: Any, **named: Any
    ) -> Scores:
        lone = tokens.shape[1] if tokens.shape[0] == 1 and visible is None else 1
        assert max(cache.lengths) + lone <= self.capabilities.max_positions
        return super().score(tokens, position, visible, cache, *rest, **named)


@pytest.fixture(scope="module")
def toy() -> LanguageModel:
    return LanguageModel(Strict(max_positions=CONTEXT))


@pytest.fixture(scope="module")
def canvas() -> LanguageModel:
    return LanguageModel(ToyModel(attention="full", max_positions=CONTEXT))


def tokens(results: Sequence[Any]) -> list[list[int]]:
    return [result.tokens for result in results]


def test_layer_skip_drafts_beside_a_row_whose_context_is_full(toy: LanguageModel) -> None:
    options = {"is_adaptive": False, "draft_len": 8}
    batch = toy.generate([LONG, SHORT], max_tokens=100, method="layer-skip", options=options)
    assert tokens(batch) == tokens(toy.generate([LONG, SHORT], max_tokens=100))


def test_a_canvas_does_not_feel_how_long_its_neighbour_is(canvas: LanguageModel) -> None:
    settings = {"max_tokens": 100, "method": "masked-diffusion", "temperature": 0.7}
    alone = [canvas.generate(prompt, **settings) for prompt in (LONG, SHORT)]
    assert tokens(canvas.generate([LONG, SHORT], **settings)) == tokens(alone)


@pytest.mark.parametrize("law", [{"min_tokens": 3}, {"bad_words": [[5]]}, {"repetition_penalty": 1.3}])
def test_a_canvas_refuses_what_it_would_ignore(canvas: LanguageModel, law: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="out of order"):
        canvas.generate(SHORT, method="masked-diffusion", **law)


@pytest.mark.parametrize("word", [[99], [-1], [3, 13]])
def test_a_bad_word_lies_in_the_vocabulary(toy: LanguageModel, word: list[int]) -> None:
    with pytest.raises(ConfigError, match="outside the vocabulary"):
        toy.generate(SHORT, bad_words=[word])


def test_a_lone_string_is_not_its_letters(toy: LanguageModel) -> None:
    assert outpace.api.request.Request(stop="ab").stop == ("ab",)
    assert len(toy.generate(SHORT, max_tokens=4, record="log_probs").log_probs) == 4
    with pytest.raises(ConfigError, match="logprobs"):
        toy.generate(SHORT, record=["logprobs"])


def test_a_tensor_of_ids_is_a_prompt(toy: LanguageModel) -> None:
    assert toy.generate(torch.tensor(SHORT), max_tokens=4).tokens == toy.generate(SHORT, max_tokens=4).tokens


def test_a_row_that_never_stepped_has_a_prompt_all_the_same(toy: LanguageModel) -> None:
    result = toy.generate(SHORT, is_cancelled=lambda: True)
    assert result.finish_reason == "cancelled" and result.usage.num_prompt == len(SHORT)


def test_a_note_belongs_to_its_row(toy: LanguageModel) -> None:
    cut, whole = toy.generate([LONG, SHORT], max_tokens=4)
    assert "max_tokens was cut" in cut.notes[0] and not whole.notes


def test_more_branches_than_words(toy: LanguageModel) -> None:
    words = toy.target.capabilities.vocab_size
    wide = {
        "method": "draft-model",
        "options": {"tree_width": words + 2, "draft_len": 2},
        "models": {"draft": toy.target},
    }
    assert toy.generate(SHORT, max_tokens=9, **wide).tokens == toy.generate(SHORT, max_tokens=9).tokens
    wide["options"] = {"tree_width": 40, "draft_len": 2}
    with pytest.raises(CapabilityError, match="80 tokens at once"):  # more than the whole context
        toy.generate(SHORT, max_tokens=9, **wide)


def test_the_coldest_temperature_is_greedy(toy: LanguageModel) -> None:
    cold = toy.generate(SHORT, max_tokens=6, temperature=1e-308)
    assert cold.tokens == toy.generate(SHORT, max_tokens=6).tokens


def test_processors_work_beyond_half_precision() -> None:
    far = Sampler(Sampling(logit_bias={1: 1e5}), [0])
    assert far.pick(far.process(torch.zeros(1, 3, dtype=torch.float16), None), torch.zeros(1)).tolist() == [1]
    settings = Sampling(presence_penalty=0.01)
    fine = Sampler(settings, [0])
    logits = torch.tensor([[20.0, 20.0, 0.0]], dtype=torch.bfloat16)
    assert fine.process(logits, fine.history([[0]], [0], 3)).argmax().item() == 1


def test_margins_are_numbers_beside_forbidden_words(toy: LanguageModel) -> None:
    banned = [[word] for word in range(13) if word != 7]
    law = {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "typical_p": 0.9, "bad_words": banned}
    assert not any(math.isnan(margin) for margin in toy.generate(SHORT, max_tokens=3, record="margins", **law).margins)


def test_batch_invariance_holds_to_the_end_of_the_context_and_refuses_trees(tiny: Path) -> None:
    lm = outpace.load(tiny, dtype="bfloat16", is_compiled=False)
    length = lm.target.capabilities.max_positions - 24
    prompt = (lm.encode("the quick brown fox jumps over the lazy dog ") * length)[:length]
    fixed = {"max_tokens": 100, "is_batch_invariant": True, "record": "log_probs", "ignore_eos": True}
    plain = lm.generate(prompt, **fixed)
    drafted = lm.generate(prompt, method="jacobi", **fixed)
    assert (drafted.tokens, drafted.log_probs) == (plain.tokens, plain.log_probs) and len(plain.tokens) == 24
    tree = {"draft": str(tiny), "tree_width": 2}
    with pytest.raises(ConfigError, match="chains"):
        lm.generate(prompt, method="draft-model", options=tree, **fixed)


def test_a_character_behind_broken_bytes_is_not_lost() -> None:
    def decode(ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    for broken in (b"\x80", b"\xf0", b"\xf0\x9f", b"a\x80\x80", b"\xe6\x97"):
        written = broken + "🙂語é".encode() + broken
        stream, shown = TextStream(decode), ""
        for token in written:
            stream.push(token)
            shown += stream.release()
        stream.flush()
        assert shown + stream.release(is_final=True) == decode(list(written))
