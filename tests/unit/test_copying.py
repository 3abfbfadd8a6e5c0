"""Phrases and chunks of a collection: spans by brute force, laws by hand, copied texts that stand in the collection."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from outpace.api.engine import LanguageModel, load
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.parallel.chunk_retrieval import ChunkRetrieval
from outpace.methods.parallel.copy_phrases import CopyPhrases
from outpace.retrieve.chunks import ChunkIndex, ChunkReader, chunk_before, unit
from outpace.retrieve.phrases import PhraseIndex, PhraseMaps, segments
from outpace.retrieve.states import text_states
from outpace.train.chunks import ChunkData, goes_on, losses_of, train_reader
from outpace.train.chunks import main as chunks_main
from outpace.train.phrases import phrase_loss, train_phrases

STORIES = [
    "Once upon a time, there was a little girl named Lily. She loved to play in the park with her dog.",
    "One day, a boy found a big red ball. He was very happy and wanted to play with his friends in the park.",
    "The old king had a gold crown. He loved to walk in the garden, and his dog was very happy to see him.",
]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load("stories", dtype="float32", is_compiled=False)


def encoded(lm: LanguageModel, texts: list[str]) -> list[list[int]]:
    return [lm.encode(text, is_special=False) for text in texts]


def test_every_span_of_a_text_is_a_phrase() -> None:
    texts = [[1, 2, 3, 4], [5], [6, 7, 8]]
    states = [torch.randn(len(text), 6) for text in texts]
    index = PhraseIndex(PhraseMaps.new(6, rank=3, longest=3), texts, states)
    spans = {tuple(text[at : at + size]) for text in texts for size in (2, 3) for at in range(1, len(text) - size + 1)}
    flat = index.logits(torch.randn(1, 6)).flatten()
    assert {tuple(index.phrase(at)) for at in flat.isfinite().nonzero().flatten().tolist()} == spans
    assert len(index) == len(spans)
    # A logit is the product of maps: of the state before the phrase, and of the one at its end.
    query, maps = torch.randn(1, 6), index.maps

    def unit(one: torch.Tensor) -> torch.Tensor:
        return one / one.square().mean(-1, keepdim=True).sqrt()

    before, end = unit(states[0][0]), unit(states[0][3])  # of the phrase 2, 3, 4
    by_hand = (unit(query) @ maps.prefix[0] @ (before @ maps.begin)) + (unit(query) @ maps.prefix[1] @ (end @ maps.end))
    assert float(index.logits(query)[0, 1, 0]) == pytest.approx(float(by_hand + maps.length[1]), abs=1e-4)


def test_segments_are_the_longest_copies() -> None:
    draw = random.Random(0)
    texts = [[draw.randrange(4) for _ in range(30)] for _ in range(3)]
    index = PhraseIndex(PhraseMaps.new(4, rank=2, longest=5), texts, [torch.randn(30, 4) for _ in texts])
    written = [draw.randrange(4) for _ in range(40)]
    spans = {tuple(text[at : at + size]) for text in texts for size in range(2, 6) for at in range(1, 31 - size)}
    at, collection = 1, index.tokens.tolist()
    for place, size, copies in segments(written, collection, index.is_phrase):
        assert place == at
        at += size
        longest = next((n for n in range(5, 1, -1) if tuple(written[place : place + n]) in spans), 1)
        assert size == min(longest, len(written) - place) and bool(copies) == (size > 1)
        for copy in copies:
            assert collection[copy + 1 : copy + 1 + size] == written[place : place + size]
    assert at == len(written)


def test_copied_spans_stand_in_the_collection_and_steps_are_fewer(lm: LanguageModel, tmp_path: Path) -> None:
    maps, losses = train_phrases(lm, STORIES * 2, steps=6)
    assert len(losses) == 6 and all(loss > 0 for loss in losses)
    maps = PhraseMaps(maps.prefix, maps.begin, maps.end, maps.length + 12.0)  # so few steps teach little
    maps.save(tmp_path / "maps.safetensors", "stories")
    again = PhraseMaps.read(tmp_path / "maps.safetensors")
    assert torch.equal(again.prefix, maps.prefix) and again.longest == 8
    for number, collection in enumerate((STORIES[:2], STORIES[2:])):  # another collection needs no training
        file = tmp_path / f"{number}.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in collection))
        method, steps = CopyPhrases(str(tmp_path / "maps.safetensors"), str(file)), list[list[int]]()

        def watch(rows: Any, outcome: Any, steps: list[list[int]] = steps) -> None:
            steps.append(outcome.emitted[0])

        result = lm.generate("Once upon a time", method=method, max_tokens=24, watch=watch, temperature=0.5)
        copied = [step for step in steps if len(step) > 1]
        assert copied and sum(map(len, steps)) == len(result.tokens) > len([step for step in steps if step])
        held = [",".join(map(str, text)) for text in encoded(lm, collection)]
        assert all(any(",".join(map(str, span)) in text for text in held) for span in copied)
        penalised = lm.generate("Once upon a time", method=method, max_tokens=8, repetition_penalty=1.2)
        assert penalised.tokens == lm.generate("Once upon a time", max_tokens=8, repetition_penalty=1.2).tokens


def test_the_loss_of_phrases_is_a_law_of_phrases_and_tokens(lm: LanguageModel) -> None:
    ids = encoded(lm, STORIES)
    states = text_states(lm.target, ids)
    index = PhraseIndex(PhraseMaps.new(states[0].shape[1]), ids[:2], states[:2])
    found, phrases, choices = phrase_loss(index, ids[2:], states[2:], lm, random.Random(0))
    cut = segments(ids[2], index.tokens.tolist(), index.is_phrase)
    assert choices == len(cut) and phrases == sum(bool(copies) for *_, copies in cut) > 0
    losses, draw = [], random.Random(0)
    for at, size, copies in draw.sample(cut, len(cut)):
        tokens = lm.target.head(states[2][at - 1]).double()
        spans = index.logits(states[2][at - 1 : at])[0].double()
        one = draw.choice(copies) if copies else -1
        right = spans[size - 2, one] if copies else tokens[ids[2][at]]
        others = [float(x) for x in spans.flatten() if x > float("-inf")]
        held = [float(spans[size - 2, copy]) for copy in copies]
        total = sum(map(math.exp, others)) - sum(map(math.exp, held)) + float(tokens.exp().sum())
        total += float(right.exp()) if copies else 0.0
        losses.append(math.log(total) - float(right))
    assert float(found.detach()) == pytest.approx(sum(losses) / len(losses), rel=1e-3)


def test_what_is_read_comes_before_what_is_predicted() -> None:
    for size in (1, 3, 4):
        for place in range(20):
            chunk = chunk_before(place, size)
            assert (chunk + 1) * size <= place + 1  # the state at a place predicts the token behind it
            assert chunk < 0 or (chunk + 2) * size > place + 1  # no later chunk is whole


def test_a_reader_begins_as_the_model_and_reads_the_nearest(lm: LanguageModel, tmp_path: Path) -> None:
    ids = encoded(lm, [" ".join(STORIES), " ".join(reversed(STORIES)), STORIES[1] * 2])
    index = ChunkIndex(lm.target, ids, 8)
    key = index.key(ids[0][8:16])
    order = index.keys @ key
    near = index.nearest(key.unsqueeze(0), 3)[0]
    assert order[near].tolist() == pytest.approx(sorted(order.tolist(), reverse=True)[:3], abs=1e-6)
    assert float(order[8]) == pytest.approx(1.0) == float(order[near[0]])  # itself, or where the same text comes again
    weight = torch.tensor([0.5 ** ((7 - at) / 4) for at in range(8)])
    mean = (lm.target.embed(torch.tensor(ids[0][8:16])).float() * weight.unsqueeze(1)).sum(0)
    assert torch.allclose(key, mean / mean.norm(), atol=1e-6)
    assert len(index) == sum(len(text) - 7 for text in ids)
    entries = index.entries(torch.tensor([[0, len(ids[0]) - 8]]))[0]  # the first and the last chunk of the first text
    states, embedded = text_states(lm.target, ids[:1])[0], lm.target.embed(torch.tensor(ids[0])).float()
    assert torch.allclose(entries[:16], torch.cat([unit(states)[:16], unit(embedded[:16]), unit(embedded[1:17])], 1))
    assert torch.allclose(entries[16:24, :256], unit(states[-8:])) and not entries[24:].any()
    other = index.nearest(key.unsqueeze(0), 3, torch.tensor([0]))[0]
    assert all(index.texts[at] != 0 for at in other.tolist())
    data = ChunkData(lm, index, ids, 2, is_own=True)
    flat = [[*text[8:], -1] for text in ids]  # behind the chunk that begins at each place
    behind = torch.tensor([token for text in flat for token in text])
    assert torch.equal(index.following(torch.arange(len(index))), behind)
    hits = [
        any(int(behind[one]) == int(tokens[0]) for one in near)
        for near, tokens in zip(data.nearest.tolist(), data.tokens, strict=True)
    ]
    assert goes_on(data, 2)["nearest"] == pytest.approx(sum(hits) / len(hits)) and sum(hits) > 0
    fresh = losses_of(ChunkReader(data.states.shape[-1], 8), data)
    assert fresh["nearest"] == pytest.approx(fresh["alone"], abs=1e-6) == fresh["chance"]
    scored = lm.score(ids[0]).log_probs
    whole = [-value for value in scored[8 : len(ids[0]) // 8 * 8] if value is not None]
    first = torch.arange(len(whole) // 8)
    assert float(data.loss(None, first)) == pytest.approx(sum(whole) / len(whole), abs=1e-3)
    reader, losses = train_reader(data, 12, 2)
    assert losses[-1] < losses[0]
    reader.save(tmp_path / "reader.safetensors", "stories")
    again = ChunkReader.read(tmp_path / "reader.safetensors")
    assert losses_of(again, data) == pytest.approx(losses_of(reader, data))
    file = tmp_path / "collection.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in STORIES))
    method = ChunkRetrieval(str(tmp_path / "reader.safetensors"), str(file))
    prompt = ids[0][:20]
    result = lm.generate(prompt, method=method, max_tokens=12)
    # By hand, token by token, without a cache.
    told, text = ChunkIndex(lm.target, encoded(lm, STORIES), 8), list(prompt)
    for _ in range(12):
        state, chunk = text_states(lm.target, [text])[0][-1:], chunk_before(len(text) - 1, 8)
        near = told.nearest(told.key(text[chunk * 8 : chunk * 8 + 8]).unsqueeze(0), 2)
        with torch.no_grad():
            logits = lm.target.head(again(state.unsqueeze(0), told.entries(near), len(text) % 8))[0, -1]
        text.append(int(logits.argmax()))
    assert result.tokens == text[20:]


def test_bad_input_is_refused_in_a_sentence(lm: LanguageModel, tmp_path: Path) -> None:
    for kind, name in ((CopyPhrases, "maps"), (ChunkRetrieval, "reader")):
        with pytest.raises(ConfigError, match="together"):
            kind(**{name: "x"})
        with pytest.raises(ConfigError, match="no file"):
            lm.generate("a", method=kind(**{name: str(tmp_path / "x")}, collection=str(tmp_path / "y")))
        (tmp_path / "x").write_text("x")
        (tmp_path / "y.txt").write_text("\n")
        with pytest.raises(ConfigError, match="holds no"):
            lm.generate("a", method=kind(**{name: str(tmp_path / "x")}, collection=str(tmp_path / "y.txt")))
        (tmp_path / "x").unlink()
    with pytest.raises(ConfigError, match="fewer than 0 steps"):
        chunks_main(["--data", str(tmp_path), "--out", str(tmp_path), "--steps", "-1"])
    with pytest.raises(ConfigError, match="has 8 tokens"):
        ChunkIndex(lm.target, [[1, 2]], 8)
    with pytest.raises(CapabilityError, match="causal"):
        text_states(load("stories-mask").target, [[1, 2]])
