"""Lines of a batch: read from a file one by one, answered in a file that a killed run leaves whole.

An input line is one JSON object: ours ("prompt" or "messages", and arguments of `generate` by name) or OpenAI's
({"custom_id": ..., "method": "POST", "url": ..., "body": {...}}). A Parquet file holds the same fields as columns.

An answer is one line, written whole by one call, with the number of its input line and a digest of what was asked. So
what a run that was killed has answered is known from the file alone: nothing is lost, nothing is written twice.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outpace.errors import ConfigError
from outpace.store import replacing

__all__ = ["Answers", "Line", "read_lines"]

_NAMED = 10  # lines told by number
_DIGEST = 16  # hexadecimal digits: a batch of a million lines mistakes one for another once in 10^7 times


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a batch.

    Attributes:
        number: from 1; empty lines count.
        digest: of what it says and of the settings that hold for all lines.
        fields: what it says.
        fault: why it says nothing that can be used; "" = it does.
    """

    number: int
    digest: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""

    @property
    def is_openai(self) -> bool:
        """It has the form of OpenAI's batches: an address and a body."""
        return "body" in self.fields and "url" in self.fields

    @property
    def id(self) -> Any:
        """What the file calls it; None = nothing."""
        return self.fields.get("custom_id" if self.is_openai else "id")


def read_lines(path: Path, settings: str = "") -> Iterator[Line]:
    """Yield the lines of a file, one in memory at a time; those that are no object have a `fault`.

    Args:
        path: a .parquet file, or JSON lines.
        settings: of the whole run; they enter the digests.

    Raises:
        ConfigError: there is no such file, or it is no Parquet file, or pyarrow is not installed.
    """
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.", "Give a file of JSON lines, or a .parquet file.")
    if path.suffix == ".parquet":
        yield from _read_parquet(path, settings)
        return
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if raw.strip():
                yield _parse(raw.strip(), number, settings)


def _parse(raw: bytes, number: int, settings: str) -> Line:
    digest = hashlib.sha256(settings.encode() + b"\n" + raw).hexdigest()[:_DIGEST]
    try:
        found = json.loads(raw, parse_constant=_refuse)
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Line(number, digest, fault="It holds half of a surrogate pair, which is no character.")
    except (ValueError, RecursionError):
        return Line(number, digest, fault="It is no JSON.")
    if not isinstance(found, dict):
        return Line(number, digest, fault="It is no JSON object.")
    return Line(number, digest, found)


def _refuse(constant: str) -> None:
    """Refuse what Python reads and JSON does not have: infinite and undefined numbers."""
    raise ValueError(constant)


def _read_parquet(path: Path, settings: str) -> Iterator[Line]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError(
            "A Parquet file is read through pyarrow, which is not installed.", "pip install pyarrow"
        ) from None
    try:
        opened = parquet.ParquetFile(path)
        number = 0
        for batch in opened.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                fields = {name: _plain(value) for name, value in row.items() if value is not None}
                raw = json.dumps(fields, sort_keys=True, default=str).encode()
                yield _parse(raw, number, settings)
    except (importlib.import_module("pyarrow").ArrowException, OSError) as error:
        raise ConfigError(f"{path} is no Parquet file that can be read ({str(error).splitlines()[0]}).") from None


def _plain(value: Any) -> Any:
    """Return a value without what Parquet's structs add: a field that a row does not have is there as None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list) else value


class Answers:
    """The file of answers, open for appending; it is this process's alone until `close`.

    Args:
        path: of the file; made where it is not there. What a killed run left of its last line is cut off.
        is_retried: answers that are errors are taken out, so that their lines are asked again.

    Attributes:
        done: digests of the lines that are answered, by number.
        errors: how many of them are errors.

    Raises:
        ConfigError: another run writes it, or it holds something else than answers.
    """

    def __init__(self, path: Path, is_retried: bool = False) -> None:
        if path.is_dir() or (path.exists() and not path.is_file()):
            raise ConfigError(f"{path} is no file.", "Give the name of a file for the answers.")
        self.path, self.done, self.errors = path, dict[int, str](), 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        try:
            self._lock()
            self._load(is_retried)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one answer, as one line of JSON in ASCII.

        Raises:
            OSError: the disk is full, say; what was written before stays valid.
        """
        rest = memoryview(json.dumps(record, allow_nan=False).encode() + b"\n")
        while rest:  # nearly always one call
            rest = rest[os.write(self._file, rest) :]
        self.done[record["line"]] = record["request"]
        self.errors += record["error"] is not None

    def check(self, lines: Iterator[Line], tell: Callable[[Line], None]) -> None:
        """Refuse a file that holds answers to other lines than these; `tell` is called with every line.

        Raises:
            ConfigError: it does.
        """
        missing, wrong = set(self.done), list[int]()
        for line in lines:
            missing.discard(line.number)
            if self.done.get(line.number, line.digest) != line.digest:
                wrong.append(line.number)
            tell(line)
        if wrong := sorted({*wrong, *missing}):
            shown = ", ".join(map(str, wrong[:_NAMED])) + (", ..." if len(wrong) > _NAMED else "")
            raise ConfigError(
                f"{self.path} answers line{'s' * (len(wrong) > 1)} {shown} of another file, model or settings.",
                "Give another file for the answers, or remove it.",
            )

    def sort(self) -> None:
        """Bring the answers into the order of their lines; a file that is killed meanwhile is the old one, whole."""
        places, at = list[tuple[int, int, int]](), 0
        with self.path.open("rb") as old:
            for raw in old:
                places.append((json.loads(raw)["line"], at, len(raw)))
                at += len(raw)
            self._replace(_read_at(old, place, size) for _, place, size in sorted(places))

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _lock(self) -> None:
        try:
            fcntl: Any = importlib.import_module("fcntl")
        except ImportError:  # where there are no such locks, two runs at once are not told apart
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._file), os.stat(self.path)):  # replaced since it was opened
                raise BlockingIOError
        except OSError:
            raise ConfigError(f"Another run is writing {self.path}.", "Wait for it, or give another file.") from None

    def _load(self, is_retried: bool) -> None:
        whole, bad, kept = 0, list[int](), list[bytes]()
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.endswith(b"\n"):
                    break
                whole += len(raw)
                try:
                    record = json.loads(raw)
                    line, digest, is_error = int(record["line"]), str(record["request"]), record["error"] is not None
                except (ValueError, KeyError, TypeError, RecursionError):
                    bad.append(number)
                    continue
                if is_retried and not is_error:
                    kept.append(raw)
                if not (is_retried and is_error):
                    self.done[line] = digest
                    self.errors += is_error
        if bad:
            shown = ", ".join(map(str, bad[:_NAMED]))
            raise ConfigError(f"{self.path} holds something else than answers (line {shown}).", "Give another file.")
        if is_retried:
            self._replace(iter(kept))
        else:
            os.truncate(self.path, whole)

    def _replace(self, lines: Iterator[bytes]) -> None:
        """Put a new file in the place of the old one, at once, and hold that."""
        with replacing(self.path) as new:
            new.writelines(lines)
        os.close(self._file)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0))
        self._lock()


def _read_at(file: Any, place: int, size: int) -> bytes:
    file.seek(place)
    data: bytes = file.read(size)
    return data
