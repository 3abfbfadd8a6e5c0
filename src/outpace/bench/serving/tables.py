"""Figures of a server as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outpace.bench.report import Table, show_ratio

__all__ = ["make_tables"]

_LOAD = (
    "side",
    "clients",
    "tokens/s",
    "x [95%]",
    "requests/s",
    "x [95%]",
    "first token p50, p99 ms",
    "between pieces p50, p99 ms",
    "ms/token",
    "equal texts",
)


_ARRIVALS = ("method", "clients", "arriving prompt", "prompts", "p50 ms", "p99 ms", "p99/p50", "alone p50, p99 ms")
_PREFIX = ("prefix", "cold ms", "warm ms", "tail alone ms", "step ms", "steps beyond the tail", "cached tokens")
_OVERHEAD = ("method", "served / own time [95%]", "added ms", "pairs", "equal texts")
_MEMORY = ("rows", "running", "page_size", "pages", "needed", "ratio")


def make_tables(found: Mapping[str, Any]) -> list[Table]:
    """Return a table for each part that was measured.

    Args:
        found: by part: "load" and "beside" as rows of `summarise_sides`, others as `probes` returns them.
    """
    tables = []
    for part, title in (("load", "Mixed traffic"), ("beside", "Beside other servers")):
        if found.get(part):
            tables.append(Table(title, _LOAD, [_load_cells(row) for row in found[part]]))
    if "arrivals" in found:
        cells = [_arrival_cells(row) for row in found["arrivals"]]
        tables.append(Table("Between pieces while long prompts arrive", _ARRIVALS, cells))
    if "prefix" in found:
        tables.append(Table("Time to the first token behind a prefix", _PREFIX, [_prefix_cells(found["prefix"])], 0))
    if "overhead" in found:
        cells = [_overhead_cells(row) for row in found["overhead"]]
        tables.append(Table("The way over HTTP, at batch 1", _OVERHEAD, cells))
    if "memory" in found:
        row = found["memory"]
        cells = [[*(f"{row[key]:g}" for key in _MEMORY[:-1]), f"{row['ratio']:.2f}"]]
        tables.append(Table("Pages of rows that share a prefix", [key.replace("_", " ") for key in _MEMORY], cells, 0))
    return tables


def _load_cells(row: Mapping[str, Any]) -> list[str]:
    return [
        str(row["side"]),
        str(row["clients"]),
        f"{row['tokens_per_s']:.1f}",
        show_ratio(row["tokens_per_s_ratio"]),
        f"{row['requests_per_s']:.2f}",
        show_ratio(row["requests_per_s_ratio"]),
        _pair(row["first_p50_ms"], row["first_p99_ms"]),
        _pair(row["gap_p50_ms"], row["gap_p99_ms"]),
        "" if row["token_ms"] is None else f"{row['token_ms']:.2f}",
        f"{row['equal']}/{row['compared']}",
    ]


def _arrival_cells(row: Mapping[str, Any]) -> list[str]:
    sizes = [str(row[key]) for key in ("method", "clients", "prompt_tokens", "prompts")]
    times = [f"{row[key]:.1f}" for key in ("gap_p50_ms", "gap_p99_ms")]
    return [*sizes, *times, f"{row['p99_over_p50']:.2f}", _pair(row["quiet_p50_ms"], row["quiet_p99_ms"])]


def _overhead_cells(row: Mapping[str, Any]) -> list[str]:
    ratio = f"{row['ratio']['median']:.3f} [{row['ratio']['low']:.3f}, {row['ratio']['high']:.3f}]"
    return [row["method"], ratio, f"{row['added_ms']:.2f}", str(row["pairs"]), f"{row['equal']}/{row['compared']}"]


def _prefix_cells(row: Mapping[str, Any]) -> list[str]:
    times = [f"{row[key]:.2f}" for key in ("cold_ms", "warm_ms", "tail_ms", "step_ms", "steps_beyond_tail")]
    return [str(row["prefix_tokens"]), *times, f"{row['cached_tokens']:g}"]


def _pair(first: float | None, second: float | None) -> str:
    return "" if first is None or second is None else f"{first:.1f}, {second:.1f}"
