"""What an engine's process and its owner say to each other: lists of messages, each list one frame of a pipe.

Both ends are ours: nothing from outside is unpickled.
"""

from __future__ import annotations

import pickle
import struct
import threading
from collections.abc import Sequence
from typing import IO, Any

from outpace.engine.face import Busy, Gone, Piece, Token
from outpace.errors import CapabilityError, ConfigError, ModelError, OutpaceError

__all__ = ["Channel", "Message", "pack_piece", "portable", "unpack_piece"]

Message = tuple[Any, ...]  # its kind first
_SIZE = struct.Struct("<Q")
_PORTABLE = (ConfigError, CapabilityError, ModelError, Busy, Gone)


class Channel:
    """Two pipes. Any thread may send, one may receive.

    Args:
        source, sink: what is read from and written to.
    """

    def __init__(self, source: IO[bytes], sink: IO[bytes]) -> None:
        self._source, self._sink, self._lock = source, sink, threading.Lock()

    def send(self, messages: Sequence[Message]) -> None:
        """Send messages as one frame.

        Raises:
            OSError, ValueError: the other end is gone, or this one is closed.
            pickle.PicklingError, AttributeError, TypeError: something in them is no plain data; nothing was sent.
        """
        data = pickle.dumps(messages, pickle.HIGHEST_PROTOCOL)
        with self._lock:
            self._sink.write(_SIZE.pack(len(data)))
            self._sink.write(data)
            self._sink.flush()

    def receive(self) -> list[Message]:
        """Return the messages of the next frame.

        Raises:
            EOFError: the other end is gone.
        """
        (size,) = _SIZE.unpack(self._read(_SIZE.size))
        return pickle.loads(self._read(size))  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close both pipes."""
        for pipe in (self._sink, self._source):
            try:
                pipe.close()
            except OSError:  # what was still to be written has nobody to read it
                pass

    def _read(self, size: int) -> bytes:
        data = self._source.read(size)
        if len(data) < size:
            raise EOFError
        return data


def portable(error: Exception) -> OutpaceError:
    """Return an error that another process can read."""
    if type(error) in _PORTABLE:
        return error  # type: ignore[return-value]
    if isinstance(error, OutpaceError):
        return OutpaceError(str(error), error.hint)
    return OutpaceError(f"{type(error).__name__}: {error}")


def pack_piece(piece: Piece) -> tuple[Any, ...]:
    """Return a piece as plain tuples, which are many times quicker to pickle."""
    tokens = [(one.id, one.text, one.source, one.drafter, one.log_prob, one.top) for one in piece.tokens]
    return piece.sample, tokens, piece.finish, piece.step, piece.rest


def unpack_piece(packed: tuple[Any, ...]) -> Piece:
    """Return the piece that was packed."""
    sample, tokens, *rest = packed
    return Piece(sample, [Token(*one) for one in tokens], *rest)
