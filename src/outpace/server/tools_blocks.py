"""A message as blocks one behind another, as /v1/responses and /v1/messages have it: reasoning, text, calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from outpace.server.tools_message import Delta

__all__ = ["Block", "Blocks", "Change"]

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Block:
    """A stretch of a message.

    Attributes:
        index: its place in the message.
        kind: what it is.
        text: what it says; of a call, its arguments.
        id, name: of a call.
    """

    index: int
    kind: Kind
    text: str = ""
    id: str = ""
    name: str = ""


@dataclass(slots=True)
class Change:
    """What happened to a block: it is opened, goes on by a piece of text, or is closed."""

    what: Literal["open", "more", "close"]
    block: Block
    piece: str = ""


class Blocks:
    """The blocks of a message as it grows.

    Args:
        has_broken: arguments that are no JSON are told as such; else what follows the fault is a block of text, so that
            clients that read JSON as it comes read a beginning of it.
    """

    def __init__(self, has_broken: bool = True) -> None:
        self.all: list[Block] = []
        self._has_broken, self._is_open = has_broken, False

    def feed(self, deltas: Iterable[Delta]) -> Iterator[Change]:
        """Take deltas; yield what they change."""
        for delta in deltas:
            kind: Kind = "reasoning" if delta.reasoning else "call" if delta.call is not None else "text"
            piece = delta.reasoning or delta.content or delta.arguments
            if delta.is_broken and not self._has_broken:
                kind = "text"
            if delta.name or not self._is_open or self.all[-1].kind != kind:
                yield from self.close()
                self.all.append(Block(len(self.all), kind, id=delta.id, name=delta.name))
                self._is_open = True
                yield Change("open", self.all[-1])
            if piece:
                self.all[-1].text += piece
                yield Change("more", self.all[-1], piece)

    def close(self) -> Iterator[Change]:
        """Close the last block, if one is open."""
        if self._is_open:
            self._is_open = False
            yield Change("close", self.all[-1])
