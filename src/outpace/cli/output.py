"""Writing: text as it becomes final, JSON that every parser reads, and a dim line of statistics."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from outpace.api.result import Result

__all__ = ["json_line", "print_json", "print_table", "statistics", "write_text"]


def write_text(text: str) -> None:
    """Write text to standard output at once, whatever the terminal's encoding can show."""
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """Print one JSON value on one line."""
    print(json_line(value), flush=True)


def json_line(value: Any) -> str:
    """Return JSON on one line, in ASCII; numbers that JSON lacks (infinity, not a number) become null."""
    return json.dumps(_finite(value), allow_nan=False)


def print_table(heads: Sequence[str], rows: Iterable[tuple[str, str, str, str]]) -> None:
    """Print lines of three cells, the last with a dim line below it.

    Args:
        heads: of the columns; one that begins with ">" is set to the right.
        rows: three cells and the dim line.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, head in enumerate(heads):
        side: Literal["left", "right"] = "right" if head.startswith(">") else "left"
        table.add_column(head.removeprefix(">"), justify=side, no_wrap=place < len(heads) - 1)
    for first, second, third, below in rows:
        what = Text.assemble(third, (f"\n{below}", "dim")) if third else Text(below, style="dim")
        table.add_row(Text(first, style="bold" if third else ""), Text(second), what)
    Console().print(table)


def statistics(results: list[Result]) -> None:
    """Write one dim line on standard error about what it took, and any notes, when a person looks on."""
    if not sys.stderr.isatty():
        return
    usage, seconds = [result.usage for result in results], results[0].timing["decode_s"]
    emitted, steps = sum(use.num_emitted for use in usage), sum(use.num_steps for use in usage)
    proposed, accepted = sum(use.num_proposed for use in usage), sum(use.num_accepted for use in usage)
    parts = [
        f"{results[0].method}: {emitted} tokens in {seconds:.2f} s",
        f"{emitted / max(seconds, 1e-9):.0f} per second",
        f"{emitted / max(steps, 1):.2f} per step",
        *([f"{accepted} of {proposed} drafts kept"] if proposed else []),
        f"ended by {', '.join(sorted({result.finish_reason for result in results}))}",
    ]
    lines = [", ".join(parts), *(f"note: {note}" for note in results[0].notes)]
    sys.stderr.write("\n" + "".join(f"\x1b[2m{line}\x1b[0m\n" for line in lines))


def _finite(value: Any) -> Any:
    """Return the value with infinite and undefined numbers as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
