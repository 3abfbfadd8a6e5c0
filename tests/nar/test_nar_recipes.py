"""Recipes of one-pass networks: a tokenizer of their own beside a parent that writes, and going on from a third."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from outpace.errors import ConfigError
from outpace.models.nar.ctc import CtcConfig
from outpace.train import TRANSLATIONS, TranslationRecipe, checkpoint, train
from outpace.train.export import load_tokenizer
from outpace.train.nar.network import NarShape
from outpace.train.nar.objectives import Glancing, Likelihood
from outpace.train.pairs import TATOEBA
from outpace.train.translation.marian import MarianShape
from outpace.train.translation.trainer import build_translator

pytest.importorskip("transformers")
NOUNS = {"Hund": "dog", "Mann": "man", "Kind": "child", "Vogel": "bird", "Baum": "tree"}
PAIRS = [(f"{a} sieht {b}.", f"{NOUNS[a]} sees {NOUNS[b]}.") for a in NOUNS for b in NOUNS]
CONFIG = CtcConfig(width=16, heads=2, ffn=24, encoder_layers=1, decoder_layers=1, dropout=0.0, factor=2)
TEACHER = TranslationRecipe(
    name="tiny-teacher",
    summary="A toy.",
    shape=MarianShape(width=16, encoder_layers=1, decoder_layers=1, heads=2, ffn=24, context=40, dropout=0.0),
    vocab=300,
    budget=64,
    joined=0.0,
    steps=20,
    gpu_steps=20,
    warmup=2,
    longest=200,
)
TINY = replace(
    TEACHER,
    name="tiny",
    shape=NarShape(config=CONFIG),
    criterion=Likelihood(),
    vocab=280,
    parent="tiny-teacher",
    objective="written",
    has_own_tokenizer=True,
    method="one-pass",
    steps=3,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "tatoeba_pairs").mkdir()
    text = "".join(f"{english}\t{german}\n" for german, english in PAIRS)
    for split in TATOEBA.splits:
        (folder / "tatoeba_pairs" / f"en-de.{split}.tsv.gz").write_bytes(gzip.compress(text.encode()))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRANSLATIONS, TEACHER.name, TEACHER)
        for recipe in (TEACHER, TINY):
            assert train(recipe, folder / recipe.name, data=data, threads=1) == 0
    return folder


def test_a_pupil_has_a_tokenizer_of_its_own(runs: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSLATIONS, TEACHER.name, TEACHER)
    own, parents = (load_tokenizer(runs / name) for name in ("tiny", "tiny-teacher"))
    assert own.get_vocab_size() == 280 and parents.get_vocab_size() > 280
    built = build_translator(TINY, runs / "tiny", data, steps=3, seed=0)
    assert built.tokenizer.to_str() == own.to_str()  # a run that goes on reads with what it began with
    assert (runs / "tiny-teacher" / "written").is_dir()


def test_a_third_recipe_gives_the_beginning(runs: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSLATIONS, TEACHER.name, TEACHER)
    monkeypatch.setitem(TRANSLATIONS, TINY.name, TINY)
    further = replace(TINY, name="further", has_own_tokenizer=False, start="tiny", criterion=Glancing())
    built = build_translator(further, runs / "further", data, steps=3, seed=1)
    first = NarShape(config=CONFIG).load(runs / "tiny").state_dict()
    assert all(torch.equal(weight, first[name]) for name, weight in built.network.state_dict().items())
    assert built.tokenizer.get_vocab_size() == 280
    # Other sizes: what fits is taken, the rest is new; where nothing fits, that is said.
    longer = replace(further, shape=NarShape(config=replace(CONFIG, factor=3)))
    found = build_translator(longer, runs / "further", data, steps=3, seed=1).network.state_dict()
    assert torch.equal(found["net.embed_tokens.weight"], first["net.embed_tokens.weight"])
    assert found["net.spread.weight"].shape[0] == 3 * 16
    alone = replace(further, parent=None, objective="translation")
    built = build_translator(alone, runs / "further", data, steps=3, seed=1)
    assert torch.equal(built.network.state_dict()["net.spread.weight"], first["net.spread.weight"])


def test_contradictory_beginnings_are_refused() -> None:
    with pytest.raises(ConfigError, match="takes its tokenizer from its parent"):
        replace(TINY, objective="translation")
    with pytest.raises(ConfigError, match="starts from tiny"):
        replace(TINY, start="tiny")


def test_one_pass_recipes_are_trained_alike() -> None:
    found = {recipe.name: recipe for recipe in TRANSLATIONS.values() if recipe.name.startswith("nar-ctc")}
    base, other = found["nar-ctc"], found["nar-ctc-glancing"]
    assert replace(other, name=base.name, summary=base.summary, criterion=base.criterion) == base
    assert all("research" in recipe.source.licence for recipe in found.values())


def test_a_target_that_no_alignment_reaches_harms_nothing(tmp_path: Path, data: Path) -> None:
    source = replace(TATOEBA, read=lambda paths: [*TATOEBA.read(paths), ("Baum", "dog " * 20)])
    recipe = replace(TINY, source=source, parent=None, objective="translation", has_own_tokenizer=False, budget=128)
    assert train(recipe, tmp_path / "tiny", data=data, threads=1) == 0
    state = checkpoint.load(tmp_path / "tiny" / "checkpoint.pt")
    assert all(bool(weight.isfinite().all()) for weight in state["network"].values())
    assert all(loss > 0 for loss in state["losses"])
