"""Our own networks in training: each learns a toy language, is written as a directory, and is the same when loaded."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_pairs import PAIRS

import outpace
from outpace.errors import ModelError
from outpace.models.nets.gru import GruConfig
from outpace.models.nets.llm_to_slm import LlmToSlmConfig
from outpace.models.nets.pervasive import PervasiveConfig
from outpace.models.nets.phrases import PhrasesConfig
from outpace.models.nets.registers import RegistersConfig
from outpace.models.nets.stacks import equal_configs
from outpace.train import TRANSLATIONS, TranslationRecipe, train
from outpace.train.pairs import MULTI30K, MULTI30K_TAGGED, train_pair_tokenizer
from outpace.train.translation.criteria import Taught
from outpace.train.translation.nets import NetShape
from outpace.train.translation.trainer import build_translator
from outpace.train.translation_quality import read_set

CONFIGS: dict[str, Any] = {
    "gru": GruConfig(width=24, hidden=32, dropout=0.0),
    "llm-to-slm": LlmToSlmConfig(width=24, layers=1, heads=2, ffn=48, dropout=0.0, large_layers=0),
    "pervasive": PervasiveConfig(width=16, layers=2, growth=12, dropout=0.0),
    "phrases": PhrasesConfig(width=24, hidden=24, reach=1, longest=3, dropout=0.0),
    "registers": RegistersConfig(width=32, layers=2, heads=2, ffn=48, dropout=0.0),
}
TOY = TranslationRecipe(
    name="toy",
    summary="A toy.",
    vocab=320,
    source=MULTI30K,
    budget=128,
    joined=0.0,
    look_every=1000,
    steps=30,
    gpu_steps=30,
    warmup=5,
    matrix_rate=2e-2,
    other_rate=2e-2,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "multi30k").mkdir()
    german, english = ("\n".join(side) + "\n" for side in zip(*PAIRS, strict=True))
    for split in ("train", "val", "test_2016_flickr"):
        for language, text in (("de", german), ("en", english), ("fr", german.upper())):
            with gzip.open(folder / f"multi30k/{split}.{language}.gz", "wt", encoding="utf-8") as file:
                file.write(text)
    return folder


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_network_learns_and_loads(kind: str, data: Path, tmp_path: Path) -> None:
    recipe = replace(TOY, shape=NetShape(config=CONFIGS[kind]))
    assert train(recipe, tmp_path / "run", data, threads=1) == 0
    lines = (tmp_path / "run/train.log").read_text(encoding="utf-8").splitlines()
    first, last = (
        float(line.split("loss ")[1].split(",")[0]) for line in lines if " step 20/" in line or "30/30" in line
    )
    assert last < 0.7 * first
    lm = outpace.load(tmp_path / "run", dtype="float32")
    assert "dropout" not in lm.notes and lm.target.capabilities.is_encoder_decoder and lm.end_tokens == (0,)
    source, wanted = PAIRS[0]
    plain = lm.generate(source, max_tokens=24)
    assert plain.text and lm.generate(source, max_tokens=24, method="prompt-lookup").tokens == plain.tokens
    assert lm.score_pairs([(source, wanted)])[0].log_prob > lm.score_pairs([(source, wanted[::-1])])[0].log_prob


def test_a_decoder_teaches_an_encoder_decoder_of_its_size(data: Path, tmp_path: Path) -> None:
    decoder, pair = equal_configs(5, width=16, heads=2, dropout=0.0, max_source=48, max_positions=48)
    teacher = replace(TOY, name="toy-teacher", shape=NetShape(config=decoder), look_every=0)
    assert train(teacher, tmp_path / "toy-teacher", data, threads=1) == 0
    student = replace(teacher, name="toy-student", shape=NetShape(config=pair), parent="toy-teacher")
    student = replace(student, objective="distilled")
    made = build_translator(student, tmp_path / "toy-student", data, steps=40, seed=0)
    assert isinstance(made.criterion, Taught)
    batch = made.batches.batch(0)

    def distance() -> float:
        """Return KL(the teacher's laws, the student's) in nats per token."""
        with torch.no_grad():
            theirs, ours = (each.logits(batch).log_softmax(-1) for each in (made.criterion.teacher, made.network))
            return float((theirs.exp() * (theirs - ours)).sum(-1).mean())

    first = distance()
    for _ in range(40):
        made.advance()
    assert distance() < 0.5 * first
    sizes = [sum(weight.numel() for weight in each.parameters()) for each in (made.criterion.teacher, made.network)]
    assert abs(sizes[1] - sizes[0]) < 0.01 * sizes[0]


def test_damaged_directories_are_named(data: Path, tmp_path: Path) -> None:
    recipe = replace(TOY, shape=NetShape(config=CONFIGS["gru"]), steps=1)
    train(recipe, tmp_path / "run", data, threads=1)
    config = tmp_path / "run/config.json"
    kept = config.read_text(encoding="utf-8")
    for old, new, message in (
        ('"kind": "gru"', '"kind": "grue"', "no kind of network 'grue'"),
        ('"hidden": 32', '"hidden": 34', "does not have the tensors"),
    ):
        config.write_text(kept.replace(old, new), encoding="utf-8")
        with pytest.raises(ModelError, match=message):
            outpace.load(tmp_path / "run")
    config.write_text(kept, encoding="utf-8")
    with pytest.raises(outpace.errors.ConfigError, match="a network of its own runs"):
        outpace.load(tmp_path / "run", context=32)
    (tmp_path / "run/model.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="cannot be read"):
        outpace.load(tmp_path / "run")


def test_tagged_pairs_name_their_language(data: Path) -> None:
    pairs = MULTI30K_TAGGED.pairs(data, "train")
    assert len(pairs) == 2 * len(PAIRS) and pairs[0] == (f"<|de|>{PAIRS[0][1]}", PAIRS[0][0])
    assert pairs[-1] == (f"<|fr|>{PAIRS[-1][1]}", PAIRS[-1][0].upper())
    assert read_set("multi30k-tagged:test-fr", data) == pairs[len(PAIRS) :]
    assert read_set("multi30k:test:en-de", data) == [(b, a) for a, b in PAIRS]
    shape: Any = TRANSLATIONS["pairs-registers"].shape
    tokenizer = train_pair_tokenizer(pairs, 400, MULTI30K_TAGGED.tags)
    assert [tokenizer.encode(source).ids[0] for source, _ in (pairs[0], pairs[-1])] == list(shape.config.tags)


def test_steps_depend_on_seed_and_step_alone(data: Path, tmp_path: Path) -> None:
    recipe = replace(TOY, shape=NetShape(config=replace(CONFIGS["gru"], dropout=0.3)), steps=4, checkpoint_every=2)
    train(recipe, tmp_path / "whole", data, threads=1)
    train(recipe, tmp_path / "parts", data, threads=1, steps=4)
    first, second = (torch.load(tmp_path / name / "checkpoint.pt")["losses"] for name in ("whole", "parts"))
    assert first == second
