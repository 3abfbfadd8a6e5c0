"""`outpace generate --regex, --json-schema, --grammar`: texts, files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_bad_input import check
from tests_cli import Command

pytest.importorskip("llguidance")
SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "grammar.lark").write_text('start: "I am " ("a cat" | "é🙂")\n')
    (tmp_path / "latin.lark").write_bytes('start: "é"'.encode("latin1"))
    (tmp_path / "broken.lark").write_text('start: "a" [')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("method", ["autoregressive", "prompt-lookup", "draft-model"])
@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        (["--regex", "(yes|no), sir"], ["yes, sir", "no, sir"]),
        (["--json-schema", "schema.json"], ['{"n": 1}', '{"n": 22}']),
        (["--json-schema", json.dumps(SCHEMA)], ['{"n": 1}', '{"n": 22}']),
        (["--grammar", "grammar.lark"], ["I am a cat", "I am é🙂"]),
    ],
    ids=["regex", "file", "json", "grammar"],
)
def test_the_text_is_of_the_language(
    cli: Command, folder: Path, method: str, flags: list[str], texts: list[str]
) -> None:
    shown = []
    for extra in ([], ["--ignore-eos"]):
        ended = cli("generate", "Once upon a time", "--method", method, "--temperature", "0.9", *flags, *extra)
        assert (ended.status, ended.err) == (0, "")
        assert ended.out.removesuffix("\n") in texts
        shown.append(ended.out)
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        (["--regex", "[0-9"], "cannot be used: unterminated character set", "escape"),
        (["--regex", r"[^\s\S]"], "allows no text at all", "exclude"),
        (["--regex", ""], "only the empty text", "exclude"),
        (["--json-schema", "{"], "JSON schema is not JSON", "commas"),
        (["--json-schema", "none.json"], "no file none.json", "path"),
        (["--json-schema", "grammar.lark"], "JSON schema is not JSON", "commas"),
        (["--json-schema", '{"type": "integer", "minimum": 5, "maximum": 3}'], "allows no text at all", "exclude"),
        (["--grammar", "none.lark"], "no file none.lark", "path"),
        (["--grammar", "."], "no file .", "path"),
        (["--grammar", "latin.lark"], "not valid UTF-8", "iconv"),
        (["--grammar", "broken.lark"], "grammar cannot be used: 1(13)", "LINE(COLUMN)"),
        (["--grammar", "grammar.lark", "--regex", "a"], "2 constraints", "one"),
        (
            ["--model", "stories-mask", "--method", "masked-diffusion", "--max-tokens", "3", "--regex", "[a-z]{200}"],
            "No text of at most 3 tokens meets the regular expression",
            "more tokens",
        ),
    ],
    ids=str,
)
def test_what_is_refused(cli: Command, folder: Path, flags: list[str], message: str, hint: str) -> None:
    check(cli("generate", "Once", *flags), 2, message, hint)


def test_a_dead_end_is_an_error_that_keeps_the_text(cli: Command, folder: Path) -> None:
    """A dead end so far in that compiling does not find it."""
    (folder / "dead.lark").write_text("start: /[a-z]{9}/ END\nEND: /a/ & /b/")
    ended = cli("generate", "Once", "--grammar", "dead.lark")
    check(ended, 1, "allows no token here", "loosen")
    assert len(ended.out.strip()) == 9
    result = json.loads(cli("generate", "Once", "--grammar", "dead.lark", "--json").out)
    assert result["finish_reason"] == "error" and len(result["text"]) == 9
    assert sum("allows no token here" in note for note in result["notes"]) == 1
