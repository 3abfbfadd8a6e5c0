"""A model's text as a message: reasoning, content and tool calls, told apart while the text arrives.

    parser = MessageParser(choose_format("auto", template), choose_tags("auto", template), tools=["get_weather"])
    for token in tokens:
        deltas = parser.push(token.text)
    deltas, message = parser.finish(), parser.message

What it reads is a text: how that was cut into tokens, steps or pieces changes neither the message nor what the deltas
add up to. Marks may be special tokens, which a text does not show. Where `needs_special` says so, ask the engine with
`keep_special`, and give the parser the tokenizer's special tokens as `hidden`; so a message shows no other ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from outpace.server.reasoning import Tags
from outpace.server.tools_calls import CallReader, Enough, Format
from outpace.server.tools_message import Delta, Message, Telling
from outpace.server.tools_walk import Fault, Marks, Tape, Walk

__all__ = ["MessageParser", "needs_special"]


class MessageParser:
    """Reads one message.

    A call is told as soon as it is known for one: its name is that of a tool, and its arguments begin as a JSON object.
    From there on its arguments are told as they come. What turns out before that to be no call is content, mark and
    all. If the JSON of arguments breaks off later, what was told cannot be taken back: all that the model wrote up to
    the call's end is the arguments then, as with OpenAI, where they need not be valid JSON.

    White space between reasoning, content and calls is nobody's; a message of content alone is the text as it is.

    Args:
        format: of calls; None = none are looked for, as for tool_choice "none".
        tags: around reasoning text; None = none is looked for.
        tools: names of the functions that may be called; without any, no call is looked for.
        is_open: the prompt ended in the open tag (see `Tags.is_open`).
        is_parallel: several calls may be made; else the message ends behind the first one.
        hidden: special tokens that the text shows and the message does not; marks among them stay marks.
        new_id: makes a call's id; None = at random, in the form that the format's templates take.

    Attributes:
        is_reasoning: the text stands within reasoning; a token counts as such if it did before or does behind it.
        is_done: the message ended behind its one call, and the model need not go on.
    """

    def __init__(
        self,
        format: Format | None = None,
        tags: Tags | None = None,
        tools: Collection[str] = (),
        *,
        is_open: bool = False,
        is_parallel: bool = True,
        hidden: Collection[str] = (),
        new_id: Callable[[], str] | None = None,
    ) -> None:
        self._format, self._tags = format if tools else None, tags
        self._tape, self._telling = Tape(), Telling()
        self._hidden = frozenset(hidden) - _marks(self._format, tags) - {""}
        self._content = _Voice(self._telling.content, is_free=self._format is None)
        self._calls: CallReader | None = None
        if self._format is not None:
            self._new_id = new_id or self._format.new_id
            self._calls = CallReader(self._tape, self._telling, frozenset(tools), self._begin_call, is_parallel)
        self.is_reasoning, self.is_done = is_open and tags is not None, False
        self._walk: Iterator[None] = self._read()

    @property
    def message(self) -> Message:
        """What all deltas so far add up to."""
        return self._telling.message

    def push(self, text: str) -> list[Delta]:
        """Take more of the text; return what became known."""
        if self.is_done or not text:
            return []
        self._tape.text += text
        return self._go_on()

    def finish(self) -> list[Delta]:
        """Take the end of the text; return what was held back."""
        self._tape.is_ended = True
        return self._go_on()

    def _go_on(self) -> list[Delta]:
        next(self._walk, None)
        if self._calls is not None:
            self._calls.drain()
        return self._telling.take()

    def _begin_call(self, name: str) -> None:
        self._content.pause()
        self._telling.call(self._new_id(), name)

    def _read(self) -> Walk[None]:
        tags, format = self._tags, self._format
        if tags is not None and (self.is_reasoning or (yield from self._take_open(tags.open))):
            self.is_reasoning = True
            voice = _Voice(self._telling.reasoning, is_behind=True)
            mark = yield from self._until(Marks.of(self._hidden | {tags.close}), voice)
            self._tape.at += len(mark)
            self.is_reasoning, self._content.is_behind = False, True
        marks = Marks.of(self._hidden | {format.opener} if format else self._hidden)
        may_be_bare = format is not None and format.bare != ""
        try:
            while True:
                mark = ""
                if not may_be_bare or not (yield from self._is_bare()):
                    mark = yield from self._until(marks, self._content)
                    if not mark:
                        break
                may_be_bare = yield from self._read_calls(mark)
        except Enough:
            self.is_done = True
        self._content.end()

    def _take_open(self, mark: str) -> Walk[bool]:
        yield from self._tape.spaces()
        is_there = yield from self._tape.take(mark)
        if not is_there:
            self._tape.at = 0
        return is_there

    def _is_bare(self) -> Walk[bool]:
        """Return whether a call may begin here without a mark; the white space before it is passed then."""
        assert self._format is not None
        tape, start = self._tape, self._tape.at
        found = yield from tape.spaces()
        if not found or found not in self._format.bare:
            tape.at = start
            return False
        self._content.say(tape.text[start : tape.at])
        return True

    def _until(self, marks: Marks, voice: _Voice) -> Walk[str]:
        """Say a text up to a mark and return that, or "" at the end."""
        tape = self._tape
        while True:
            end, mark = tape.find(marks)
            voice.say(tape.text[tape.at : end])
            tape.at = end
            if mark in self._hidden:
                tape.at += len(mark)
                continue
            tape.cut()
            if mark or tape.is_ended:
                return mark
            yield

    def _read_calls(self, mark: str) -> Walk[bool]:
        """Read calls behind a mark, or bare ones; return whether another bare one may follow.

        What is no call is content: its first characters are said here, so that the reading goes on behind them.
        """
        tape, calls, format, start = self._tape, self._calls, self._format, self._tape.at
        assert calls is not None and format is not None
        calls.start()
        tape.at += len(mark)
        try:
            yield from format.read(calls, mark != "")
        except Fault:
            if calls.safe is None:
                tape.at = start + (len(mark) or 1)
                self._content.say(tape.text[start : tape.at])
                return False
            tape.at = calls.safe
        return format.bare != ""


class _Voice:
    """Says a text, but for white space that belongs to nobody.

    Args:
        tell: takes what is said.
        is_free: all white space is somebody's.
        is_behind: something was told before, and white space that comes first is nobody's.
    """

    def __init__(self, tell: Callable[[str], None], *, is_free: bool = False, is_behind: bool = False) -> None:
        self._tell, self._is_free, self.is_behind = tell, is_free, is_behind
        self._waiting, self._is_begun = "", False

    def say(self, text: str) -> None:
        """Say a text; white space at its end waits until the text goes on."""
        whole = self._waiting + text
        if self.is_behind and not self._is_begun:
            whole = whole.lstrip()
        told = whole if self._is_free else whole.rstrip()
        self._waiting = whole[len(told) :]
        if told:
            self._is_begun, self.is_behind = True, False
            self._tell(told)

    def pause(self) -> None:
        """Forget the white space that waits: something else is told."""
        self._waiting, self.is_behind = "", True

    def end(self) -> None:
        """Say the white space that waits, unless it comes last behind something else."""
        if not self.is_behind:
            self._tell(self._waiting)


def _marks(format: Format | None, tags: Tags | None) -> frozenset[str]:
    return frozenset(format.marks if format else ()) | frozenset((tags.open, tags.close) if tags else ())


def needs_special(format: Format | None, tags: Tags | None, special: Collection[str]) -> bool:
    """Return whether a mark is one of a tokenizer's special tokens, so that the text has to show them."""
    return not _marks(format, tags).isdisjoint(special)
