"""Streams with notes: zeros are the trunk, laws are the formula's, doubted blocks are written again, and it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import outpace
from outpace.api.notes import write_streams
from outpace.errors import ConfigError, ModelError
from outpace.models.notes import NoteNet, read_notes, save_notes
from outpace.testing.toy import ToyModel
from outpace.train.notes import figures, fit, streams_of
from outpace.types import Outputs

PROMPTS = [[5, 3, 2], [1, 2], [9, 9, 4, 4]]
HIDDEN = 8


def trunk(end: int = 99) -> outpace.LanguageModel:
    return outpace.LanguageModel(ToyModel(sharpness=2.0), None, end_tokens=[end])


def loud(seed: int = 0) -> NoteNet:
    torch.manual_seed(seed)
    net = NoteNet(HIDDEN, 6)
    torch.nn.init.normal_(net.tell.weight, std=3.0)
    return net.double()


def states(lm: outpace.LanguageModel, text: list[int]) -> tuple[Tensor, Tensor]:
    """The trunk's last states and logits of a whole text."""
    given = (torch.tensor([text]), torch.arange(len(text))[None], None, lm.target.new_cache(1, len(text)))
    scores = lm.target.score(*given, outputs=Outputs(has_last=True))
    assert scores.last is not None
    return scores.last[0], scores.logits[0]


def alone(lm: outpace.LanguageModel, net: NoteNet, text: list[int], notes: list[Tensor], count: int) -> list[int]:
    """Write a block token by token, each law by the formula over the whole text."""
    found = list(text)
    for _ in range(count):
        hidden, logits = states(lm, found)
        if notes:
            stack = torch.stack(notes)
            products = [float(net.ask(hidden[-1]) @ net.look(note)) / 6**0.5 for note in stack]
            weights = torch.tensor([*products, 0.0], dtype=torch.float64).softmax(0)[:-1]
            change = net.tell((weights[:, None] * stack).sum(0))
            logits = logits + lm.target.head(change[None])
        found.append(int(logits[-1].argmax()))
    return found[len(text) :]


def by_hand(lm: outpace.LanguageModel, net: NoteNet, stride: int, blocks: int, threshold: float) -> list[list[int]]:
    texts, bus = [list(prompt) for prompt in PROMPTS], [list[Tensor]() for _ in PROMPTS]

    def others(notes: list[list[Tensor]], at: int) -> list[Tensor]:
        return [note for other, own in enumerate(notes) if other != at for note in own]

    def noted(at: int, block: list[int]) -> Tensor:
        return torch.tanh(net.write(states(lm, [*texts[at], *block])[0][-len(block) :].mean(0)))

    for _ in range(blocks):
        written = [alone(lm, net, texts[at], others(bus, at), stride) for at in range(3)]
        new = [noted(at, block) for at, block in enumerate(written)]
        after = [[*own, note] for own, note in zip(bus, new, strict=True)]
        for at in range(3):
            odds = net.match(new[at]) @ torch.stack(others(after, at)).mean(0) + net.bias
            if float(odds.sigmoid()) < threshold:
                written[at] = alone(lm, net, texts[at], others(after, at), stride)
        new = [noted(at, block) for at, block in enumerate(written)]
        for at in range(3):
            texts[at] += written[at]
            bus[at].append(new[at])
    return [text[len(prompt) :] for text, prompt in zip(texts, PROMPTS, strict=True)]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_zeros_are_the_trunk(threshold: float, temperature: float) -> None:
    lm = trunk(3)
    asked: dict[str, Any] = {"max_tokens": 14, "temperature": temperature, "seed": 2}
    wanted = lm.generate(PROMPTS, **asked)
    found = write_streams(lm, PROMPTS, NoteNet(HIDDEN), stride=4, threshold=threshold, **asked)
    assert [one.tokens for one in found] == [one.tokens for one in wanted]
    assert [one.finish_reason for one in found] == [one.finish_reason for one in wanted]
    assert any(one.taken_back for one in found) is (threshold > 0)


def test_zeros_give_the_trunks_bits() -> None:
    from outpace.models.notes import Noted

    lm = outpace.load("stories")
    width = lm.target.embed(torch.zeros(1, 1, dtype=torch.int64)).shape[-1]
    net = NoteNet(width, 4)
    with torch.no_grad():
        noted = Noted(lm.target, net, torch.randn(1, 3, 4), torch.ones(1, 3, dtype=torch.bool))
        cache, ids = noted.new_cache(1, 12), torch.tensor([lm.encode("Once upon a time there was a dog")])
        noted.note_prompts(cache, [ids.shape[1]])
        place = torch.arange(ids.shape[1])[None]
        ours = noted.score(ids, place, None, cache).logits
    assert torch.equal(ours, lm.target.score(ids, place, None, lm.target.new_cache(1, 12)).logits)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("method", ["autoregressive", "prompt-lookup"])
def test_streams_are_those_of_the_formula(threshold: float, method: str) -> None:
    lm, net = trunk(), loud()
    with torch.no_grad():
        wanted = by_hand(lm, net, 3, 4, threshold)
        found = write_streams(lm, PROMPTS, net, max_tokens=12, stride=3, threshold=threshold, method=method)
    assert [one.tokens for one in found] == wanted
    assert wanted != [one.tokens for one in lm.generate(PROMPTS, max_tokens=12)]
    taken = {"0.0": 0, "1.0": 12}.get(str(threshold))
    assert taken is None or sum(len(one.taken_back) for one in found) == taken
    assert all(len(one.notes) == 4 for one in found)


def test_notes_learn_what_the_other_stream_knows() -> None:
    """Texts whose two halves repeat one token: the trunk cannot know it, the other stream's notes do."""
    generator = torch.Generator().manual_seed(0)
    lm = outpace.LanguageModel(ToyModel(vocab_size=6, sharpness=1.0), None)
    chosen = torch.randint(3, 6, (96, 1), generator=generator)
    noise = torch.randint(3, 6, (96, 120), generator=generator)
    is_noise = torch.rand(96, 120, generator=generator) < 0.3
    texts = torch.where(is_noise, noise, chosen)
    texts[:, :24] = torch.randint(0, 3, (96, 24), generator=generator)
    rows, tokens = streams_of(lm.target, texts.tolist())
    net = fit(lm.target, rows[:, :64], tokens[:64], 60, rows=16)
    found = figures(lm.target, net, rows[:, 64:], tokens[64:])
    assert found["noted"] < found["alone"] - 0.1 and found["noted"] < found["strange"]
    assert 0 <= found["precision"] <= 1


def test_files_and_mistakes(tmp_path: Path) -> None:
    net = loud(1).float()
    save_notes(net, tmp_path)
    again, rows = read_notes(tmp_path), torch.randn(2, 3, HIDDEN)
    notes, is_there = torch.randn(2, 4, 6), torch.ones(2, 4, dtype=torch.bool)
    assert torch.equal(again.change(rows, notes, is_there), net.change(rows, notes, is_there))
    assert not net.change(rows, notes, ~is_there).any()
    assert F.cosine_similarity(again.note(rows), net.note(rows)).min() > 0.999
    with pytest.raises(ModelError, match="holds no notes"):
        read_notes(tmp_path / "none")
    with pytest.raises(ModelError, match="states of 4 numbers"):
        write_streams(trunk(), PROMPTS, NoteNet(4))
    with pytest.raises(ConfigError, match="two prompts"):
        write_streams(trunk(), PROMPTS[:1], NoteNet(HIDDEN))
