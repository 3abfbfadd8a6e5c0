"""Rhymes and couplets: the rule by spelling on known pairs, a dictionary, and what models are trained on and asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from outpace.bench.rhymes import Couplet, _row, main, toy_couplets, toy_rhymes
from outpace.errors import ConfigError
from outpace.text.rhymes import Pronunciations, last_word, rhyme_by_spelling, rhymes
from outpace.train.verses import couplets, rhyme_first, verse_lines

TEXT = """The cat sat on the mat. A dog ran in the park! It was very, very dark outside in the park.
He put it on his hat. "Then she saw a big bird," he said. They all went out to play. It was a sunny day."""
DICTIONARY = """;;; a comment
park P AA1 R K
dark D AA1 R K # as said
light L AY1 T
knight N AY1 T
lead L EH1 D
lead(2) L IY1 D
bread B R EH1 D
bead B IY1 D
robot R OW1 B AA2 T
"""


@pytest.mark.parametrize(
    ("pair", "is_told"),
    [
        *((pair, True) for pair in ("park dark", "sky try", "cake lake", "day play")),
        *((pair, False) for pair in ("cat cat", "love move", "want ant", "robot not", "light kite", "mat park")),
    ],
)
def test_the_rule_by_spelling(pair: str, is_told: bool) -> None:
    assert rhymes(*pair.split()) is is_told


def test_the_last_word_is_found_behind_marks() -> None:
    assert last_word('He said: "It is Tom\'s Park!"') == "park" and last_word("12 ...") == ""


def test_words_rhyme_as_they_are_said(tmp_path: Path) -> None:
    file = tmp_path / "words.dict"
    file.write_text(DICTIONARY, encoding="latin-1")
    said = Pronunciations.read(file)
    assert rhymes("light", "knight", said) and rhymes("park", "dark", said)
    assert rhymes("lead", "bread", said) and rhymes("lead", "bead", said) and not rhymes("bread", "bead", said)
    assert not rhymes("light", "unheard", said) and not rhymes("light", "light", said)


@pytest.mark.parametrize("text", [None, "", "light\n"])
def test_what_is_no_dictionary_is_refused(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "words.dict"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=r"words\.dict"):
        Pronunciations.read(file)


def test_couplets_rhyme_and_are_the_same_in_every_run() -> None:
    lines = verse_lines(TEXT)
    assert "very dark outside in the park" in lines and all(4 <= len(line.split()) <= 9 for line in lines)
    found = list(couplets(lines))
    assert found == list(couplets(lines)) and found
    assert all(rhymes(last_word(a), last_word(b)) and {a, b} <= {*lines} for a, b in found)
    by_hand = {a for a in lines if any(rhymes(last_word(a), last_word(b)) for b in lines)}
    assert {a for a, _ in found} == by_hand  # each line that has a partner, once
    assert len(found) == len(by_hand)


def test_without_the_word_before_it_a_line_is_the_plain_one() -> None:
    for pair in couplets(verse_lines(TEXT)):
        for line in pair:
            told, _, rest = rhyme_first(line).partition(": ")
            assert rest == line and told == last_word(line) and rhyme_by_spelling(told)


def test_shares_are_those_of_the_couplets() -> None:
    found = [Couplet("a dark park", "so big a shark", "shark"), Couplet("a dark park", "the sea", "lark")]
    row = _row("x", found, None)
    assert (row["spelt"], row["kept"], row["said"], row["different"]) == (50, 50, None, 100)


def test_the_command_refuses_too_few(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stories", "--count", "1"]) == 2
    assert "1 couplets" in capsys.readouterr().err


def test_couplets_of_the_toy_rhyme_and_are_the_same_without_the_words_told() -> None:
    plain, first = toy_couplets(40, 3, False), toy_couplets(40, 3, True)
    for bare, told in zip(plain, first, strict=True):
        lines = [line.split(",") for line in ",".join(map(str, told[1:-1])).rstrip("1").rstrip(",").split(",1,")]
        assert all(line[0] == line[-1] for line in lines) and len(lines) == 2
        stripped = [int(token) for line in lines for token in [*line[1:], "1"]]
        assert [0, *stripped, 0] == bare
        assert toy_rhymes(int(lines[0][-1]), int(lines[1][-1]))
    assert not toy_rhymes(2, 2) and not toy_rhymes(4, 5) and not toy_rhymes(2, 1) and toy_rhymes(2, 4)


def test_the_toy_runs_and_refuses_no_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--steps", "2", "--count", "4"]) == 0
    assert "rhyme first" in capsys.readouterr().out
    assert main(["--steps", "0"]) == 2
    assert "No steps" in capsys.readouterr().err
