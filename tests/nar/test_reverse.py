"""Mixtures of texts: what each teacher writes stands on its side, beside what people wrote."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from outpace import zoo
from outpace.errors import ConfigError, ModelError
from outpace.models.nar.ctc import CtcConfig
from outpace.models.nets.gru import GruConfig
from outpace.train import TRANSLATIONS, TranslationRecipe
from outpace.train.nar.curriculum import Curriculum, Staged
from outpace.train.nar.lexical import LexicalPrior
from outpace.train.nar.network import NarShape
from outpace.train.nar.reverse import Mixture
from outpace.train.pairs import train_pair_tokenizer
from outpace.train.trainer import train
from outpace.train.translation.nets import NetShape
from outpace.train.translation.network import NetworkFiles, PairNetwork
from outpace.train.translation.trainer import build_translator

PAIRS = [("a dog", "ein Hund"), ("a cat sleeps", "eine Katze schläft"), ("dogs", "Hunde")]


class _Echo(PairNetwork):
    """A teacher that writes its source once more, its first token left out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def translate(self, sources: torch.Tensor, mask: torch.Tensor, most: int) -> list[list[int]]:
        return [row[1 : int(count) - 1] for row, count in zip(sources.tolist(), mask.sum(1), strict=True)]

    def export(self) -> NetworkFiles:
        raise NotImplementedError


def test_each_teacher_writes_its_own_side(tmp_path: Path) -> None:
    tokenizer = train_pair_tokenizer([], 256 + 3)  # bytes alone, so that a token is a letter
    asked = []

    def open_teacher(name: str) -> tuple:
        asked.append(name)
        return _Echo(), tokenizer, tmp_path / name / "written"

    both = Mixture(forward="there", reverse="back", is_raw=True)
    found = both.pairs(PAIRS, open_teacher, "captions-en-de", torch.device("cpu"))
    assert found[:3] == PAIRS
    assert found[3:6] == [(source, source[1:]) for source, _ in PAIRS]
    assert found[6:] == [(target[1:], target) for _, target in PAIRS]
    assert asked == ["there", "back"]
    # What was written is kept, each teacher's beside it.
    kept = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.jsonl"))]
    assert kept == ["back/written/captions-en-de-reverse.jsonl", "there/written/captions-en-de.jsonl"]
    assert Mixture(reverse="back").pairs(PAIRS, open_teacher, "captions-en-de", torch.device("cpu")) == found[6:]


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="names no texts"):
        Mixture()


def test_a_recipe_learns_from_what_others_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tatoeba_pairs").mkdir()
    for split in ("train", "valid"):
        lines = "".join(f"{source}\t{target}\n" for source, target in PAIRS * 4)
        (tmp_path / "tatoeba_pairs" / f"en-de.{split}.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    gru = TranslationRecipe(
        name="back",
        summary="A toy.",
        shape=NetShape(config=GruConfig(width=8, hidden=8, dropout=0.0)),
        vocab=290,
        budget=64,
        joined=0.0,
        steps=1,
        gpu_steps=1,
        warmup=1,
    )
    monkeypatch.setitem(TRANSLATIONS, "back", gru)  # German to English: the other way
    asked = []

    def translate_all(network: PairNetwork, tokenizer: object, texts: list[str], *_: object) -> list[str]:
        asked.append(type(network).__name__)
        return [f"{text} {text}" for text in texts]

    monkeypatch.setattr("outpace.train.translation.written.translate_all", translate_all)
    assert train(gru, tmp_path / "back", data=tmp_path, threads=1) == 0
    sizes = CtcConfig(width=16, heads=2, ffn=16, encoder_layers=1, decoder_layers=1)
    recipe = replace(gru, name="nar", direction="en-de", shape=NarShape(config=sizes), mixture=Mixture(reverse="back"))
    recipe = replace(recipe, criterion=LexicalPrior(), curriculum=Curriculum(words=0.5, phrases=0.25))
    trainer = build_translator(recipe, tmp_path / "nar", tmp_path, steps=8, seed=0)
    sides = zip(trainer.batches.sources, trainer.batches.targets, strict=True)
    texts = {tuple(trainer.tokenizer.decode(row.tolist()) for row in pair) for pair in sides}
    assert texts == {(f"{target} {target}", target) for _, target in PAIRS}
    assert asked == ["TrainedNet"]
    assert (tmp_path / "back" / "written" / "tatoeba-pairs-en-de-reverse.jsonl").is_file()
    assert isinstance(trainer.batches, Staged)
    assert [end for end, _ in trainer.batches.stages] == [4, 6]
    assert isinstance(trainer.criterion, LexicalPrior)
    assert trainer.criterion.table is not None
    assert [trainer.advance() > 0 for _ in range(8)] == [True] * 8
    missing = replace(recipe, mixture=Mixture(forward="bakc"))
    with pytest.raises(ConfigError, match="no recipe 'bakc' to teach"):
        build_translator(missing, tmp_path / "nar", tmp_path, steps=8, seed=0)
    with pytest.raises(ModelError, match="begins with captions-teacher, which does not ship") as caught:
        build_translator(
            replace(recipe, mixture=Mixture(forward="captions-teacher")), tmp_path / "nar", tmp_path, steps=8, seed=0
        )
    assert f"outpace train captions-teacher --out {tmp_path / 'captions-teacher'}" in str(caught.value.hint)
    # What a shipped teacher writes is kept beside the run: nobody writes into the package.
    shipped = replace(recipe, direction="de-en", mixture=Mixture(forward="translate"))
    build_translator(shipped, tmp_path / "nar", tmp_path, steps=8, seed=0)
    assert (tmp_path / "translate" / "written" / "tatoeba-pairs-de-en.jsonl").is_file()
    assert not (zoo.path("translate") / "written").exists()
