"""Parts of a prompt in no order: swapped they leave the text; the law is what transformers makes of the mask."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import outpace
from outpace.api.engine import LanguageModel
from outpace.api.infill import read_sets
from outpace.api.sets import read_parts
from outpace.errors import CapabilityError, ConfigError
from outpace.models.unordered import SetPrompt, SetTarget, lay_sets

FIRST, LAST = [7, 3, 9], [11, 5]
MEMBERS = [[21, 22, 23], [31], [41, 42]]
ORDERS = list(itertools.permutations(MEMBERS))


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return outpace.load("stories-draft", dtype="float64", is_compiled=False)


def letters(text: str, is_first: bool) -> list[int]:
    return [1] * is_first + [ord(letter) for letter in text]


def test_members_begin_at_one_place_and_the_rest_behind_the_longest() -> None:
    laid = lay_sets([[7, 8], [[1, 2, 3], [4]], [5], [[6], [9]], [10]])
    assert laid.tokens == (7, 8, 1, 2, 3, 4, 5, 6, 9, 10)
    assert laid.positions == (0, 1, 2, 3, 4, 2, 5, 6, 6, 7)
    assert laid.sets == (0, 0, 1, 1, 1, 1, 0, 2, 2, 0)
    assert laid.members == (0, 0, 0, 0, 0, 1, 0, 0, 1, 0)
    assert laid.shift == 2


def test_marks_and_lists_say_the_same() -> None:
    parts = read_sets("ab[[c|dd]]e[[f|g]]")
    assert parts == ["ab", ["c", "dd"], "e", ["f", "g"]]
    assert read_parts(parts, letters) == lay_sets([[1, 97, 98], [[99], [100, 100]], [101], [[102], [103]]])
    begins = read_parts([["a", "b"], "c"], letters)  # the start token stands before the set, not in its first member
    assert begins == lay_sets([[1], [[97], [98]], [99]])
    assert read_parts([[5, 6], [[7], [8]]], letters) == lay_sets([[5, 6], [[7], [8]]])


def seen_in(laid: SetPrompt, more: int) -> tuple[Tensor, Tensor]:
    """Return who sees whom and the positions of a prompt and `more` tokens behind it, told pair by pair."""
    size = len(laid.tokens) + more
    sees = torch.zeros(size, size, dtype=torch.bool)
    for i in range(size):
        for j in range(i + 1):
            both = max(i, j) < len(laid.tokens)
            is_apart = both and laid.sets[i] == laid.sets[j] > 0 and laid.members[i] != laid.members[j]
            sees[i, j] = not is_apart
    places = [*laid.positions, *(max(laid.positions) + 1 + step for step in range(more))]
    return sees, torch.tensor([places])


def oracle(model: Any, laid: SetPrompt, text: list[int]) -> Tensor:
    """Return [T, V] what transformers makes of one whole forward under an explicit mask and explicit positions."""
    sees, places = seen_in(laid, len(text))
    mask = torch.zeros(sees.shape, dtype=torch.float64).masked_fill(~sees, torch.finfo(torch.float64).min)
    tokens = torch.tensor([[*laid.tokens, *text]])
    logits: Tensor = model(tokens, attention_mask=mask[None, None], position_ids=places, use_cache=False).logits[0]
    return logits


def ours(reader: SetTarget, text: list[int]) -> Tensor:
    """Return [1 + T, V] what follows the prompt, and each token behind it, read one by one from the cache."""
    size, found = len(reader.laid.tokens), []
    cache = reader.new_cache(1, size + len(text) + 4)
    at = 0
    for piece in ([*reader.laid.tokens], *([token] for token in text)):
        places = torch.arange(at, at + len(piece))[None]
        found.append(reader.score(torch.tensor([piece]), places, None, cache).logits[0, -1])
        cache.keep([range(len(piece))])
        at += len(piece)
    return torch.stack(found)


# The norms and turns of this Llama are computed in float32 whatever its weights are.
@pytest.mark.parametrize(("kind", "close"), [("llama", 1e-5), ("gpt2", 1e-9)])
@torch.no_grad()
def test_the_law_is_that_of_one_masked_forward_in_every_order(kind: str, close: float) -> None:
    hf = pytest.importorskip("transformers")
    from outpace.models.hf import wrap

    small = {"vocab_size": 61, "bos_token_id": None, "eos_token_id": None}
    configs = {
        "llama": lambda: hf.LlamaConfig(
            **small,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
            initializer_range=0.3,
        ),
        "gpt2": lambda: hf.GPT2Config(**small, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3),
    }
    torch.manual_seed(1)
    model = hf.AutoModelForCausalLM.from_config(configs[kind](), attn_implementation="eager").double().eval()
    text, laws = [12, 30, 31, 8], []
    target = wrap(model)
    for members in ORDERS:
        laid = lay_sets([FIRST, list(members), LAST])
        found = ours(SetTarget.around(target, laid), text)
        want = oracle(model, laid, text)[len(laid.tokens) - 1 :]
        assert (found - want).abs().max() < close
        laws.append(found)
    assert max(float((law - laws[0]).abs().max()) for law in laws) < close
    plain = ours(SetTarget(target, lay_sets([[*FIRST, *itertools.chain(*MEMBERS), *LAST]])), text)
    assert (plain - laws[0]).abs().max() > 1e-2  # the mask and the places matter


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 5}, {"method": "prompt-lookup"}])
def test_swapped_members_leave_the_text(lm: LanguageModel, options: dict[str, Any]) -> None:
    members = [" a red ball and a red hat,", " a dog,", " two cars,"]
    texts = {
        tuple(lm.generate_sets(["Tom had", list(order), " and he said"], max_tokens=16, **options).tokens)
        for order in itertools.permutations(members)
    }
    assert len(texts) == 1


def test_swapped_members_leave_the_law_of_a_native_model(lm: LanguageModel) -> None:
    text = [12, 30, 31, 8]
    found = [ours(SetTarget.around(lm.target, lay_sets([FIRST, list(order), LAST])), text) for order in ORDERS]
    plain = [
        ours(SetTarget(lm.target, lay_sets([[*FIRST, *itertools.chain(*order), *LAST]])), text) for order in ORDERS
    ]
    assert max(float((law - found[0]).abs().max()) for law in found) < 1e-10
    assert min(float((law - found[0]).abs().max()) for law in plain) > 1e-2  # the mask and the places matter
    assert min(float((law - plain[0]).abs().max()) for law in plain[1:]) > 1e-2


def test_drafts_rows_and_long_prompts_leave_the_text(lm: LanguageModel) -> None:
    members = [" a red ball" * 60, " a dog and a cat" * 50]  # longer than a piece of a prompt
    parts = ["Tom had", members, " and"]
    plain = lm.generate_sets(parts, max_tokens=12, temperature=0.8, num_samples=2)
    drafted = lm.generate_sets(parts, max_tokens=12, temperature=0.8, num_samples=2, method="prompt-lookup")
    swapped = lm.generate_sets(["Tom had", members[::-1], " and"], max_tokens=12, temperature=0.8, num_samples=2)
    assert [one.tokens for one in plain] == [one.tokens for one in drafted] == [one.tokens for one in swapped]


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ("ab", "The parts are a str"),
        (["ab", "c"], "No part is a set"),
        (["ab", ["c"]], "A set has one member"),
        (["ab", ["c", ""]], "A set has one member, or an empty one"),
        (["ab", [["x"], [2]]], "a token of a member"),
    ],
)
def test_parts_that_say_nothing_are_refused(parts: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_parts(parts, letters)


def test_what_cannot_be_read_so_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="has no set"):
        read_sets("a plain prompt")
    with pytest.raises(ConfigError, match="outside the vocabulary"):
        lm.generate_sets([[5], [[6], [10**6]]])
    with pytest.raises(ConfigError, match="is not recalled"):
        lm.generate_sets(["a", ["b", "c"]], recall=outpace.Recall())  # type: ignore[call-arg]
    canvas = outpace.load("stories-mask")
    with pytest.raises(CapabilityError, match="cannot read parts in no order"):
        canvas.generate_sets(["a", ["b", "c"]])
    reader = SetTarget(lm.target, lay_sets([FIRST, MEMBERS]))
    cache = reader.new_cache(1, 16)
    reader.score(torch.tensor([[*FIRST, 21]]), torch.arange(4)[None], None, cache)
    cache.keep([range(4)])
    with pytest.raises(ConfigError, match="begins inside a set"):
        reader.score(torch.tensor([[22]]), torch.tensor([[4]]), None, cache)


def test_a_model_that_counts_slots_is_refused() -> None:
    hf = pytest.importorskip("transformers")
    from outpace.models.hf import wrap

    config = hf.BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    target = wrap(hf.BloomForCausalLM(config).eval())
    with pytest.raises(CapabilityError, match="in no order"):
        SetTarget.around(target, lay_sets([FIRST, MEMBERS]))
    target.capabilities = dataclasses.replace(target.capabilities, has_tree=True)  # as if it were not known
    with pytest.raises(CapabilityError, match="apart by their order"):
        SetTarget.around(target, lay_sets([FIRST, MEMBERS]))
