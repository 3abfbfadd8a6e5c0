"""Set Block Decoding and SDLM: what blocks of one are, and that rows and caches do not show in the text."""

from __future__ import annotations

import itertools

import pytest
import torch

from outpace.api.engine import LanguageModel
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.speculative.set_block import SetBlock, bounded
from outpace.testing.toy import ToyModel
from outpace.train.objectives_block import set_block_canvas

PROMPTS = [[3, 5, 7], [2, 9], [4, 4, 8, 1, 6, 3]]
METHODS = [SetBlock(block=4, choice="entropy", gamma=2.5), SetBlock(block=4, choice="prefix", threshold=0.2)]


def model() -> LanguageModel:
    return LanguageModel(ToyModel(seed=4))


def spelled(text: list[int], method: SetBlock, target: ToyModel, steps: list[int]) -> list[int]:
    """The same text without any cache: every step reads the whole text and the block anew."""
    written: list[int] = []
    block: list[int] = []
    while len(written) < 19:
        block = block or [-1] * max(1, min(method.block, 19 - len(written) - 1))
        whole = text + written
        entries = block if 19 - len(written) > 1 else []
        tokens = torch.tensor([[*whole, *(target.mask_token if t < 0 else t for t in entries)]])
        places = [*range(len(whole)), *(len(whole) + i - (t < 0) for i, t in enumerate(entries))]
        sight = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
        sight[len(whole) :] = True
        cache = target.new_cache(1, 64)
        logits = target.score(tokens, torch.tensor([places]), sight.unsqueeze(0), cache).logits[0].clone()
        logits[:, target.mask_token] = float("-inf")
        laws = logits[[len(whole) - 1, *range(len(whole) + 1, tokens.shape[1])]].double().softmax(-1)
        steps.append(1)
        if method.choice == "prefix":
            count = 1
            while count < len(block) and laws[count].max() >= method.threshold:
                count += 1
            written += laws[:count].argmax(-1).tolist()
            block = []
            continue
        entropy = [float(-sum(p * p.log() for p in law if p > 0)) for law in laws]
        is_open = [i for i, t in enumerate(block) if t < 0]
        sets = [list(s) for n in range(len(is_open), 0, -1) for s in itertools.combinations(is_open, n)]
        fitting = [
            s for s in sets if len(s) == 1 or sum(entropy[i] for i in s) - max(entropy[i] for i in s) <= method.gamma
        ]
        best = min((s for s in fitting if len(s) == len(fitting[0])), key=lambda s: sum(entropy[i] for i in s))
        for i in best:
            block[i] = int(laws[i].argmax())
        if min(block) >= 0:
            written, block = written + block, []
    return written


@pytest.mark.parametrize("choice", ["entropy", "prefix"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_block_of_one_is_plain_decoding(choice: str, temperature: float) -> None:
    plain = model().generate(PROMPTS, max_tokens=19, temperature=temperature, seed=3)
    found = model().generate(
        PROMPTS, method=SetBlock(block=1, choice=choice), max_tokens=19, temperature=temperature, seed=3
    )
    assert [one.tokens for one in found] == [one.tokens for one in plain]


@pytest.mark.parametrize("method", METHODS, ids=lambda one: one.choice)
def test_ragged_rows_and_the_cache_do_not_show(method: SetBlock) -> None:
    together = model().generate(PROMPTS, method=method, max_tokens=19, temperature=0)
    for prompt, one in zip(PROMPTS, together, strict=True):
        steps: list[int] = []
        assert one.tokens == spelled(prompt, method, ToyModel(seed=4), steps)
        alone = model().generate(prompt, method=method, max_tokens=19, temperature=0)
        assert alone.tokens == one.tokens
        assert len(steps) < 19  # some steps write more than one token
        assert alone.usage.target_nfe <= len(steps) + 1  # and the prompt


def test_refuses_what_it_cannot_write() -> None:
    with pytest.raises(ConfigError, match="0"):
        SetBlock(block=0)
    with pytest.raises(CapabilityError, match="model's context is 4096"):
        model().generate([1, 2], method=SetBlock(block=100_000), max_tokens=4)
    bare = ToyModel(seed=4)
    bare.mask_token = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="names no mask token"):
        LanguageModel(bare).generate([1, 2], method=SetBlock(), max_tokens=4)


def test_a_training_block_sees_itself_and_the_text_before_it_alone() -> None:
    tokens = torch.arange(2, 35).repeat(2, 1)
    canvas = set_block_canvas(tokens, 8, 1, 0)
    assert canvas.pieces is not None and canvas.positions is not None
    sight = torch.zeros(64, 64, dtype=torch.bool)
    for start, stop, ranges, visible in canvas.pieces:
        columns = torch.cat([torch.arange(a, b) for a, b in ranges])
        sight[start:stop, columns] = visible
    for row, column in itertools.product(range(64), range(64)):
        if row >= 32:
            assert sight[row, column] == (32 <= column <= row)
        elif column < 32:
            assert sight[row, column] == (row // 8 == column // 8)
        else:
            assert sight[row, column] == (column - 32 <= row // 8 * 8)
    # Every asked output says the token behind its position where it is a mask or text.
    is_mask = canvas.inputs == 1
    for place, token, weight in zip(canvas.outputs, canvas.targets, canvas.weights, strict=True):
        row, entry = divmod(int(place), 64)
        if weight > 0:
            assert is_mask[row, entry] or entry >= 32
            assert token == tokens[row, canvas.positions[entry] + 1]


def test_bounded_takes_the_largest_set_that_the_bound_allows() -> None:
    entropy = [0.3, 0.05, 0.9, 0.02, 0.2]
    for gamma in (0.0, 0.04, 0.06, 0.08, 0.3, 0.6, 5.0):
        found = bounded(entropy, [0, 1, 2, 3, 4], gamma)
        sets = [set(s) for n in range(1, 6) for s in itertools.combinations(range(5), n)]
        allowed = [s for s in sets if len(s) == 1 or sum(entropy[i] for i in s) - max(entropy[i] for i in s) <= gamma]
        assert len(found) == max(map(len, allowed))
        assert found in allowed
