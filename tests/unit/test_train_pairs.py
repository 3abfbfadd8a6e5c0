"""Training of translators: pairs, batches, distillation, resuming, export, BLEU and the recipes."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import outpace
from outpace.errors import ConfigError
from outpace.models.seq2seq.adapter import EncoderDecoder
from outpace.text.tokenizer import Tokenizer
from outpace.train import RECIPES, TRANSLATIONS, TranslationRecipe, checkpoint, train
from outpace.train.bleu import bleu, tokenise
from outpace.train.data import EOS_ID, find_data
from outpace.train.loop import Loop
from outpace.train.pairs import (
    IGNORED,
    MULTI30K,
    PAIR_SOURCES,
    START_ID,
    TATOEBA,
    encode_pairs,
    join_neighbours,
    train_pair_tokenizer,
)
from outpace.train.translation.marian import MarianShape
from outpace.train.translation_quality import TranslationWork, measure, note_figures, read_set, write_card

pytest.importorskip("transformers")
WORDS = {"der": "the", "Hund": "dog", "Mann": "man", "sieht": "sees", "hört": "hears", "das": "the", "Kind": "child"}
PAIRS = [
    (f"{a} {b} {verb} {c} {d}.", f"{WORDS[a]} {WORDS[b]} {WORDS[verb]} {WORDS[c]} {WORDS[d]}.")
    for a, b in (("der", "Hund"), ("der", "Mann"), ("das", "Kind"))
    for verb in ("sieht", "hört")
    for c, d in (("das", "Kind"), ("der", "Hund"))
]
SHAPE = MarianShape(width=32, encoder_layers=1, decoder_layers=1, heads=2, ffn=48, context=64)
TINY = TranslationRecipe(
    name="tiny",
    summary="A toy.",
    shape=SHAPE,
    vocab=300,
    budget=64,
    joined=0.5,
    steps=6,
    gpu_steps=6,
    warmup=2,
    checkpoint_every=2,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "tatoeba_pairs").mkdir(parents=True)
    text = "".join(f"{english}\t{german}\n" for german, english in PAIRS)
    for split in TATOEBA.splits:
        (folder / "tatoeba_pairs" / f"en-de.{split}.tsv.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def test_the_tokenizer_frames_a_text_by_its_end() -> None:
    tokenizer = train_pair_tokenizer(PAIRS, 300)
    ids = tokenizer.encode("der Hund").ids
    assert ids[-1] == EOS_ID and EOS_ID not in ids[:-1]
    assert tokenizer.decode(ids) == "der Hund"
    assert tokenizer.id_to_token(START_ID) == "<|start|>"


def test_an_epoch_holds_every_pair_once_whatever_the_seed() -> None:
    tokenizer = train_pair_tokenizer(PAIRS, 300)
    orders = []
    for seed in (0, 1):
        batches = encode_pairs(tokenizer, PAIRS, budget=40, longest=96, seed=seed)
        count = batches.steps_per_epoch
        for epoch in (0, 1):
            texts = []
            for step in range(epoch * count, (epoch + 1) * count):
                sources, mask, inputs, labels = batches.batch(step)
                assert max(sources.numel(), labels.numel()) <= 40
                assert mask.sum(1).tolist() == [int((row != EOS_ID).sum()) + 1 for row in sources]
                assert inputs[:, 0].tolist() == [START_ID] * len(inputs)
                is_real = labels != IGNORED
                assert torch.equal(inputs[:, 1:][is_real[:, 1:]], labels[:, :-1][is_real[:, 1:]])
                texts += [
                    (tokenizer.decode(source.tolist()), tokenizer.decode(label[label >= 0].tolist()))
                    for source, label in zip(sources, labels, strict=True)
                ]
            assert sorted(texts) == sorted(PAIRS)
            orders.append(texts)
    assert len({tuple(order) for order in orders}) == 4


def test_joined_pairs_hold_two_or_three_sentences() -> None:
    joined = join_neighbours(PAIRS, 0.5, seed=0)
    assert joined[: len(PAIRS)] == PAIRS and len(joined) == len(PAIRS) * 3 // 2
    for german, english in joined[len(PAIRS) :]:
        assert german.count(".") == english.count(".") in (2, 3)
        assert [WORDS[word.strip(".")] for word in german.split()] == [word.strip(".") for word in english.split()]


def test_long_pairs_are_left_out() -> None:
    tokenizer = train_pair_tokenizer(PAIRS, 300)
    longest = max(max(len(tokenizer.encode(text).ids) for text in pair) for pair in PAIRS)
    assert len(encode_pairs(tokenizer, PAIRS, 64, longest, 0).sources) == len(PAIRS)
    assert len(encode_pairs(tokenizer, PAIRS, 64, longest - 1, 0).sources) < len(PAIRS)


def test_a_killed_run_resumes_to_the_same_loss(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(TINY, tmp_path / "whole", data=data, threads=1) == 0
    advance = Loop.advance

    def die_at_five(self: Loop) -> float:
        if self.step == 5:
            raise MemoryError("killed")
        return advance(self)

    monkeypatch.setattr(Loop, "advance", die_at_five)
    with pytest.raises(MemoryError):
        train(TINY, tmp_path / "killed", data=data, threads=1)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "killed" / "checkpoint.pt")["step"] == 4
    assert train(TINY, tmp_path / "killed", data=data, threads=1, resume=True) == 0
    whole, killed = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    assert whole["losses"] == killed["losses"]  # dropout included
    assert all(torch.equal(whole["network"][name], killed["network"][name]) for name in whole["network"])


def test_what_is_learnt_is_exported_and_translated(tmp_path: Path, data: Path) -> None:
    recipe = replace(TINY, shape=replace(SHAPE, width=48, dropout=0.0), steps=300, joined=0.0, checkpoint_every=1000)
    assert train(recipe, tmp_path / "tiny", data=data, threads=1) == 0
    names = {path.name for path in (tmp_path / "tiny").iterdir()}
    wanted = {"card.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert wanted | {"tokenizer_config.json"} <= names
    model = outpace.load(tmp_path / "tiny", dtype="float32")
    assert isinstance(model.target, EncoderDecoder) and model.target.start_token == START_ID
    assert not model.target.notes
    (work,) = measure(model, "toy", PAIRS, ["autoregressive"], max_tokens=20)
    assert work.bleu > 90 and work.same == 1 and work.forwards == 1
    child = replace(TINY, name="child", shape=replace(SHAPE, width=16), objective="distilled", parent="tiny", steps=4)
    assert train(child, tmp_path / "child", data=data, threads=1) == 0
    assert "distilled, taught by `tiny`" in (tmp_path / "child" / "card.md").read_text()
    drafted = model.generate(
        [german for german, _ in PAIRS], method="draft-model", options={"draft": str(tmp_path / "child")}, max_tokens=20
    )
    assert [result.text for result in drafted] == [result.text for result in model.generate([a for a, _ in PAIRS])]


def test_going_on_from_a_parent_starts_at_its_loss(tmp_path: Path, data: Path) -> None:
    recipe = replace(TINY, shape=replace(SHAPE, dropout=0.0), steps=60, joined=0.0, checkpoint_every=100)
    assert train(recipe, tmp_path / "tiny", data=data, threads=1) == 0
    further = replace(recipe, name="further", parent="tiny", steps=1, warmup=10_000)
    assert train(further, tmp_path / "further", data=data, threads=1) == 0
    before, after = (checkpoint.load(tmp_path / name / "checkpoint.pt")["losses"] for name in ("tiny", "further"))
    assert after[0] < before[0] / 2 and after[0] == pytest.approx(before[-1], rel=0.5)


def test_bleu_by_hand() -> None:
    # 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, no quadruple (half a match of 1), and 4 words for 5.
    wanted = 100 * math.exp(1 - 5 / 4) * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25
    assert bleu(["a b c x"], ["a b c d e"]) == pytest.approx(wanted)
    assert bleu(["a b c d e"], ["a b c d e"]) == pytest.approx(100)
    assert bleu(["a b c"], ["a b c"]) == bleu(["x y z w"], ["a b c d"]) == 0  # no quadruple at all; no word
    # a word counts at most as often as the reference has it: 2 of 4 words, then 1/2, 1/4 and 1/8 of a match
    assert bleu(["the the the the"], ["the cat the mat"]) == pytest.approx(
        100 * (2 / 4 * 0.5 / 3 * 0.25 / 2 * 0.125 / 1) ** 0.25
    )


def test_bleu_splits_words_as_sacrebleu_does() -> None:
    # the expected lists are what sacrebleu's 13a tokeniser gives
    assert tokenise("It's 3,000.5 km - isn't it? (yes/no)") == "It's 3,000.5 km - isn't it ? ( yes / no )".split()
    assert tokenise("U.S. 5. 10-20 &quot;x&quot; a.b") == 'U . S . 5 . 10 - 20 " x " a . b'.split()


def test_the_recipes_keep_their_promises() -> None:
    assert not set(RECIPES) & set(TRANSLATIONS)
    for name, recipe in TRANSLATIONS.items():
        assert recipe.name == name
        assert ("research" in recipe.source.licence) == ("for research" in recipe.summary)
    assert TRANSLATIONS["translate-draft"].parent == "translate"
    assert all(source.origin and source.licence and source.splits["train"] for source in PAIR_SOURCES.values())


def test_figures_go_into_card_and_file(tmp_path: Path) -> None:
    work = TranslationWork(
        set="toy:test", method="plain", sentences=2, tokens=9, bleu=12.34, same=1.0, forwards=1.0, drafts=0.0
    )  # fmt: skip
    (tmp_path / "card.md").write_text("# tiny\n\nA toy.\n")
    path = tmp_path / "figures.json"
    path.write_text('[{"model": "other"}, {"model": "tiny", "translation": []}]')
    for _ in range(2):
        write_card(tmp_path, [work])
        note_figures(path, "tiny", [work])
    assert (tmp_path / "card.md").read_text().count("| toy:test | 2 | 12.3 |") == 1
    assert [entry["model"] for entry in json.loads(path.read_text())] == ["other", "tiny"]


def test_missing_texts_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tatoeba_pairs/en-de\.train\.tsv\.gz is missing"):
        train("translate", tmp_path / "run", data=tmp_path)
    with pytest.raises(ConfigError, match="no split 'dev'"):
        read_set("multi30k:dev", tmp_path)
    with pytest.raises(ConfigError, match="no set of sentence pairs 'multi3k'"):
        read_set("multi3k:test", tmp_path)


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not (SHARED / "multi30k").is_dir(), reason="needs the public texts")
def test_the_public_texts_are_read() -> None:
    data = find_data(SHARED)
    assert len(MULTI30K.pairs(data, "test")) == 1000 and len(TATOEBA.pairs(data, "test")) == 1670
    assert MULTI30K.pairs(data, "train")[0][1] == "Two young, White males are outside near many bushes."
    assert ("Wir haben es versucht.", "We tried.") in TATOEBA.pairs(data, "valid")
    assert len(read_set("multi30k:test", data, 10)) == 10


def test_the_zoo_pair_is_small_and_shares_its_tokenizer() -> None:
    cards = [outpace.zoo.card(name) for name in ("translate", "translate-draft")]
    assert 4_000_000 <= cards[0].parameters <= 5_000_000 and cards[1].parameters <= 1_200_000
    assert outpace.zoo.drafter_of("translate") == "translate-draft"
    assert all(card.sources == ("tatoeba-pairs",) for card in cards)
    assert sum(outpace.zoo.card(name).num_bytes for name in outpace.zoo.names()) <= 64_000_000
    first, second = (Tokenizer.from_directory(outpace.zoo.path(card.name)) for card in cards)
    assert first.encode("Ein Mann fährt Fahrrad.") == second.encode("Ein Mann fährt Fahrrad.")
