"""`outpace chat`: a conversation in a terminal, or line by line through pipes."""

from __future__ import annotations

import codecs
import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outpace.api.request import Request
from outpace.cli.options import (
    CHAT,
    LAW,
    OUT,
    RUN,
    AdapterName,
    CacheDtype,
    Cards,
    ChatVariables,
    DeviceName,
    DtypeName,
    GenerationConfigName,
    MethodOptions,
    ModelName,
    NoCompile,
    TemplateName,
    Threads,
    bad_word_ids,
    declares,
    read_settings,
)
from outpace.cli.output import print_json, write_text
from outpace.cli.values import Device, Dtype, json_values, model_card, options
from outpace.errors import ConfigError, OutpaceError, nearest
from outpace.failures import INTERRUPTED, interruptible, tell
from outpace.sampling.settings import Sampling

if TYPE_CHECKING:
    from outpace.api.conversation import Conversation
    from outpace.api.engine import LanguageModel
    from outpace.api.result import Result
    from outpace.run.row import Row
    from outpace.types import Outcome

__all__ = ["chat"]

_FENCE = '"""'
_HELP = f"""\
/undo         take back the last turn
/retry        answer once more, with the next seed
/save FILE    write messages and settings to a file
/load FILE    go on with such a file
/system TEXT  tell the model this first; without TEXT, nothing
/clear        forget all that was said
/stats        what was written so far, and how fast
/help         this list
/quit         end, as the end of input does
A line of {_FENCE} begins a message of several lines, and another one ends it. A line that begins with a space is no
command. Ctrl-C stops an answer; what was written of it stays in the conversation, until /undo or /retry.
"""


@declares(
    (Sampling, LAW, {}),
    (
        Request,
        RUN,
        {
            **dict.fromkeys(("sampling", "regex", "json_schema", "grammar"), LAW),
            **dict.fromkeys(("num_samples", "top_log_probs", "prefix", "is_healed"), None),
            "keep_special": OUT,
        },
    ),
)
def chat(
    model: ModelName = "smollm2",
    method: Annotated[str, typer.Option(help="How to decode; it changes the speed, never the text.")] = "auto",
    option: MethodOptions = None,
    card: Cards = None,
    adapter: AdapterName = None,
    generation_config: GenerationConfigName = "model",
    dtype: DtypeName = Dtype.AUTO,
    device: DeviceName = Device.AUTO,
    no_compile: NoCompile = False,
    cache_dtype: CacheDtype = "auto",
    threads: Threads = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Tell the model this first.", rich_help_panel=CHAT)
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="No template: the model continues what you write.", rich_help_panel=CHAT)
    ] = False,
    template: TemplateName = None,
    chat_variable: ChatVariables = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print each answer as one object on a line.", rich_help_panel=OUT)
    ] = False,
    **declared: Any,
) -> int:
    """Talk with a model.

    In a terminal, answers are shown as they are written, each with a line on its speed and on what was drafted; /help
    lists the commands. Elsewhere each line of standard input is a message or a command, answers go to standard output
    and everything else to standard error; the exit status is that of the last line that could not be done.

    An answer has at most 1,024 tokens, unless --max-tokens or the model's files say otherwise.
    """
    run, law, bad_words = read_settings(declared)
    variables, pairs, replaced = json_values(chat_variable or []), options(option or []), model_card(card or [])
    if plain and (template is not None or variables or system is not None):
        raise ConfigError("--plain uses no chat template.", "Leave out --system, --template and --chat-variable.")
    Request(**run)  # refuses what is out of range
    from outpace.cli.checks import check_method

    check_method(model, method, pairs, law, replaced)
    from outpace.api.conversation import Conversation
    from outpace.api.engine import load

    is_terminal = not json and all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
    lm = load(
        model,
        dtype=dtype.value,
        device=device.value,
        is_compiled=not no_compile,
        cache_dtype=cache_dtype,
        card=replaced,
        adapter=adapter,
        threads=threads,
        generation_config=generation_config,
    )
    if not plain and not _has_chat(lm):
        if not is_terminal or system is not None or not _wants_plain(model):
            hint = "Add --plain: what you write is then continued as plain text."
            raise ConfigError(f"{model} has no chat template, so it cannot answer.", hint)
        plain = True
    talk = Conversation(
        lm,
        system=system,
        is_plain=plain,
        template=template,
        variables=variables,
        method=method,
        options=pairs,
        bad_words=bad_word_ids(bad_words, lm) or None,
        **run,
        **law,
    )
    return _Session(talk, is_terminal, json).run()


def _has_chat(lm: LanguageModel) -> bool:
    return lm.tokenizer is not None and lm.tokenizer.has_chat


def _wants_plain(model: str) -> bool:
    """Ask whether a text is to be continued, where nothing can be answered."""
    write_text(f"{model} has no chat template, so it cannot answer; it can continue what you write.\n")
    try:
        return input("Go on with that? [Y/n] ").strip().lower() in ("", "y", "yes")
    except EOFError:
        return False


@dataclass(slots=True)
class _Drafts:
    """What was drafted by whom, of one answer or of many; it is called after each step.

    Attributes:
        tokens: written, per drafter; those that were not drafted are not in it.
        num_tokens: written in all.
        num_answers: that it is about.
        seconds: of decoding.
    """

    tokens: Counter[str] = field(default_factory=Counter)
    num_tokens: int = 0
    num_answers: int = 0
    seconds: float = 0.0

    def __call__(self, rows: Sequence[Row], outcome: Outcome) -> None:
        """Count a step's accepted drafts for the one who drafted."""
        del rows
        if outcome.proposal is not None and isinstance(outcome.proposal.origin, str):
            self.tokens[outcome.proposal.origin] += sum(outcome.accepted)

    def end(self, result: Result) -> None:
        """Count an answer."""
        self.num_tokens, self.num_answers = self.num_tokens + len(result.tokens), self.num_answers + 1
        self.seconds += result.timing["decode_s"]

    def add(self, other: _Drafts) -> None:
        """Count what another one counted."""
        self.tokens += other.tokens
        self.num_tokens, self.num_answers = self.num_tokens + other.num_tokens, self.num_answers + other.num_answers
        self.seconds += other.seconds

    def told(self) -> str:
        """Return tokens, speed and the share that was drafted, in words."""
        rate, drafted = self.num_tokens / max(self.seconds, 1e-9), sum(self.tokens.values())
        names = ", ".join(name for name, count in self.tokens.most_common() if count and name)
        share = f"{drafted / max(self.num_tokens, 1):.0%} drafted" + (f" by {names}" if names else "")
        return f"{self.num_tokens} tokens, {rate:.0f} per second, {share}"


class _Session:
    """A conversation as it is held: lines come in, answers and remarks go out.

    Args:
        talk: what it is about.
        is_terminal: a person looks on; else lines come through a pipe.
        is_json: answers are shown as objects.
    """

    def __init__(self, talk: Conversation, is_terminal: bool, is_json: bool) -> None:
        self.talk, self.is_terminal, self.is_json = talk, is_terminal, is_json
        self.all, self.status, self.is_over = _Drafts(), 0, False
        self.said_notes: set[str] = set()
        self.commands: dict[str, Callable[[str], None]] = {
            "undo": self._undo,
            "retry": self._retry,
            "save": self._save,
            "load": self._load,
            "system": self._system,
            "clear": self._clear,
            "stats": self._stats,
            "help": self._help,
            "quit": self._quit,
        }

    def run(self) -> int:
        """Answer until the lines end; return the exit status."""
        if self.is_terminal:
            self._introduce()
        for text in _typed() if self.is_terminal else _piped():
            try:
                if text.startswith("/"):
                    self._command(text)
                elif text.strip():
                    self._answer(functools.partial(self.talk.say, text.strip()))
            except OutpaceError as error:
                tell(str(error), error.hint)
                self.status = 0 if self.is_terminal else error.exit_status
            except KeyboardInterrupt:  # the second one of an answer, or one between two answers
                self._remark("\nStopped at once; an answer that was not finished is dropped.")
                self.is_over, self.status = not self.is_terminal, 0 if self.is_terminal else INTERRUPTED
            if self.is_over:
                break
        return self.status

    def _introduce(self) -> None:
        settings, offered = self.talk.settings, self.talk.lm.target.capabilities
        kind = "continues what you write" if self.talk.is_plain else "answers"
        self._remark(
            f"{self.talk.lm.name} {kind}, method {settings.get('method')}, context of {offered.max_positions:,} "
            "tokens. /help lists the commands; Ctrl-C stops an answer, Ctrl-D ends."
        )

    def _answer(self, write: Callable[..., Result]) -> None:
        """Write an answer as it comes, then what it took."""
        drafts = _Drafts()
        with interruptible() as is_wished:
            result = write(
                on_text=None if self.is_json else lambda _, text: write_text(text), is_cancelled=is_wished, watch=drafts
            )
        drafts.end(result)
        self.all.add(drafts)
        if self.is_json:
            print_json(result.to_dict())
        else:
            write_text("\n")
        if self.is_terminal:
            self._remark(f"{result.method}: {drafts.told()}{_ended(result)}")
        for note in () if self.is_json or result.finish_reason == "cancelled" else result.notes:
            if note not in self.said_notes:  # most are about the model, and hold for every answer
                self._remark(f"note: {note}")
            self.said_notes.add(note)
        if result.finish_reason == "error":
            raise OutpaceError("The answer broke off with an error; it is no part of the conversation.", "Try /retry.")
        if result.finish_reason == "cancelled" and not self.is_terminal:
            self.is_over, self.status = True, INTERRUPTED

    def _remark(self, text: str) -> None:
        """Write what is no answer, dimmed in a terminal; nobody may be listening."""
        is_dim = self.is_terminal and sys.stderr is not None and sys.stderr.isatty()
        shown = f"\x1b[2m{text}\x1b[0m\n" if is_dim else f"{text}\n"
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.stderr.write(shown)
            sys.stderr.flush()

    # Commands

    def _command(self, line: str) -> None:
        name, _, rest = line[1:].partition(" ")
        if name.strip() not in self.commands:
            known = [f"/{command}" for command in self.commands]
            hint = nearest(f"/{name}", known, "command") + " A message may begin with a space before the /."
            raise ConfigError(f"There is no command /{name}.", hint)
        self.commands[name.strip()](rest.strip())

    def _undo(self, rest: str) -> None:
        del rest
        self._remark(f"Taken back: {_short(self.talk.undo())}")

    def _retry(self, rest: str) -> None:
        del rest
        before = self.talk.messages[-1:]
        self._answer(self.talk.retry)
        if self.talk.messages[-1:] == before:
            self._remark("The same answer again: nothing is drawn at temperature 0.")

    def _save(self, rest: str) -> None:
        path = _named(rest, "save")
        if path.exists():  # a mistyped name must not cost another file
            try:
                type(self.talk).load(path, self.talk.lm)
            except ConfigError:
                raise ConfigError(f"{path} is there, and no saved conversation.", "Name another file.") from None
        self.talk.save(path)
        self._remark(f"Saved: {path}")

    def _load(self, rest: str) -> None:
        path = _named(rest, "load")
        recall, self.talk = self.talk.recall, type(self.talk).load(path, self.talk.lm)
        self.talk.recall = recall
        turns, settings = _counted(len(self.talk.messages) // 2, "turn"), self.talk.settings
        told = f"Loaded: {turns} with settings, method {settings.get('method')}."
        other = f" They were written with {self.talk.model}." if self.talk.model != self.talk.lm.name else ""
        self._remark(told + other)

    def _system(self, rest: str) -> None:
        if rest and self.talk.is_plain:
            raise ConfigError("A plain text has no system prompt.", "Write it at the beginning of the text.")
        self.talk.system = rest or None
        self._remark(f"Told first from now on: {_short(rest)}" if rest else "Nothing is told first.")

    def _clear(self, rest: str) -> None:
        del rest
        self.talk.messages = []
        self._remark("Forgotten: the conversation is empty.")

    def _stats(self, rest: str) -> None:
        del rest
        answers, turns = _counted(self.all.num_answers, "answer"), _counted(len(self.talk.messages) // 2, "turn")
        self._remark(f"{answers}, {self.all.told()}; {turns} in the conversation.")

    def _help(self, rest: str) -> None:
        del rest
        self._remark(_HELP.rstrip())

    def _quit(self, rest: str) -> None:
        del rest
        self.is_over = True


def _ended(result: Result) -> str:
    """Return how an answer ended, where it was not by itself."""
    told = {
        "length": f", cut after {len(result.tokens)} tokens",
        "cancelled": ", stopped; what was written stays" if result.text else ", stopped before a word was written",
    }
    return told.get(result.finish_reason, "")


def _named(rest: str, command: str) -> Path:
    if not rest:
        raise ConfigError(f"/{command} needs a file.", f"Name one, as in /{command} talk.json.")
    return Path(rest).expanduser()


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."


def _typed() -> Iterator[str]:
    """Yield messages and commands that a person types, until the end of input."""
    with contextlib.suppress(ImportError):  # not on Windows
        import readline  # noqa: F401 - gives `input` editing and a history

    def read(is_open: bool) -> str | None:
        try:
            return input("... " if is_open else "> ")
        except EOFError:
            write_text("\n")
            raise
        except KeyboardInterrupt:
            write_text("\nCtrl-D or /quit ends.\n")
            return None

    yield from _joined(read)


def _piped() -> Iterator[str]:
    """Yield messages and commands from standard input, line by line.

    Raises:
        ConfigError: a line is not UTF-8.
    """
    lines = enumerate(() if sys.stdin is None else sys.stdin.buffer, 1)

    def read(is_open: bool) -> str:
        del is_open
        number, line = next(lines, (0, b""))
        if not number:
            raise EOFError
        try:
            return line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise ConfigError(f"Line {number} of standard input is not valid UTF-8.", "Convert it first.") from None

    yield from _joined(read)


def _joined(read: Callable[[bool], str | None]) -> Iterator[str]:
    """Yield messages: lines, and those between two fences as one; a fence that stays open ends with the input.

    Args:
        read: returns the next line, told whether a fence is open; None drops what stands behind it. EOFError ends.
    """
    block: list[str] | None = None
    with contextlib.suppress(EOFError):
        while True:
            line = read(block is not None)
            if line is None:
                block = None
            elif line.strip() == _FENCE:
                if block is not None:
                    yield _message(block)
                block = [] if block is None else None
            elif block is not None:
                block.append(line)
            else:
                yield line
    if block:
        yield _message(block)


def _message(lines: Sequence[str]) -> str:
    return " " + "\n".join(lines)  # what begins with a space is no command
