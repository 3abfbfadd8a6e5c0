"""Drafters that read an encoder-decoder: its states, its head, training on what it writes, and blockwise decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import outpace
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.speculative.blockwise import Blockwise
from outpace.models.opening import open_model
from outpace.store import cache_folder
from outpace.testing.random_pairs import make_pair
from outpace.testing.world import head_for, inhabited, target_for, write
from outpace.train.drafter import Plan, Writing, train_drafter
from outpace.train.drafter.frozen import FrozenHead
from outpace.train.drafter.states import forward_states
from outpace.train.drafter.texts import read_texts
from outpace.types import Outputs

pytest.importorskip("transformers")
SOURCES = ["Tom has a car.", "Hello!", "The cat sat on the mat.", "She go to school.", "Wo ist das Buch?"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pair("marian", tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("family", ["marian", "t5"])
def test_the_frozen_head_is_the_models_own(family: str, tmp_path: Path) -> None:
    target = open_model(str(make_pair(family, tmp_path)), "float64", "cpu", None)
    hidden = torch.randn(3, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for ids in (None, torch.tensor([4, 9, 30])):
        wanted = target.head(hidden)
        frozen = FrozenHead(target, ids, torch.float64)
        # Its bias is kept in single precision, as gradients are.
        torch.testing.assert_close(
            frozen.logits(hidden), wanted if ids is None else wanted[..., ids], atol=1e-5, rtol=0
        )
    with pytest.raises(CapabilityError, match="does not lend"):
        frozen.forward(hidden, torch.zeros(3, 5), torch.ones(3, 5, 5, dtype=torch.bool))


def test_states_are_those_of_the_whole_model(pair: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    oracle = AutoModelForSeq2SeqLM.from_pretrained(pair, dtype=torch.float64).eval()
    target = open_model(str(pair), "float64", "cpu", None)
    texts, sources = [[0, 7, 8, 9, 30], [0, 12, 5]], [[9, 10, 11, 1], [20, 21, 22, 23, 24, 25, 1]]
    found = forward_states(target, texts, Outputs((), True), sources)
    for row, (text, source) in enumerate(zip(texts, sources, strict=True)):
        with torch.no_grad():
            told = oracle(
                input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([text]), output_hidden_states=True
            )
        torch.testing.assert_close(found[row, : len(text)], told.decoder_hidden_states[-1][0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", ["blockwise", "medusa"])
def test_a_drafter_is_trained_on_sources_and_what_was_written(kind: str, pair: Path, tmp_path: Path) -> None:
    texts, out = tmp_path / "texts.jsonl", tmp_path / "drafter"
    lm = outpace.load(pair, dtype="float64", is_compiled=False)
    written = [one.tokens for one in lm.generate(SOURCES, max_tokens=24)]
    lines = [(lm.encode(source), text) for source, text in zip(SOURCES, written, strict=True)] * 3
    told = [
        {"id": f"{i % 5}-{i}", "source": source, "prompt": [0], "answer": text}
        for i, (source, text) in enumerate(lines)
    ]
    texts.write_text("".join(json.dumps(one) + "\n" for one in told), encoding="utf-8")
    assert read_texts(texts, 62)[0].source == tuple(told[0]["source"])
    plan = Plan(steps=20, rows=4, length=32, check_every=10, warmup=4, matrix_rate=0.02, other_rate=0.02)
    assert train_drafter(kind, str(pair), out, texts=texts, plan=plan, threads=1) == 0
    curves = [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]
    assert curves[-1]["train_loss"] < curves[0]["train_loss"]
    given: dict[str, Any] = {"max_tokens": 24, "method": kind, "options": {"draft": str(out)}}
    for law in ({}, {"temperature": 0.8, "seed": 2}):
        plain, ours = lm.generate(SOURCES, max_tokens=24, **law), lm.generate(SOURCES, **given, **law)
        assert [one.tokens for one in ours] == [one.tokens for one in plain]
        assert law or sum(one.usage.num_accepted for one in ours) > 5


def test_texts_that_a_pair_writes_name_their_sources(pair: Path, tmp_path: Path, monkeypatch: Any) -> None:
    for built in cache_folder().glob("decoder-*"):  # kernels are not to be compiled anew
        (tmp_path / built.name).symlink_to(built)
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path))
    plan, writing = Plan(steps=2, rows=2, length=24, check_every=2), Writing(count=6, max_tokens=12, rows=3)
    with pytest.raises(ConfigError, match="no source to read"):
        train_drafter("blockwise", str(pair), tmp_path / "a", writing=writing, plan=plan)
    assert train_drafter("blockwise", str(pair), prompts=SOURCES, writing=writing, plan=plan) == 0
    (file,) = tmp_path.rglob("texts.jsonl")
    lm = outpace.load(pair)
    for line in file.read_text().splitlines():
        told = json.loads(line)
        assert told["prompt"] == [0] and told["source"] in [lm.encode(source) for source in SOURCES]
    assert lm.generate(SOURCES[0], method="blockwise", max_tokens=8).tokens  # draft=auto finds it


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_approximate_rules_meet_plain_decoding_at_one_end_and_pass_all_at_the_other(kind: str) -> None:
    with inhabited(kind):
        target = target_for("causal")
        models = {"draft": head_for("blockwise", target)}
        plain = [row.written for row in write(Autoregressive())]
        strict = {"is_adaptive": False}
        for method in (
            Blockwise(**strict),
            Blockwise(accept_rule="top-k", top_k=1, **strict),
            Blockwise(accept_rule="distance", distance=0, **strict),
        ):
            assert [row.written for row in write(method, target=target, models=models)] == plain, method
        vocab = target.capabilities.vocab_size
        for method in (
            Blockwise(accept_rule="top-k", top_k=vocab, **strict),
            Blockwise(accept_rule="distance", distance=vocab, **strict),
            Blockwise(min_block=5, **strict),
        ):
            rows = write(method, target=target, models=models)
            # The first step of a text of one token has no states to draft from; then five tokens a step.
            assert all(row.usage.num_steps <= 1 + -(-len(row.written) // 5) for row in rows), method
            assert method.guarantee.value == "approximate"
        rows = write(Blockwise(min_block=2, **strict), target=target, models=models)
        assert all(row.usage.num_steps <= 1 + -(-len(row.written) // 2) for row in rows)


def test_a_larger_k_lets_more_pass() -> None:
    target = target_for("causal")
    models = {"draft": head_for("blockwise", target)}
    steps = []
    for top_k in (1, 3, 6, 13):
        rows = write(Blockwise(accept_rule="top-k", top_k=top_k, is_adaptive=False), target=target, models=models)
        steps.append(sum(row.usage.num_steps for row in rows))
    assert steps == sorted(steps, reverse=True) and steps[0] > steps[-1]


def test_rules_and_trees_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="chains, not trees"):
        Blockwise(accept_rule="top-k", budget=8)
    with pytest.raises(ConfigError, match="least block"):
        Blockwise(accept_rule="rejection", min_block=2)
    assert Blockwise(budget=8).is_tree  # under the exact rule
