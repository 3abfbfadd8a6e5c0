"""`outpace chat`: line by line through pipes, and once in a terminal; `test_conversation.py` has what lies below."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests_cli import Command, start

import outpace
from outpace.cli import chat as command

DOG, CAT = "Once upon a time there was a dog.", "And a cat."
LIMIT_S = 120.0  # without a word; only a command that hangs takes it


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A small random model; its template frames messages by role."""
    folder = tmp_path_factory.mktemp("chat") / "talker"
    shutil.copytree(tiny, folder)
    return folder


def said(cli: Command, model: Path, *lines: str, flags: tuple[object, ...] = ("--max-tokens", 8)) -> object:
    return cli("chat", "--model", model, *flags, stdin="\n".join(lines).encode())


def test_each_line_gets_the_answer_of_chat(cli: Command, model: Path) -> None:
    law = {"temperature": 0.8, "seed": 4, "max_tokens": 9, "ignore_eos": True}
    flags = ("--temperature", 0.8, "--seed", 4, "--max-tokens", 9, "--ignore-eos", "--system", "Be kind.")
    lm, told, texts = outpace.load(model), [{"role": "system", "content": "Be kind."}], []
    for text in (DOG, f"{CAT}\n/more"):
        told.append({"role": "user", "content": text})
        texts.append(lm.chat(told, **law).text)
        told.append({"role": "assistant", "content": texts[-1]})
    lines = [DOG, "", '"""', CAT, "/more", '"""']
    ended = said(cli, model, *lines, flags=flags)
    assert ended.status == 0 and ended.out == "".join(f"{text}\n" for text in texts)
    shown = [json.loads(line) for line in said(cli, model, *lines, flags=(*flags, "--json")).out.splitlines()]
    assert [answer["text"] for answer in shown] == texts and {answer["method"] for answer in shown} == {"auto"}


def test_commands_change_the_conversation(cli: Command, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    first = said(cli, model, DOG, CAT, "/undo", f"/save {path}", "/stats", " /quit", "/retry", "/quit", CAT)
    assert first.status == 0 and len(json.loads(path.read_text())["messages"]) == 2
    assert "Taken back: And a cat." in first.err and "2 answers, 16 tokens" in first.err
    assert "1 turn in the conversation" in first.err and "The same answer again" in first.err
    assert first.out.count("\n") >= 4
    again = said(cli, model, f"/load {path}", "/system Be kind.", f"/save {path}", "/clear", "/help", "/system")
    assert (again.status, again.out) == (0, "")
    assert "Loaded: 1 turn with settings, method auto." in again.err and "Forgotten" in again.err
    assert all(
        f"/{name}" in again.err for name in ("undo", "retry", "save", "load", "system", "clear", "stats", "quit")
    )
    assert json.loads(path.read_text())["system"] == "Be kind."


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/undoo", "There is no command /undoo.\nhint: Did you mean '/undo'?"),
        ("/undo", "Nothing was said yet."),
        ("/save", "/save needs a file."),
        ("/load nowhere.json", "nowhere.json cannot be read"),
        ("/save {model}/config.json", "config.json is there, and no saved conversation."),
        ("/load {model}/config.json", "config.json is no saved conversation."),
    ],
)
def test_what_cannot_be_done_is_named_and_the_rest_goes_on(cli: Command, model: Path, line: str, words: str) -> None:
    ended = said(cli, model, line.format(model=model), DOG)
    assert ended.status == 2 and words in ended.err and ended.out


def test_input_that_is_no_text(cli: Command, model: Path) -> None:
    ended = cli("chat", "--model", model, "--max-tokens", 2, stdin=b"\xef\xbb\xbfhello\n\xff\n")
    assert ended.status == 2 and "Line 2 of standard input is not valid UTF-8." in ended.err and ended.out


def test_a_model_without_a_template_is_offered_plain_text(cli: Command, model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "tokenizer_config.json").write_text("{}")
    ended = said(cli, bare, DOG)
    assert ended.status == 2 and "has no chat template, so it cannot answer.\nhint: Add --plain" in ended.err
    ended = said(cli, bare, DOG, "/system x", flags=("--plain", "--max-tokens", 8))
    assert ended.out == outpace.load(bare).generate(DOG, max_tokens=8).text + "\n"
    assert ended.status == 2 and "A plain text has no system prompt." in ended.err
    assert "uses no chat template" in said(cli, bare, DOG, flags=("--plain", "--system", "x")).err


def test_mistakes_are_found_before_weights_load(cli: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outpace.api.engine.load", lambda *args, **kwargs: pytest.fail("weights were loaded"))
    for flags, words in [
        (("--temperature", -1), "temperature is -1"),
        (("--method", "autoo"), "autoo"),
        (("-o", "arm=x"), "no option 'arm'"),
        (("--max-tokens", 0), "max_tokens is 0"),
        (("--stop", ""), "A stop string is empty"),
    ]:
        ended = said(cli, model, DOG, flags=flags)
        assert ended.status == 2 and words in ended.err


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_it_where_nobody_looks_on(
    cli: Command, cycle: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    write, left = command.write_text, [signal.SIGINT] * times

    def interrupted(text: str) -> None:
        write(text)
        while left:
            signal.raise_signal(left.pop())

    monkeypatch.setattr(command, "write_text", interrupted)
    flags = ("--plain", "--max-tokens", 500, "--method", "autoregressive")
    ended = cli("chat", "--model", cycle, *flags, stdin=" 日\nmore\n".encode())
    assert ended.status == 130 and ended.out == ("語\n", "語")[times - 1]
    assert ("an answer that was not finished is dropped" in ended.err) is (times == 2)


# In a terminal


class Terminal:
    """The command behind a pseudo-terminal."""

    def __init__(self, *arguments: object) -> None:
        self.master, inner = os.openpty()
        self.process = start(*arguments, stdin=inner, stdout=inner, stderr=inner, preexec_fn=os.setsid)
        os.close(inner)
        self.seen = ""

    def until(self, words: str) -> str:
        """Read until some words were shown and return what was shown since the last call."""
        at = len(self.seen)
        while words not in self.seen[at:]:
            assert self._read(LIMIT_S), f"{words!r} did not come after: {self.seen[at:]!r}"
        return self.seen[at:]

    def interrupt_until(self, words: str) -> None:
        """Press Ctrl-C until some words are shown: readline loses one that comes while the prompt is being made."""
        at = len(self.seen)
        for _ in range(int(LIMIT_S)):
            self.process.send_signal(signal.SIGINT)
            while words not in self.seen[at:] and self._read(1):
                pass
            if words in self.seen[at:]:
                return
        raise AssertionError(f"{words!r} did not come after: {self.seen[at:]!r}")

    def _read(self, patience_s: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], patience_s)
        if not ready:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # how Linux says that the other side is closed
            data = b""
        assert data, f"it ended after: {self.seen!r}"
        self.seen += data.decode("utf-8", "replace")
        return True

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def close(self) -> int:
        """Press Ctrl-D until it ends: one that comes before readline has the terminal is lost too."""
        try:
            for _ in range(int(LIMIT_S)):
                with contextlib.suppress(OSError):
                    self.type("\x04")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return self.process.wait(1)
            raise AssertionError(f"it did not end after: {self.seen!r}")
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.master)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_a_session_in_a_terminal(cycle: Path, tmp_path: Path) -> None:
    """Ctrl-C stops an answer and not the session, and what was written of it stays."""
    path = tmp_path / "talk.json"
    terminal = Terminal("chat", "--model", cycle, "--plain", "--max-tokens", 50_000, "--method", "suffix")
    try:
        assert "method suffix" in terminal.until("> ")
        terminal.type(" 日\n")
        terminal.until("語é🙂ж 日" * 8)
        terminal.process.send_signal(signal.SIGINT)
        shown = terminal.until("> ")
        assert "stopped; what was written stays" in shown and "drafted by suffix" in shown and " per second" in shown
        assert "note: Cancelled" not in shown
        terminal.type("/what\n")
        assert "There is no command /what." in terminal.until("> ")
        terminal.interrupt_until("Ctrl-D or /quit ends.")
        terminal.type(f"/save {path}\n")
        terminal.until("Saved:")
        assert terminal.close() == 0
    except BaseException:
        terminal.process.kill()
        terminal.process.wait()
        raise
    user, answer = json.loads(path.read_text(encoding="utf-8"))["messages"]
    assert user["content"] == "日" and answer["content"].startswith("語é🙂ж")


if sys.platform == "win32":  # no signals of this kind, no pseudo-terminals
    pytestmark = pytest.mark.skip
