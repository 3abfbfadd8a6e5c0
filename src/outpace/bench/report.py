"""One schema for all measurements: as JSON, as tables in the terminal, as Markdown, and as a picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outpace.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["SCHEMA_VERSION", "Report", "Skipped", "Table", "by_place", "new_report", "read_report", "show_ratio"]

SCHEMA_VERSION = 1
_PATHS = ("json", "plot", "markdown", "peer_models", "out", "data")  # options that name the caller's files

_COLUMNS = (
    "method",
    "tok/s",
    "x plain [95%]",
    "x plain, calm",
    "x best plain peer",
    "x best peer",
    "x hf same",
    "tok/fwd",
    "pos/tok",
    "draft/score/accept/other %",
    "prefill ms",
    "peak MB",
    "rep. 8-grams",
    "copied",
    "exact",
)
_LEGEND = (
    "tok/s: median over prompts of decoding speed, prefill apart. x plain: median ratio to plain decoding of the same "
    "engine and path, over pairs, with its 95% bootstrap interval; calm: the same without repetitive prompts, those of "
    "whose plain text over 20% lies in 8-grams repeated within it (loops fake speed). x best plain peer, x best peer: "
    "to the fastest plain mode and the fastest mode of any peer in the same precision, named above the table; x hf "
    "same: to transformers' mode of the same kind. tok/fwd: tokens per target forward; pos/tok: positions scored per "
    "token. peak MB: memory beyond the imported libraries, in a fresh process. rep. 8-grams: share of the output that "
    "lies in 8-grams repeated within it; copied: in 8-grams of the prompt. exact: texts equal to plain decoding's, "
    "with the first flip and its margin; of a peer's plain mode, the leading tokens (median) that equal ours."
)


@dataclass(frozen=True, slots=True)
class Skipped:
    """What was not measured, and why, in a sentence."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        title: stands above it; "" = nothing does.
        columns: their names.
        cells: per line, as text.
        left: leading columns that hold words, not numbers.
    """

    title: str
    columns: Sequence[str]
    cells: Sequence[Sequence[str]]
    left: int = 1

    def markdown(self) -> str:
        """Return the table as Markdown, numbers to the right."""
        rules = ["---" if number < self.left else "--:" for number in range(len(self.columns))]
        lines = [self.columns, *self.cells]
        head, *body = ("| " + " | ".join(line) + " |" for line in lines)
        table = "\n".join([head, f"|{'|'.join(rules)}|", *body])
        return f"**{self.title}**\n\n{table}" if self.title else table


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark measured.

    Attributes:
        document: the JSON object: schema_version, kind, options, machine, rows, skipped and notes; tables where they do
            not follow from the rows; model, samples and more by kind.
    """

    document: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What was measured, one object each."""
        return list(self.document["rows"])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return self.document

    def tables(self) -> Iterator[Table]:
        """Yield every table."""
        if "tables" in self.document:
            yield from (Table(**part) for part in self.document["tables"])
            return
        memory = {arm["name"]: arm["memory"] for arm in self.document["arms"]}
        for where, rows in by_place(self.rows).items():
            title = f"{self._model()} - {where}{_best(rows[0])}"
            yield Table(title, _COLUMNS, [_cells(row, memory.get(row["arm"])) for row in rows])

    def renderable(self) -> RenderableType:
        """Return the tables for a rich console."""
        from rich.console import Group
        from rich.table import Table as Grid
        from rich.text import Text

        parts: list[RenderableType] = [Text(line) for line in self._head()]
        for table in self.tables():
            shown = Grid(title=table.title, title_justify="left")
            for number, column in enumerate(table.columns):
                shown.add_column(column, justify="left" if number < table.left else "right", overflow="fold")
            for line in table.cells:
                shown.add_row(*(Text(cell) for cell in line))
            parts.append(shown)
        return Group(*parts, *(Text(line) for line in self._foot()))

    def markdown(self) -> str:
        """Return the tables as Markdown, with the machine above and the notes below."""
        parts = ["\n".join(f"- {line}" for line in self._head())]
        parts += [table.markdown() for table in self.tables()]
        parts.append("\n".join(f"- {line}" for line in self._foot()))
        return "\n\n".join(parts) + "\n"

    def write(self, file: Path | None = None, plot: Path | None = None, markdown: Path | None = None) -> None:
        """Write the JSON object, the picture and the Markdown where a path is given.

        Raises:
            StorageError: a file cannot be written.
        """
        try:
            if file is not None:
                _make_room(file).write_text(_as_json(self.document), encoding="utf-8")
            if markdown is not None:
                picture = f"\n![speed]({plot.name})\n" if plot is not None else ""
                _make_room(markdown).write_text(self.markdown() + picture, encoding="utf-8")
            if plot is not None:
                self.draw(_make_room(plot))
        except OSError as error:
            raise StorageError(f"A result cannot be written: {error}.", "Check the path and the space left.") from error

    def draw(self, path: Path) -> None:
        """Draw speed by arm, one panel per set and temperature; or curves, where those were measured.

        Raises:
            ConfigError: matplotlib is not installed, or there is nothing to draw.
        """
        from outpace.bench.plots import draw_growth, draw_quality, draw_scarce, draw_searching, draw_serving, draw_speed

        if self.document["kind"] == "scarce":
            draw_scarce(self.rows, path)
            return
        if self.document["kind"] == "searching":
            told = self.document["options"]
            draw_searching(self.rows, f"{told['task']} by {told['model']}", path)
            return
        if self.document["kind"] == "translation-curve":
            draw_quality(self.rows, f"{self.document['options']['set']}, one sentence at a time", path)
            return
        draw = {"growth": draw_growth, "serving": draw_serving}.get(self.document["kind"], draw_speed)
        draw(self.rows, self._model(), path)

    def _model(self) -> str:
        model = self.document["model"]
        marker = model.get("inflated")
        size = f"{model['parameters'] / 1e6:.1f}M"
        kind = f"INFLATED from {marker['from']} to {size}" if marker else size
        return f"{model['name']} ({kind}, {model['dtype']})"

    def _versions(self) -> str:
        return "".join(f", {name} {version}" for name, version in self.document.get("peers", {}).items())

    def _head(self) -> list[str]:
        facts = self.document["machine"]
        load = ", ".join(str(value) for value in facts["load_average"])
        return [
            f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, load beforehand {load}"
            + (" (BUSY: noisy figures)" if facts["is_busy"] else ""),
            f"torch {facts['torch']}, transformers {facts['transformers']}{self._versions()}, "
            f"outpace {facts['outpace']} at {facts['commit']}, {facts['time']}",
        ]

    def _foot(self) -> list[str]:
        lines = [f"Left out: {item['name']}. {item['reason']}" for item in self.document["skipped"]]
        legend = [_LEGEND] if self.document["kind"] == "speed" else []
        return [*self.document["notes"], *lines, *legend]


def new_report(
    kind: str,
    options: Any,
    machine: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    tables: Sequence[Table] | None = None,
    skipped: Sequence[Skipped] = (),
    notes: Sequence[str] = (),
    **more: Any,
) -> Report:
    """Return the report of a measurement.

    Args:
        kind: "speed", "catalogue", "growth", "micro", "canvas", "busy", ...
        options: what was asked for, a dataclass or a mapping; the caller's paths are left out of it.
        machine: as `outpace.bench.machine.describe` gives it.
        rows: what was measured, JSON-ready.
        tables: how it is shown; None = as the speed table.
        skipped: what was left out.
        notes: sentences below the tables; empty ones are dropped.
        more: what this kind holds besides, such as model, arms or samples.
    """
    told = dict(options) if isinstance(options, Mapping) else dataclasses.asdict(options)
    told = {name: _without_path(name, value) for name, value in told.items() if name not in _PATHS}
    document = {"schema_version": SCHEMA_VERSION, "kind": kind, "options": told, "machine": dict(machine), **more}
    document |= {"skipped": [dataclasses.asdict(item) for item in skipped], "notes": [note for note in notes if note]}
    document["rows"] = list(rows)
    if tables is not None:
        document["tables"] = [dataclasses.asdict(table) for table in tables]
    return Report(json.loads(json.dumps(document)))


def _without_path(name: str, value: Any) -> Any:
    """Return the name of a model or set that may have been named by a path."""
    if name == "prompts" and not isinstance(value, str):
        return [Path(item).name for item in value]
    return Path(value).name if name in ("model", "draft", "prompts") else value


def read_report(file: Path) -> Report:
    """Read what `Report.write` wrote, now or in an earlier version.

    Raises:
        ConfigError: the file holds no measurement.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if "points" in document:  # canvases, before they had the schema of all others
            rest = {"skipped": [], "notes": [], "rows": document["points"], "areas": document["areas"]}
            document = {"schema_version": SCHEMA_VERSION, "kind": "canvas", "machine": document["facts"], **rest}
        if document["schema_version"] == SCHEMA_VERSION and isinstance(document["rows"], list):
            return Report(document)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ConfigError(f"{file} holds no figures of a benchmark.", "Name a file that --json wrote.")


def by_place(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return rows by prompt set and temperature, under the words that name them."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        law = "greedy" if row["temperature"] == 0 else f"T = {row['temperature']:g}"
        number = f"{row['prompts']} prompts, {row['repetitive_prompts']} of them repetitive"
        groups.setdefault(f"{row['set']}, {law}, {number}", []).append(row)
    return groups


def _cells(row: dict[str, Any], memory: dict[str, Any] | None) -> list[str]:
    """Return a row of the speed table as text."""
    shares = row["time_shares"]
    phases = "/".join(f"{100 * shares[name]:.0f}" for name in ("draft", "score", "accept", "other")) if shares else ""
    peak = f"{memory['peak'] / 1e6:.0f} ({memory['ratio']:.2f}x)" if memory and "peak" in memory else ""
    return [
        row["arm"],
        f"{row['tokens_per_s']:.1f}",
        show_ratio(row["ratio_plain"]),
        show_ratio(row["ratio_plain_calm"], False),
        show_ratio(row["ratio_best_plain"], False),
        show_ratio(row["ratio_best_peer"], False),
        show_ratio(row["ratio_counterpart"], False),
        _number(row["tokens_per_forward"]),
        _number(row["positions_per_token"]),
        phases,
        f"{row['prefill_ms']:.1f}",
        peak,
        f"{row['repeated_8gram_share']:.0%}",
        f"{row['copied_8gram_share']:.0%}",
        _exact(row["exactness"]),
    ]


def _best(row: dict[str, Any]) -> str:
    """Name the fastest peers that a table's rows are compared with."""
    if not row["best_peer"]:
        return ""
    return f" (best plain peer {row['best_plain']}, best peer {row['best_peer']})"


def show_ratio(value: dict[str, Any] | None, with_interval: bool = True) -> str:
    """Return a ratio of pairs as text, "" where there is none."""
    if value is None:
        return ""
    text = f"{value['median']:.2f}"
    return f"{text} [{value['low']:.2f}, {value['high']:.2f}]" if with_interval else text


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _exact(found: dict[str, Any]) -> str:
    if found["equal"] is None:
        return str(found.get("note", ""))
    if found["reference"] is None:
        return "reference" if found.get("agrees") is None else f"reference; {found['agrees']:g} tokens as ours"
    text = f"{found['equal']}/{found['of']}"
    if found["flips"]:
        first = found["flips"][0]
        margin = f", margin {first['margin']:.1e}" if first["margin"] is not None else ""
        text += f" (flip at {first['at']}{margin})"
    return text


def _as_json(document: dict[str, Any]) -> str:
    """Return the document, each of its samples on a line of its own."""
    samples = document.get("samples", [])
    head = json.dumps({name: value for name, value in document.items() if name != "samples"}, indent=1)
    if not samples:
        return head + "\n"
    lines = ",\n".join(f"  {json.dumps(sample)}" for sample in samples)
    return f'{head[:-2]},\n "samples": [\n{lines}\n ]\n}}\n'


def _make_room(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
