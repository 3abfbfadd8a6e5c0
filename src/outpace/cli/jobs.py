"""Many prompts from a file: one JSON object a line comes out, and a run that broke off goes on where it stopped.

A `.jsonl` file holds one object a line, with a "prompt" (or "text"), or "messages" of a chat, and perhaps an "id"; any
other file holds one prompt a line. Empty lines are passed over. What comes out is what `--json` prints, with the
number of the line as "line", and its "id" where it has one.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from outpace.cli.output import json_line, write_text
from outpace.cli.progress import Teller
from outpace.cli.values import text_file
from outpace.errors import ConfigError

if TYPE_CHECKING:
    from outpace.api.result import Result

__all__ = ["Job", "read_jobs", "run_jobs"]

_NAMED = 10  # bad lines told by number


@dataclass(frozen=True, slots=True)
class Job:
    """A line of a batch.

    Attributes:
        line: its number, from 1.
        prompt: text, or the messages of a chat.
        id: what the file calls it, None = nothing.
    """

    line: int
    prompt: str | list[dict[str, Any]]
    id: Any = None


def read_jobs(name: str) -> list[Job]:
    """Return the prompts of a batch file.

    Raises:
        ConfigError: no such file, no prompt in it, or lines that are none, by number.
    """
    jobs, bad = [], []
    for number, line in enumerate(text_file(name).removeprefix("\ufeff").split("\n"), 1):
        line = line.removesuffix("\r")
        if line.strip():
            try:
                jobs.append(_parse(line, number) if name.endswith(".jsonl") else Job(number, line))
            except (ValueError, KeyError, TypeError):
                bad.append(number)
    if bad:
        refuse_lines(name, bad, "no prompt", 'Write {"prompt": "..."}, one object a line.')
    if not jobs:
        raise ConfigError(f"{name} holds no prompt.", "Write one a line.")
    return jobs


def refuse_lines(name: str, lines: Sequence[int], what: str, hint: str) -> None:
    """Raise an error that names lines of a file."""
    shown = ", ".join(map(str, lines[:_NAMED])) + (", ..." if len(lines) > _NAMED else "")
    verb = f"Line {shown} of {name} is" if len(lines) == 1 else f"Lines {shown} of {name} are"
    raise ConfigError(f"{verb} {what}.", hint)


def _parse(line: str, number: int) -> Job:
    """Read a line of JSON; anything that is no prompt raises ValueError, KeyError or TypeError."""
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise TypeError
    given = fields["messages"] if "messages" in fields else fields["prompt"] if "prompt" in fields else fields["text"]
    is_chat = isinstance(given, list) and all(isinstance(message, dict) for message in given)
    if not given or not (isinstance(given, str) or is_chat):
        raise TypeError
    if isinstance(given, str):
        given.encode()  # half a surrogate pair is no text
    return Job(number, given, fields.get("id"))


def run_jobs(
    jobs: Sequence[tuple[Job, list[int]]],
    write: Callable[[list[list[int]]], list[Result]],
    out: str | None,
    size: int,
    num_samples: int,
) -> list[Result]:
    """Write the texts of a batch, `size` prompts side by side, each appended to a file as soon as it is done.

    Args:
        jobs: the prompts and their ids.
        write: returns the texts of some prompts, prompt by prompt and sample by sample.
        out: the file, whose complete lines are kept and not written again; None = standard output.
        size: prompts side by side.
        num_samples: texts per prompt.

    Returns:
        The results of this run; those of a step that was cancelled are left out, but for what ended before.

    Raises:
        ConfigError: the file holds something else than a part of this batch.
    """
    done = set[tuple[int, int]]() if out is None else _done(out, {job.line: ids for job, ids in jobs})
    due = [one for one in jobs if any((one[0].line, sample) not in done for sample in range(num_samples))]
    teller, began = Teller(), time.monotonic()
    results: list[Result] = []
    if len(due) < len(jobs):
        teller.tell(f"{len(jobs) - len(due)} of {len(jobs)} prompts were done before", 0.0, None, is_done=True)
    with _opened(out) as say:
        for at in range(0, len(due), size):
            part = due[at : at + size]
            found = write([ids for _, ids in part])
            for index, result in enumerate(found):
                job = part[index // num_samples][0]
                if result.finish_reason != "cancelled" and (job.line, result.sample) not in done:
                    named = {"line": job.line} | ({} if job.id is None else {"id": job.id})
                    say(json_line(named | result.to_dict()) + "\n")
            results += found
            num, elapsed = min(at + size, len(due)), time.monotonic() - began
            told = f"{len(jobs) - len(due) + num} of {len(jobs)} prompts"
            teller.tell(told, elapsed, elapsed / num * (len(due) - num), is_done=num == len(due))
            if any(result.finish_reason == "cancelled" for result in found):
                break
    teller.close()
    return results


@contextlib.contextmanager
def _opened(out: str | None) -> Iterator[Callable[[str], None]]:
    """Yield what writes a line, to a file at its end or to standard output."""
    if out is None:
        yield write_text
        return
    file: IO[str]
    with open(out, "a", encoding="utf-8") as file:

        def say(text: str) -> None:
            file.write(text)
            file.flush()

        yield say


def _done(out: str, prompts: dict[int, list[int]]) -> set[tuple[int, int]]:
    """Return which (line, sample) a file holds already; cut off what a run that broke off left of its last line.

    Raises:
        ConfigError: a line of it is no result, or one of another prompt.
    """
    path = Path(out)
    if not path.exists():
        return set()
    if not path.is_file():
        return set()  # a pipe, or /dev/null
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    found, bad = set(), []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
            key, tokens = (int(record["line"]), int(record["sample"])), record["prompt_tokens"]
        except (ValueError, KeyError, TypeError):
            key, tokens = (0, 0), None
        if tokens is None or prompts.get(key[0]) != tokens:
            bad.append(number)
        found.add(key)
    if bad:
        refuse_lines(out, bad, "not from this batch", "Give another --out, or remove the file.")
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return found
