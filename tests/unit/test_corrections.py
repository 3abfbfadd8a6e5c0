"""Correctors: mistakes by rule, what they are worth, and editing networks from training to text."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

import outpace
from outpace.errors import ConfigError, ModelError
from outpace.models.editing.files import load_editor
from outpace.train.correction_quality import measure, oracle_line, read_set, score, write_card
from outpace.train.corrections import CORRECTIONS, FEW_CORRECTIONS, correction_pairs
from outpace.train.mistakes import RULES, make_mistakes, pieces, swap_words
from outpace.train.pairs import PairSource
from outpace.train.recipes import TRANSLATIONS, TranslationRecipe
from outpace.train.trainer import train
from outpace.train.translation.editing import EditorShape

CLEAN = (
    "She goes to school every day, and they are happy there.",
    "I have two books about an old house in the city.",
    "Tom doesn't know whether he can come with us tomorrow.",
    "We were watching a film when the telephone rang.",
    "Your brother has eaten this cake in my room!",
)


def test_mistakes_are_a_function_of_seed_and_sentence() -> None:
    pairs = correction_pairs(CLEAN, 3, draws=4)
    assert pairs == correction_pairs(CLEAN, 3, draws=4) != correction_pairs(CLEAN, 4, draws=4)
    assert [right for _, right in pairs] == list(CLEAN) * 4
    assert 0 < sum(wrong == right for wrong, right in pairs) < len(pairs)
    assert all(wrong.strip() == wrong and "  " not in wrong for wrong, _ in pairs)
    assert make_mistakes(CLEAN[0], Random(0), most=0) == CLEAN[0]


def test_every_rule_applies_and_changes_one_piece() -> None:
    seen = Counter[int]()
    for sentence in CLEAN:
        bare = [piece.strip() for piece in pieces(sentence)]
        assert "".join(pieces(sentence)) == sentence
        for number, rule in enumerate(RULES):
            found = [rule(bare, at, Random(draw)) for at in range(len(bare)) for draw in range(3)]
            seen[number] += sum(new is not None and new not in bare for new in found)
    assert all(seen[number] for number in range(len(RULES))), seen


@pytest.mark.parametrize(
    ("words", "at", "wrong"),
    [("she goes home", 1, "go"), ("to went home", 1, None), ("has eaten it", 1, "eat"), ("two books", 1, "book")],
)
def test_mistakes_stand_where_the_right_word_can_be_told(words: str, at: int, wrong: str | None) -> None:
    found = {rule(words.split(), at, Random(draw)) for rule in RULES for draw in range(30)}
    assert wrong in found


def test_swapped_words_are_the_same_words() -> None:
    swapped = {swap_words("we can see it now", Random(draw), share=1.0) for draw in range(20)}
    assert len(swapped) > 1 and {tuple(sorted(text.split())) for text in swapped} == {("can", "it", "now", "see", "we")}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data/tatoeba_pairs"
    folder.mkdir(parents=True)
    for split, sentences in (("train", CLEAN), ("valid", CLEAN[:1]), ("test", CLEAN[1:2])):
        import gzip

        lines = "".join(f"{sentence}\tnichts\n" for sentence in sentences)
        (folder / f"en-de.{split}.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    return tmp_path / "data"


def test_held_out_sentences_are_not_taught(data: Path) -> None:
    taught = {right for _, right in FEW_CORRECTIONS.pairs(data, "train")}
    assert taught == set(CLEAN[2:])
    assert [right for _, right in FEW_CORRECTIONS.pairs(data, "test")] == [CLEAN[1]]
    with pytest.raises(ConfigError, match=r"training text .* is missing"):
        CORRECTIONS.pairs(data, "train")


def test_edits_are_counted_against_the_reference_that_serves_best() -> None:
    samples = [("She go to school .", ("She goes to school .", "She went to a school .")), ("Fine.", ("Fine.",))]
    assert score(samples, ["She goes to school .", "Fine."]) == (1.0, 1.0, 1.0)
    assert score(samples, ["She went to school .", "Fine."]) == (1.0, 0.5, pytest.approx(1.25 / 1.5))
    precision, recall, f05 = score(samples, ["She go to school .", "Good."])
    assert (precision, recall, f05) == (0.0, 0.0, 0.0)


def test_jfleg_is_read_as_people_write(tmp_path: Path) -> None:
    folder = tmp_path / "jfleg"
    folder.mkdir()
    for name in ("src", "ref0", "ref1", "ref2", "ref3"):
        (folder / f"dev.{name}").write_text("I do n't ( really ) know , John 's car .\n")
    assert read_set("jfleg:dev", tmp_path)[0][0] == "I don't (really) know, John's car."
    (folder / "dev.ref3").unlink()
    with pytest.raises(ConfigError, match=r"dev\.ref3 is missing"):
        read_set("jfleg:dev", tmp_path)
    with pytest.raises(ConfigError, match="no set of corrections 'jflag'"):
        read_set("jflag:dev", tmp_path)


def few_words(paths: list[Path]) -> list[tuple[str, str]]:
    del paths
    words = ["red", "cat", "sun", "box", "sea", "man", "dog", "ice"]
    random = Random(5)
    texts = [" ".join(random.choices(words, k=random.randrange(2, 5))) for _ in range(200)]
    return [(text.replace("cat", "kat"), text) for text in texts]


TINY = TranslationRecipe(
    name="tiny",
    summary="A test.",
    vocab=280,
    objective="correction",
    source=PairSource(
        name="few", splits={"train": (), "valid": ()}, read=few_words, origin="", licence="none", note="words"
    ),
    shape=EditorShape(kind="copy-ctc", width=16, layers=1, heads=2, ffn=32, context=64),
    budget=600,
    joined=0.0,
    steps=60,
    gpu_steps=60,
    warmup=5,
    matrix_rate=2e-2,
    other_rate=2e-2,
)


@pytest.mark.parametrize("kind", ["copy-ctc", "edit5"])
def test_editors_learn_and_are_exported_and_opened(kind: str, tmp_path: Path) -> None:
    recipe = replace(TINY, shape=replace(TINY.shape, kind=kind))
    assert train(recipe, tmp_path / kind, data=tmp_path, threads=1) == 0
    model = outpace.load(str(tmp_path / kind), dtype="float32")
    samples = [("red kat", ("red cat",)), ("dog sun ice", ("dog sun ice",)), ("kat kat", ("cat cat",))]
    work, texts = measure(model, "few", samples)
    assert texts == [references[0] for _, references in samples]
    assert work.right == work.fixed == work.kept == work.f05 == 1.0
    assert work.steps == 1.0 if kind == "copy-ctc" else work.tokens < work.rewriting
    write_card(tmp_path / kind, [work])
    assert "| few | 3 | 100.0% | 100.0% |" in (tmp_path / kind / "card.md").read_text()


def test_files_of_editors_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    network = TINY.shape.build(280)
    assert network.network.sizes.vocab == 280
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "outpace_copy_ctc", "width": 8}')
    with pytest.raises(ModelError, match="lacks 'vocab_size'"):
        load_editor(folder)
    files = network.export()
    import json

    (folder / "config.json").write_text(json.dumps(files.config))
    with pytest.raises(ModelError, match="no whole editing model"):
        load_editor(folder)


def test_recipes_of_editors_share_the_tokenizer_of_the_corrector() -> None:
    names = ("correct-ctc", "correct-edit5", "correct-spans")
    assert {TRANSLATIONS[name].parent for name in names} == {"correct"}
    assert {TRANSLATIONS[name].vocab for name in names} == {TRANSLATIONS["correct"].vocab}
    assert TRANSLATIONS["correct"].method == "input-guided"


def test_the_shipped_corrector_is_small_and_corrects() -> None:
    card = outpace.zoo.card("correct")
    assert card.parameters <= 2_200_000 and card.num_bytes <= 4_400_000 and card.method == "input-guided"
    model = outpace.load("correct")
    wrong = {
        "He are my friend.": "He is my friend.",
        "I have two book.": "I have two books.",
        "tom is here": "Tom is here.",
    }
    wrong |= {"She have a dog.": "She has a dog.", "It is a a good book.": "It is a good book."}
    right = ["This is a good day.", "Tom didn't know that.", "She goes to school."]
    texts = [*wrong, *right]
    plain = model.generate(texts, max_tokens=30, method="autoregressive")
    drafted = model.generate(texts, max_tokens=30, method="input-guided")
    assert [a.tokens for a in plain] == [b.tokens for b in drafted]
    is_right = [one.text == wanted for one, wanted in zip(plain, [*wrong.values(), *right], strict=True)]
    assert all(is_right[len(wrong) :]) and sum(is_right) >= len(texts) - 2
    assert sum(one.usage.num_steps for one in drafted) < sum(one.usage.num_steps for one in plain) / 2


def test_spans_of_references_are_counted() -> None:
    assert (
        oracle_line("x", [("She go home.", ("She goes home.",)), ("Fine.", ("Fine.",))])
        == "| x | 2 | 2 | 8 | 19 | 42.1% |"
    )
