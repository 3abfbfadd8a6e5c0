"""Compressing without pairs: lengths hold, gradients pass through drawn words, short sentences tell the long ones."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import outpace
from outpace import LanguageModel
from outpace.models.nets.adapter import NetAdapter
from outpace.models.nets.gru import GruConfig
from outpace.train import train
from outpace.train.data import find_data
from outpace.train.export import load_tokenizer
from outpace.train.seq3 import COMPRESSIONS, Compressor, measure, num_words, rarity_of, sentences_of
from outpace.zoo import path

VOCAB = 14
CONFIG = GruConfig(vocab_size=VOCAB, width=16, hidden=24, dropout=0.0, start_token=0, max_source=16, max_positions=16)
RECIPE = replace(COMPRESSIONS["compress"], config=CONFIG, prior=0.05, topic=0.1, temperature=0.5)


def sentences(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return sentences that two of their six or eight tokens tell whole, with their mask."""
    generator = torch.Generator().manual_seed(seed)
    who, what = (torch.randint(low, low + 4, (count,), generator=generator) for low in (3, 7))
    filler = torch.full((count,), 2)
    ids = torch.stack([filler, who, filler, what, filler, who, who, what], 1)
    is_real = torch.arange(8) < torch.where(who > 4, 8, 6).unsqueeze(1)
    return ids * is_real, is_real


def uniform(words: Tensor) -> Tensor:
    return torch.full((*words.shape, VOCAB), 1 / VOCAB).log()


def new_network() -> Compressor:
    torch.manual_seed(0)
    ids, is_real = sentences(64)
    rows = [row[keep].tolist() for row, keep in zip(ids, is_real, strict=True)]
    return Compressor(CONFIG, rarity_of(rows, VOCAB))


def test_lengths_words_and_gradients() -> None:
    network = new_network()
    ids, is_real = sentences(5)
    counts = torch.tensor([num_words(int(length), 0.5) for length in is_real.sum(1)])
    words, laws = network.compressed(ids, is_real, counts, 0.5)
    assert words.shape == laws.shape == (5, int(counts.max()), VOCAB) and set(counts.tolist()) <= {3, 4}
    assert torch.allclose(words.detach(), F.one_hot(words.argmax(-1), VOCAB).float(), atol=1e-6)
    assert not (words[..., :2].detach() > 0.5).any(), "no end and no mask is drawn"
    network.reconstruction(words, counts, ids, is_real).backward()
    assert network.shorten.writer.weight_hh_l0.grad is not None
    assert network.shorten.writer.weight_hh_l0.grad.abs().sum() > 0
    assert [num_words(length, 0.3) for length in (1, 3, 10, 20)] == [1, 1, 3, 6]


def test_words_behind_a_row_of_fewer_change_nothing() -> None:
    network = new_network().eval()
    ids, is_real = sentences(6, seed=3)
    row = int((is_real.sum(1) == 6).nonzero()[0])
    counts = torch.tensor([num_words(int(length), 0.5) for length in is_real.sum(1)])
    words, laws = network.compressed(ids, is_real, counts)
    one = slice(row, row + 1)
    alone, its = network.compressed(ids[one, :6], is_real[one, :6], counts[one])
    assert torch.allclose(its[0], laws[row, :3], atol=1e-6)
    whole = network.divergence(words[one], laws[one], counts[one], uniform)
    assert torch.allclose(whole, network.divergence(alone, its, counts[one], uniform), atol=1e-6)
    wanted = (its.exp() * (its - uniform(alone.argmax(-1)))).sum(-1).mean()
    assert torch.allclose(whole, wanted, atol=1e-6)


def test_short_sentences_tell_more_than_random_words() -> None:
    network = new_network()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    ids, is_real = sentences(48)
    counts = torch.tensor([num_words(int(length), 0.5) for length in is_real.sum(1)])
    for step in range(80):
        torch.manual_seed(step)
        optimiser.zero_grad()
        network.loss(ids, is_real, counts, uniform, RECIPE).backward()
        optimiser.step()
    held = sentences(32, seed=1)
    told = measure(network, *held, 0.5)
    assert told["compressed"] < 0.7 * told["random"] and told["ratio"] <= 0.5
    lm = LanguageModel(NetAdapter(network.shorten), end_tokens=(0,))
    words, _ = network.compressed(held[0][:2], held[1][:2], counts=torch.tensor([3, 3]))
    rows = [row[keep].tolist() for row, keep in zip(held[0][:2], held[1][:2], strict=True)]
    found = lm.generate(rows, max_tokens=3, suppress_tokens=[0, 1])
    assert [result.tokens for result in found] == words.argmax(-1).tolist()


def test_a_run_writes_a_network_that_shortens(tmp_path: Path) -> None:
    (tmp_path / "data/tinystories").mkdir(parents=True)
    story = "Tom had a big red ball. He liked to play with it in the park. One day the ball was lost!\n<|endoftext|>\n"
    with gzip.open(tmp_path / "data/tinystories/train.txt.gz", "wt") as file:
        file.write(story * 3)
    (tmp_path / "data/tinystories/valid.txt").write_text(story, encoding="utf-8")
    recipe = replace(RECIPE, config=replace(CONFIG, max_source=32, max_positions=32), rows=2, steps=2)
    assert train(recipe, tmp_path / "run", find_data(tmp_path / "data"), threads=1) == 0
    assert "held out: compressed" in (tmp_path / "run/train.log").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "run/generation_config.json").read_text())["suppress_tokens"] == [0, 1]
    lm = outpace.load(tmp_path / "run", dtype="float32")
    assert len(lm.generate("Tom had a big red ball.", max_tokens=3).tokens) == 3


def test_sentences_of_a_wanted_length() -> None:
    tokenizer = load_tokenizer(path("stories"))
    parts = ["Tom ran home.", "He liked to play with his big red ball in the park!", "Was it lost?"]
    lengths = [len(tokenizer.encode(part).ids) for part in parts]
    text = " ".join(parts) + " and no end"
    assert [tokenizer.decode(ids) for ids in sentences_of([text], tokenizer, 1, 64)] == parts
    assert [len(ids) for ids in sentences_of([text], tokenizer, max(lengths), 64)] == [max(lengths)]
    assert not sentences_of([text], tokenizer, max(lengths) + 1, 64)
