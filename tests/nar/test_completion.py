"""Networks that complete given words in training: small texts of every kind, their files, and what is measured."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import outpace
from outpace.cli import app
from outpace.errors import ConfigError
from outpace.models.nar.files import read_nar
from outpace.models.nar.sketched import Sketched
from outpace.train import TRANSLATIONS, train
from outpace.train.completion_quality import Completed, complete, given_phrases, read_set, report
from outpace.train.keywords import SETS, star_graphs, table_values
from outpace.train.nar.network import NarShape
from outpace.train.pairs import train_pair_tokenizer

STORY = "Tom had a red ball. He played in the park with his dog. The dog ran after the ball. Tom was very happy today."
TABLE = {"name": "The Vaults", "eatType": "pub", "area": "riverside", "familyFriendly": "yes"}
TOLD = "The Vaults is a family friendly pub by the riverside ."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a few texts of every set."""
    folder = tmp_path_factory.mktemp("data")
    stories = "\n<|endoftext|>\n".join(STORY.replace("ball", thing) for thing in ("ball", "kite", "boat") * 12)
    turns = [{"s": "U", "t": "Find me a hotel please."}, {"s": "S", "t": "In which city do you want the hotel?"}]
    files = {
        "tinystories/train.txt.gz": stories,
        "tinystories/valid.txt": STORY,
        "e2e_nlg/train_tokenised.jsonl.gz": "\n".join([json.dumps({"mr": TABLE, "ref_tokenised": TOLD})] * 30),
        "e2e_nlg/dev.jsonl.gz": json.dumps({"mr": TABLE, "refs": ["A pub named The Vaults.", "It is riverside."]}),
        "commongen/train.jsonl.gz": json.dumps({"concepts": ["dog", "run"], "refs": ["A dog runs home."]}),
        "sgd_dialogues/train.jsonl.gz": "\n".join([json.dumps({"turns": turns})] * 60),
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return folder


def test_sources_hold_what_their_texts_hold(data: Path) -> None:
    words = SETS["stories-words"].pairs(data, "train")
    assert ("Tom had a red ball.", 0) in {(text, 0) for _, text in words}
    for source, text in words:
        rest = iter(text.replace(".", "").split())
        assert all(word in rest for word in source.split()) and 1 <= len(source.split()) <= len(text.split()) // 3 + 1
    assert words == SETS["stories-words"].pairs(data, "train")
    for source, text in SETS["stories-gaps"].pairs(data, "train"):
        first, last = source.split("|")
        assert text.startswith(first) and text.endswith(last) and len(first) + len(last) < len(text)
    told = TOLD.replace(" .", ".")
    assert SETS["restaurants-entities"].pairs(data, "train")[0] == ("The Vaults|pub|riverside", told)
    assert SETS["restaurants-entities"].pairs(data, "valid") == [
        ("pub|The Vaults", "A pub named The Vaults."),
        ("riverside|", "It is riverside."),
    ]
    table, _ = SETS["restaurants-tables"].pairs(data, "train")[0]
    assert table == "name The Vaults, eatType pub, area riverside, familyFriendly yes"
    assert table_values(table) == ["The Vaults", "pub", "riverside"] and table_values("dog park") == []
    assert SETS["commongen-words"].pairs(data, "train") == [("dog runs", "A dog runs home.")]
    assert SETS["dialogue-turns"].pairs(data, "train")[0][1] == "In which city do you want the hotel?"
    with pytest.raises(ConfigError, match="no set of given words 'story-words'"):
        read_set("story-words", data)


def test_paths_of_stars_are_the_only_ones() -> None:
    for source, path in star_graphs(20, seed=3):
        read, given = (part.split() for part in source.split("||"))
        edges = {(edge[0], edge[1]) for edge in read}
        nodes = path.split()
        assert [nodes[0], nodes[-1]] == given and set(itertools.pairwise(nodes)) <= edges
        assert sum(a == nodes[0] for a, _ in edges) == 3 and len(edges) == 9


def test_a_word_is_the_same_tokens_wherever_it_stands() -> None:
    tokenizer = train_pair_tokenizer([("dog|park", STORY)] * 9, 300, ("|", "||"), is_spaced=True)
    alone, within = tokenizer.encode("dog", add_special_tokens=False).ids, tokenizer.encode("the dog ran").ids
    assert within[1 : 1 + len(alone)] == alone or alone == tokenizer.encode(" dog").ids[: len(alone)]
    assert tokenizer.encode(" dog | the park ||").ids == tokenizer.encode("dog|the park||").ids
    for text in ("Tom ran.", "dog ball", STORY):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    "name", ["stories-insertion", "stories-gaps", "restaurants-entities", "tables-skeleton", "dialogue-concepts"]
)
def test_recipes_learn_and_their_files_say_the_same(name: str, data: Path, tmp_path: Path) -> None:
    recipe = TRANSLATIONS[name]
    assert isinstance(recipe.shape, NarShape)
    config = replace(recipe.shape.config, width=16, heads=2, ffn=16, encoder_layers=1, decoder_layers=1)
    recipe = replace(
        recipe, shape=NarShape(config=config), vocab=290, budget=256, steps=6, checkpoint_every=3, warmup=2
    )
    assert train(recipe, tmp_path / "run", data, threads=1, steps=6) == 0
    assert train(recipe, tmp_path / "half", data, threads=1, steps=6) == 0
    one, other = (read_nar(tmp_path / run) for run in ("run", "half"))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert isinstance(one, Sketched) and bool(one.starts.any()) and not bool(one.starts.all())
    pairs = read_set(recipe.source.name, data) if name != "dialogue-concepts" else [("Find me a hotel please.", "")]
    model = outpace.load(tmp_path / "run", dtype="float32")
    found = complete(model, pairs[:4], most=60)
    assert all(one.keeps for one in found)
    assert report(found)[2].startswith(f"| {len(found)} | 100.0% |")
    if name == "restaurants-entities":
        assert model.tokenizer is not None
        phrases = given_phrases(model, model.tokenizer.encode("The Vaults|pub"))
        assert [model.tokenizer.decode(phrase) for phrase in phrases] == ["The Vaults", "pub"]


def test_the_command_shows_text_and_passes(data: Path, tmp_path: Path) -> None:
    recipe = TRANSLATIONS["stories-insertion"]
    assert isinstance(recipe.shape, NarShape)
    config = replace(recipe.shape.config, width=16, heads=2, ffn=16, encoder_layers=1, decoder_layers=1)
    recipe = replace(recipe, shape=NarShape(config=config), vocab=290, budget=256, warmup=2)
    train(recipe, tmp_path / "run", data, threads=1, steps=3)
    run = CliRunner()
    asked = ["generate", "dog park ball", "--model", str(tmp_path / "run"), "--method", "insertion", "--json"]
    shown = run.invoke(app, [*asked, "--max-tokens", "40"])
    told = json.loads(shown.stdout)
    assert re.search(r"\bdog\b.*\bpark\b.*\bball\b", told["text"], re.DOTALL)
    assert told["usage"]["target_nfe"] >= 1
    for more, message in ((["--bad-word", "park"], "both given and banned"), (["--max-tokens", "2"], "are given, but")):
        refused = run.invoke(app, [*asked, *more])
        assert isinstance(refused.exception, ConfigError) and message in str(refused.exception)
    assert "No word is given." in str(run.invoke(app, ["generate", "|", *asked[2:]]).exception)


def test_figures_are_counts() -> None:
    draw = random.Random(0)
    texts = [
        Completed(source="a", reference="a b", text=text, tokens=size, given=1, passes=passes, keeps=keeps)
        for text, size, passes, keeps in (
            ("a b", 2, 3, True),
            ("a", 1, 1, True),
            ("b c", 20, 6, False),
            ("", 2, 2, True),
        )
    ]
    draw.shuffle(texts)
    lines = report(texts)
    assert lines[2] == "| 4 | 75.0% | 25.0% | 25.0% | 6.2 | 3.00 | - |"
    assert lines[6:] == ["| 1 to 8 | 3 | 2.00 | 1.7 | 1.74 |", "| 17 to 24 | 1 | 6.00 | 20.0 | 5.32 |"]
