"""Engines outside this process as arms: the model is converted for each, and each mode gets a child of its own.

What cannot be started, converted or run becomes a `Skipped` with the reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outpace.bench.arms import Request, Sample
from outpace.bench.child import Child, ChildError
from outpace.bench.report import Skipped
from outpace.errors import ConfigError, ModelError
from outpace.models.loading import read_config
from outpace.quantize.gguf_file import write_plain

__all__ = [
    "ENGINES",
    "OTHER_TEXT",
    "EngineArm",
    "Workplace",
    "contents_name",
    "make_engine_arms",
    "measure_memory",
]

ENGINES = ("llama.cpp", "openvino")
OTHER_TEXT = "other precision, other text"
_MODES = ("plain", "prompt-lookup")
_SMALL = ("int8", "int4")


@dataclass(frozen=True, slots=True)
class Workplace:
    """What all engine arms of a run share.

    Attributes:
        source: the model's own directory, or a GGUF file, which engines read themselves.
        folder: where converted models go; those that it holds already are used.
        dtype: of the same-precision arms.
        threads: per engine.
        capacity: the longest text, prompt included.
    """

    source: Path
    folder: Path
    dtype: torch.dtype
    threads: int
    capacity: int

    @property
    def precision(self) -> str:
        """The dtype by name."""
        return str(self.dtype).removeprefix("torch.")

    def job(self, engine: str, mode: str, precision: str) -> dict[str, Any]:
        """Return what a child needs to open a mode."""
        return {
            "directory": str(self.converted(engine, precision)),
            "mode": mode,
            "precision": precision,
            "threads": self.threads,
            "capacity": self.capacity,
            "vocab_size": read_config(self.source)["vocab_size"],
        }

    @property
    def is_file(self) -> bool:
        """Whether all read one GGUF file, as it is."""
        return self.source.is_file()

    def converted(self, engine: str, precision: str) -> Path:
        """Return where the model of an engine lies in a precision."""
        if self.is_file:
            return self.source
        return self.folder / (f"{precision}.gguf" if engine == "llama.cpp" else f"openvino-{precision}")


class EngineArm:
    """One mode of an engine.

    Args:
        engine: of `ENGINES`.
        mode: "plain" or "prompt-lookup".
        precision: "" = that of our own arms, or "int8", "int4".
        job: from `Workplace.job`.
    """

    def __init__(self, engine: str, mode: str, precision: str, job: dict[str, Any]) -> None:
        self.method, self.path, self.precision, self.job = mode, engine, precision, job
        self.name = " ".join(filter(None, [f"{engine}:{mode}", precision]))
        self.baseline, self.counterpart = f"{engine}:plain", ""
        self.child = Child(engine, job["threads"])
        try:
            self.child.ask("open", **job)
        except ChildError:
            self.child.close()
            raise

    def run(self, task: Request) -> Sample:
        """Make one generation, timed in the child."""
        fields = {"max_tokens": task.max_tokens, "temperature": task.temperature, "seed": task.seed}
        found = self.child.ask("run", ids=list(task.ids), end_tokens=list(task.end_tokens), **fields)
        return Sample(**found)

    def memory_job(self) -> dict[str, Any]:
        """Return what a fresh process needs."""
        return {"kind": "engine", "engine": self.path, "job": self.job}


def contents_name(model: Path) -> str:
    """Return a name for a model's contents: of its configuration, and the size and head of each weight file."""
    found = hashlib.sha256(b"" if model.is_file() else (model / "config.json").read_bytes())
    for path in [model] if model.is_file() else sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            found.update(f"{path.name} {path.stat().st_size}".encode() + file.read(1 << 20))
    return found.hexdigest()[:16]


def measure_memory(engine: str, job: Mapping[str, Any], ids: Sequence[int], max_tokens: int) -> dict[str, Any]:
    """Return the memory of a mode in a fresh process, as `outpace.bench.memory.measure` does; a mapped file counts."""
    try:
        with Child(engine, job["threads"]) as child:
            libraries = child.ask("open", **job)["libraries"]
            law = {"max_tokens": max_tokens, "temperature": 0.0, "seed": 0, "end_tokens": []}
            tokens = len(child.ask("run", ids=list(ids), **law)["tokens"])
            peak = child.ask("memory") - libraries
    except ChildError as error:
        return {"error": f"The memory run failed: {error}"}
    path = Path(job["directory"])
    weights = sum(file.stat().st_size for file in ([path] if path.is_file() else path.glob("*.bin")))
    return {
        "peak": peak,
        "libraries": libraries,
        "weights": weights,
        "cache": 0,
        "ratio": peak / weights,
        "tokens": tokens,
    }


def make_engine_arms(
    engine: str, place: Workplace, stack: ExitStack, temperatures: Sequence[float], tell: Callable[[str], None]
) -> tuple[list[EngineArm], list[Skipped], dict[str, str]]:
    """Convert the model for an engine and open its modes: ours precision plain and lookup, int8 and int4 plain.

    A GGUF file is read as it is, in its own precision alone.

    Args:
        engine: of `ENGINES`.
        place: what to convert and where.
        stack: closes the children.
        temperatures: each is tried once, so that a mode which cannot is left out before anything is timed.
        tell: called with sentences on the progress.

    Returns:
        The arms, what is left out and why, and the versions of the engine's packages.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    try:
        with Child(engine, place.threads) as child:
            versions = child.ask("versions")
    except ChildError as error:
        return [], [Skipped(engine, f"{error} docs/measuring.md says how to install it.")], {}
    arms: list[EngineArm] = []
    skipped: list[Skipped] = []
    for precision in ("",) if place.is_file else ("", *_SMALL):
        modes = _MODES if not precision else _MODES[:1]
        names = [" ".join(filter(None, [f"{engine}:{mode}", precision])) for mode in modes]
        try:
            _convert(engine, place, precision, tell)
        except (ChildError, ConfigError, ModelError) as error:
            skipped += [Skipped(name, f"The conversion failed: {error}") for name in names]
            if not precision:
                break  # the small ones are made from this one
            continue
        for mode, name in zip(modes, names, strict=True):
            try:
                arms.append(_open(engine, mode, precision, place, stack, temperatures))
            except ChildError as error:
                skipped.append(Skipped(name, str(error)))
    return arms, skipped, versions


def _convert(engine: str, place: Workplace, precision: str, tell: Callable[[str], None]) -> None:
    base = place.converted(engine, place.precision)
    source, target = (base, place.converted(engine, precision)) if precision else (place.source, base)
    if target.exists():
        return
    tell(f"Converting for {engine}, {precision or place.precision}.")
    part = target.with_name(f"part-{target.name}")  # a conversion that was cut off is not taken for a whole one
    if engine == "llama.cpp" and not precision:
        write_plain(source, part, place.dtype)
    else:
        with Child(engine, place.threads) as child:
            child.ask("convert", source=str(source), target=str(part), precision=precision or place.precision)
    part.rename(target)


def _open(
    engine: str, mode: str, precision: str, place: Workplace, stack: ExitStack, temperatures: Sequence[float]
) -> EngineArm:
    arm = EngineArm(engine, mode, precision, place.job(engine, mode, precision or place.precision))
    try:
        for temperature in temperatures:
            arm.run(Request((1, 2, 3), 4, temperature, 0))
    except ChildError:
        arm.child.close()
        raise
    stack.callback(arm.child.close)
    return arm
