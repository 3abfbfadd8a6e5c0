"""A message of a model, whole and as it grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Call", "Delta", "Message", "Telling"]


@dataclass(slots=True)
class Delta:
    """What became known of a message: one of content, reasoning, and a tool call.

    Attributes:
        content, reasoning: text to append.
        call: number of a tool call, from 0; None = it is about no call.
        id, name: of the call; only its first delta has them.
        arguments: text to append to the call's arguments.
        is_broken: these arguments stand where their JSON breaks off, or behind that.
    """

    content: str = ""
    reasoning: str = ""
    call: int | None = None
    id: str = ""
    name: str = ""
    arguments: str = ""
    is_broken: bool = False


@dataclass(slots=True)
class Call:
    """A tool call; `arguments` is the text of a JSON object, as the model wrote it."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Message:
    """What all deltas add up to."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)


class Telling:
    """Collects deltas, each kind joined with its like, and the message that they add up to."""

    def __init__(self) -> None:
        self.message, self._deltas = Message(), list[Delta]()

    def content(self, text: str) -> None:
        """Append content."""
        if text:
            self.message.content += text
            self._last(Delta(), lambda it: bool(it.content)).content += text

    def reasoning(self, text: str) -> None:
        """Append reasoning text."""
        if text:
            self.message.reasoning += text
            self._last(Delta(), lambda it: bool(it.reasoning)).reasoning += text

    def call(self, id: str, name: str) -> None:
        """Begin a call."""
        self._deltas.append(Delta(call=len(self.message.calls), id=id, name=name))
        self.message.calls.append(Call(id, name))

    def arguments(self, text: str, is_broken: bool = False) -> None:
        """Append to the last call's arguments."""
        if text:
            number = len(self.message.calls) - 1
            self.message.calls[-1].arguments += text
            fresh = Delta(call=number, is_broken=is_broken)
            like = (number, "", is_broken)
            self._last(fresh, lambda it: (it.call, it.name, it.is_broken) == like).arguments += text

    def take(self) -> list[Delta]:
        """Return the deltas since the last time."""
        taken, self._deltas = self._deltas, []
        return taken

    def _last(self, fresh: Delta, is_like: Callable[[Delta], bool]) -> Delta:
        if not self._deltas or not is_like(self._deltas[-1]):
            self._deltas.append(fresh)
        return self._deltas[-1]
