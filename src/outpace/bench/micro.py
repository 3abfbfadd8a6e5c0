"""Small measurements behind the figures: T(k), plain decoding, time outside the forwards, peak memory.

All on random models of set sizes, so that nothing but the engine decides; competitors take turns in every repetition.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from outpace import kernels
from outpace.api.engine import LanguageModel
from outpace.bench import machine, memory
from outpace.bench.arms import PLAIN, Arm, OurArm
from outpace.bench.options import BenchOptions, MicroOptions
from outpace.bench.overhead import LAWS, overhead
from outpace.bench.peers import make_peers
from outpace.bench.prompts import Prompt
from outpace.bench.report import Report, Skipped, Table, new_report, show_ratio
from outpace.bench.rounds import in_turns, timed
from outpace.bench.rows import make_rows
from outpace.bench.shapes import SIZES, PlainTorch, random_llama, streamed
from outpace.bench.speed import measure
from outpace.bench.stats import ratio_of_pairs
from outpace.kernels import note, read_bandwidth
from outpace.methods.autoregressive import Autoregressive
from outpace.models.loading import load_model

__all__ = ["run_micro"]

_PREFIX = 256  # cached tokens before a timed window, as in the peers' figures
_CELL_S = 20.0  # most seconds for the repetitions of one T(k)
_PROMPT, _TOKENS = 64, 128
_VOCABULARIES = (8192, 32000, 152000)


def run_micro(options: MicroOptions, tell: Callable[[str], None] | None = None) -> Report:
    """Measure what the options name and write the files that they name.

    Args:
        options: what to measure.
        tell: called with sentences on the progress.

    Raises:
        OutpaceError: another benchmark runs on this machine.
    """
    with machine.lock(options.wait_s), tempfile.TemporaryDirectory() as scratch:
        if options.threads:
            torch.set_num_threads(options.threads)
        report = _Micro(options, Path(scratch), tell or (lambda text: None)).run()
    report.write(options.json, None, options.markdown)
    return report


class _Micro:
    """One run: its options, its random models, and the tables so far."""

    def __init__(self, options: MicroOptions, scratch: Path, tell: Callable[[str], None]) -> None:
        self.options, self.scratch, self.tell = options, scratch, tell
        self.sizes = ("tiny",) if options.quick else options.sizes
        self.dtypes = options.dtypes[:1] if options.quick else options.dtypes
        self.repeats = min(3, options.repeats) if options.quick else options.repeats
        self.began = time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.tables: list[Table] = []
        self.skipped: list[Skipped] = []

    def run(self) -> Report:
        facts = machine.describe()
        if facts["is_busy"]:
            self.tell(f"The machine is busy (load {facts['load_average'][0]}): the figures will be noisy.")
        for part in self.options.parts:
            self.tell(f"Part {part}.")
            getattr(self, f"_{part}")()
        return new_report(
            "micro",
            self.options,
            facts,
            self.rows,
            tables=self.tables,
            skipped=self.skipped,
            notes=[str(facts["gpu_note"]), f"{note()}."],
            kernels=note(),
        )

    def _is_late(self, name: str) -> bool:
        limit = self.options.time_limit_s
        is_late = bool(limit) and time.monotonic() - self.began > limit
        if is_late:
            self.skipped.append(Skipped(name, f"The time limit of {limit:.0f} s was over."))
        return is_late

    def _model(self, size: str) -> Path:
        directory = self.scratch / size
        return directory if directory.is_dir() else random_llama(size, directory)

    def _table(self, title: str, columns: tuple[str, ...], cells: list[list[str]]) -> None:
        if cells:
            self.tables.append(Table(title, columns, cells))

    # T(k)

    def _forward(self) -> None:
        for size in self.sizes:
            for name in self.dtypes:
                if self._is_late(f"forward {size} {name}"):
                    continue
                rows = _forward_rows(self._model(size), size, name, self.options.widths, self.repeats)
                self.rows += rows
                title = (
                    f"T(k), {size} {name}, {_PREFIX} cached tokens, milliseconds: "
                    f"{streamed(size) * getattr(torch, name).itemsize / 1e6:.1f} MB per token"
                )
                columns = ("path", "k", "ms", "x T(1)", "ratio to torch [95%]", "of the floor", "GB/s of the probe")
                self._table(title, columns, [_forward_cells(row) for row in rows])

    # Plain decoding

    def _plain(self) -> None:
        for size in self.sizes:
            for name in self.dtypes:
                if self._is_late(f"plain {size} {name}"):
                    continue
                rows = self._plain_rows(size, name)
                self.rows += rows
                title = f"Plain decoding, {size} {name}: {_PROMPT} random prompt ids, {self._tokens} new"
                columns = ("arm", "tok/s", "ms/token", "x hf plain [95%]", "prefill ms")
                self._table(title, columns, [_plain_cells(row) for row in rows])

    @property
    def _tokens(self) -> int:
        return 16 if self.options.quick else _TOKENS

    def _plain_rows(self, size: str, name: str) -> list[dict[str, Any]]:
        directory, dtype = self._model(size), getattr(torch, name)
        arms: list[Arm] = []
        for path in ("compiled", "eager"):
            target = load_model(directory, dtype=name, device="cpu", kernels=kernels if path == "compiled" else None)
            if path == "compiled" and target.path != "compiled":
                self.skipped.append(Skipped(f"plain {size} {name} compiled", f"No compiled path: {note()}."))
                continue
            arms.append(OurArm(LanguageModel(target, None, name=size), Autoregressive(), path, PLAIN, str(directory)))
        peers, missing = make_peers(directory, None, dtype)
        arms += [peer for peer in peers if peer.method == "plain"]
        self.skipped += [item for item in missing if item.name == "hf"]
        generator = torch.Generator().manual_seed(1)
        prompts = {
            Prompt("random", str(i), ""): torch.randint(SIZES[size]["vocab"], (_PROMPT,), generator=generator).tolist()
            for i in range(2 if self.options.quick else 4)
        }
        repeats = max(2, min(6, self.repeats // 5))
        asked = BenchOptions(temperatures=(0.0,), max_tokens=self._tokens, repeats=repeats, with_memory=False)
        records, _ = measure(arms, prompts, asked)
        rows = make_rows(records, arms, prompts, asked, ())
        # Whatever repeats itself, plain decoding costs the same.
        distinct = [len(set(record.sample.tokens)) for record in records]
        facts = {"kind": "plain", "size": size, "dtype": name, "least_distinct_ids": min(distinct)}
        return [{**row, **facts} for row in rows]

    # Time outside the forwards

    def _overhead(self) -> None:
        rows = []
        for vocab in _VOCABULARIES[:1] if self.options.quick else _VOCABULARIES:
            for law in LAWS:
                for method in ("fixed-chain", "prompt-lookup"):
                    if not self._is_late(f"overhead {vocab} {law} {method}"):
                        found = overhead(vocab, law, method, 10 if self.options.quick else 60, min(7, self.repeats))
                        rows.append({"kind": "overhead", **found})
        self.rows += rows
        columns = ("method", "V", "law", "ms/step", "draft ms", "accept ms", "other ms")
        times = ("total_ms", "draft_ms", "accept_ms", "other_ms")
        cells = [
            [row["method"], str(row["vocab"]), row["law"], *(f"{row[name]:.3f}" for name in times)] for row in rows
        ]
        self._table("Outside the forwards, a chain of 16, all accepted, milliseconds per step", columns, cells)

    # Peak memory

    def _memory(self) -> None:
        rows = []
        ids = torch.randint(0, 512, (_PROMPT,), generator=torch.Generator().manual_seed(1)).tolist()
        for size in self.sizes[-1:]:
            for name in self.dtypes:
                for arm, job in _memory_jobs(self._model(size), name).items():
                    if not self._is_late(f"memory {size} {name} {arm}"):
                        found = memory.measure(job, ids, self._tokens, torch.get_num_threads())
                        rows.append({"kind": "memory", "size": size, "dtype": name, "arm": arm, **found})
        self.rows += rows
        columns = ("arm", "model", "peak MB", "weights MB", "cache MB", "peak / (weights + cache)")
        self._table("Peak memory beyond the libraries, fresh process", columns, [_memory_cells(r) for r in rows])


def _forward_rows(directory: Path, size: str, name: str, widths: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
    dtype, capacity = getattr(torch, name), _PREFIX + max(widths)
    models = {
        path: load_model(directory, dtype=name, device="cpu", kernels=kernels if path == "compiled" else None)
        for path in _PATHS
    }
    if models["compiled"].path != "compiled":
        del models["compiled"]
    plain = PlainTorch(directory, dtype, capacity)
    streamed_bytes = streamed(size) * dtype.itemsize
    rows = []
    first: dict[str, float] = {}
    for width in widths:
        runs = {path: _window(model, width, capacity) for path, model in models.items()}
        tokens = torch.arange(width) + 3
        runs["torch"] = lambda tokens=tokens: plain(tokens, _PREFIX)  # type: ignore[misc]
        seconds, bandwidth = _interleave(runs, repeats, max(1, streamed_bytes >> 20))
        for path, times in seconds.items():
            median = statistics.median(times)
            first.setdefault(path, median)
            pairs = [ours / theirs for ours, theirs in zip(times, seconds["torch"], strict=True)]
            ratio = ratio_of_pairs({str(i): [value] for i, value in enumerate(pairs)})
            floor = streamed_bytes / 1e9 / bandwidth if bandwidth else None
            rows.append(
                {
                    "kind": "forward",
                    "size": size,
                    "dtype": name,
                    "path": path,
                    "k": width,
                    "ms": 1e3 * median,
                    "best_ms": 1e3 * min(times),
                    "repeats": len(times),
                    "over_first": median / first[path],
                    "ratio_torch": dataclasses.asdict(ratio) if ratio and path != "torch" else None,
                    "bandwidth_gb_s": bandwidth,
                    "floor_share": floor / median if floor and width == 1 else None,
                    "best_floor_share": floor / min(times) if floor and width == 1 else None,
                }
            )
    return rows


_PATHS = ("compiled", "eager")


def _window(model: Any, width: int, capacity: int) -> Callable[[], object]:
    """Return a forward of `width` tokens behind the prefix; nothing is kept, so that every call does the same."""
    cache = model.new_cache(1, capacity)
    for buffer in cache.buffers:
        buffer.normal_()
    cache.lengths = [_PREFIX]
    tokens, position = torch.arange(width)[None] + 3, torch.arange(_PREFIX, _PREFIX + width)[None]
    return lambda: model.score(tokens, position, None, cache)


def _interleave(
    runs: Mapping[str, Callable[[], object]], repeats: int, megabytes: int
) -> tuple[dict[str, list[float]], float]:
    """Time functions in turns, and read memory between; return seconds, and the best GB/s."""
    bandwidths, began = list[float](), time.monotonic()

    def begin(number: int) -> bool:
        if number % 10 == 0:
            bandwidths.append(read_bandwidth(megabytes, repeats=4))
        return number < 5 or time.monotonic() - began <= _CELL_S

    seconds = in_turns({name: timed(run) for name, run in runs.items()}, repeats, warm_ups=2, begin=begin)
    return seconds, max(bandwidths)


def _memory_jobs(directory: Path, name: str) -> dict[str, dict[str, Any]]:
    ours = {"kind": "ours", "directory": str(directory), "dtype": name, "method": PLAIN, "settings": {}}
    theirs = {"kind": "hf", "directory": str(directory), "dtype": name, "mode": "plain", "draft": ""}
    jobs = {path: {**ours, "is_compiled": path == "compiled"} for path in _PATHS}
    return {**jobs, "hf:plain": theirs}


def _forward_cells(row: dict[str, Any]) -> list[str]:
    floor = row["floor_share"]
    return [
        row["path"],
        str(row["k"]),
        f"{row['ms']:.3f}",
        f"{row['over_first']:.2f}",
        show_ratio(row["ratio_torch"]),
        f"{floor:.0%}" if floor else "",
        f"{row['bandwidth_gb_s']:.1f}",
    ]


def _plain_cells(row: dict[str, Any]) -> list[str]:
    return [
        row["arm"] + (", looping text" if row["repetitive_prompts"] else ""),
        f"{row['tokens_per_s']:.1f}",
        f"{row['ms_per_token']:.2f}" if row["ms_per_token"] else "",
        show_ratio(row["ratio_peer_plain"]),
        f"{row['prefill_ms']:.1f}",
    ]


def _memory_cells(row: dict[str, Any]) -> list[str]:
    model = f"{row['size']} {row['dtype']}"
    if "error" in row:
        return [row["arm"], model, row["error"], "", "", ""]
    sizes = [f"{row[name] / 1e6:.1f}" for name in ("peak", "weights", "cache")]
    return [row["arm"], model, *sizes, f"{row['ratio']:.2f}"]
