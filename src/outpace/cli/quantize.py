"""`outpace quantize`: a model in 8 or 4 bits per weight, written for other engines too, and what that costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outpace.cli.output import print_json, write_text
from outpace.cli.progress import Teller
from outpace.cli.values import text_file

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel
    from outpace.quantize.convert import Plan, Written
    from outpace.quantize.source import Source

__all__ = ["quantize"]

_TEXT_BYTES = 24_000
_ROUNDS, _NUM_TOKENS, _NUM_PROMPT = 5, 64, 64


class To(str, Enum):
    """Integers to round to."""

    INT8 = "int8"
    INT4 = "int4"


class Group(str, Enum):
    """Inputs that share a scale."""

    G32 = "32"
    G64 = "64"
    G128 = "128"
    ROW = "row"
    ADAPTIVE = "adaptive"


class Format(str, Enum):
    """What is written."""

    GGUF = "gguf"
    COMPRESSED_TENSORS = "compressed-tensors"


def quantize(
    model: Annotated[str, typer.Argument(help="A shipped model, a directory or a hub id, with plain weights.")],
    to: Annotated[To, typer.Option("--to", help="Bits per weight of the layers' matrices.")],
    group: Annotated[
        Group, typer.Option(help="Inputs per scale; adaptive = chosen for each matrix (FineQuant).")
    ] = Group.G32,
    format: Annotated[
        Format, typer.Option("--format", help="A file for llama.cpp, or a folder for vLLM and transformers.")
    ] = Format.GGUF,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="int4 with a shift per group (Q4_1): half a bit more per weight.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="File or folder to write (default: the model's name and the bits, here).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier run wrote there.")] = False,
    text: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Held-out text to measure on (default: modules of Python's library)."),
    ] = None,
    no_quality: Annotated[bool, typer.Option("--no-quality", help="Do not measure bits per byte.")] = False,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Do not measure tokens per second.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Round a model's matrices to integers, write it, and say what that saves and costs.

    Size, bits per byte of a held-out text and tokens per second of plain decoding are told before and after. The
    embedding and the head keep 8 bits in a GGUF file, and their own type in a folder. Nothing is replaced before the
    new file is whole.
    """
    given = None if text is None else text_file(text)
    from outpace.quantize.convert import Plan, check_output, convert
    from outpace.quantize.source import open_source

    plan = Plan(bits=int(to.value[3:]), group=group.value, format=format.value, is_shifted=asymmetric)
    source = open_source(model)
    place = out or Path(f"{source.directory.resolve().name}-{to.value}" + (".gguf" if plan.format == "gguf" else ""))
    check_output(place, plan, source, force)
    teller = _Steps()
    written = convert(source, plan, place, teller.of)
    teller.close()
    measured = {} if no_quality and no_speed else _measure(model, place, given, not no_quality, not no_speed, teller)
    told = _told(model, plan, source, written, measured)
    print_json(told) if json else write_text(_table(told))


def _measure(
    model: str, place: Path, given: str | None, has_quality: bool, has_speed: bool, teller: _Steps
) -> dict[str, Any]:
    """Return bits per byte and tokens per second of both, each where it was asked for."""
    from outpace.api.engine import load
    from outpace.quantize.measure import bits_per_byte

    text, found = given if given is not None else _library_text(), dict[str, Any]()
    before = load(model)
    if has_quality:
        found["bits_per_byte"] = [bits_per_byte(before, text, teller.at("bits per byte before"))]
    after = load(place)
    if has_quality:
        found["bits_per_byte"].append(bits_per_byte(after, text, teller.at("bits per byte after")))
    if has_speed:
        found["tokens_per_s"] = _speeds(before, after, text, teller.at("tokens per second"))
    teller.close()
    return found | {"notes": [*after.notes, *after.target.notes]}


def _library_text() -> str:
    """Return modules of Python's library, those that no shipped model was trained on."""
    from outpace.train.sources import held_out_library

    return "\n".join(text for _, text in held_out_library())[:_TEXT_BYTES]


def _speeds(before: LanguageModel, after: LanguageModel, text: str, tell: Callable[[int, int], None]) -> list[float]:
    """Return tokens per second of plain decoding, before and after, medians of runs in turns."""
    from outpace.bench.rounds import in_turns

    def side(lm: LanguageModel) -> Callable[[], float]:
        ids = lm.encode(text[: 8 * _NUM_PROMPT])[:_NUM_PROMPT]

        def run() -> float:
            result = lm.generate(ids, method="autoregressive", max_tokens=_NUM_TOKENS, ignore_eos=True)
            return (result.usage.num_emitted - 1) / max(result.timing["decode_s"], 1e-9)

        return run

    def begin(number: int) -> bool:
        tell(number, _ROUNDS)
        return True

    found = in_turns({"before": side(before), "after": side(after)}, _ROUNDS, begin=begin)
    return [statistics.median(found[name]) for name in ("before", "after")]


def _told(model: str, plan: Plan, source: Source, written: Written, measured: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": model,
        "path": str(written.path),
        **asdict(plan),
        "groups": {str(size): count for size, count in sorted(written.groups.items())},
        "kept": written.kept,
        "num_weights": source.num_weights,
        "num_bytes": [source.num_bytes, written.num_bytes],
        "bits_per_weight": [8 * size / source.num_weights for size in (source.num_bytes, written.num_bytes)],
        "matrix_bits_per_weight": written.bits_per_weight,
        **measured,
        "notes": list(dict.fromkeys([*written.notes, *measured.get("notes", [])])),
    }


def _table(told: dict[str, Any]) -> str:
    """Return what a person reads."""
    rows = [
        ("size, MB", [size / 1e6 for size in told["num_bytes"]], "{:.1f}"),
        ("bits per weight", told["bits_per_weight"], "{:.2f}"),
        ("bits per byte", told.get("bits_per_byte"), "{:.4f}"),
        ("tokens per second", told.get("tokens_per_s"), "{:.1f}"),
    ]
    lines = [f"{'':<18}{'before':>10}{'after':>10}{'ratio':>9}"]
    for name, pair, form in rows:
        if pair:
            lines.append(f"{name:<18}{form.format(pair[0]):>10}{form.format(pair[1]):>10}{pair[1] / pair[0]:>9.3f}")
    groups = ", ".join(f"{count} of {size}" for size, count in told["groups"].items())
    lines += [
        f"The layers' matrices take {told['matrix_bits_per_weight']:.2f} bits per weight; inputs per scale: {groups}.",
        *(f"Note: {note}" for note in told["notes"]),
        f"Wrote {told['path']}.",
    ]
    return "\n".join(lines) + "\n"


class _Steps:
    """Progress of one part after the other."""

    def __init__(self) -> None:
        self._teller = Teller()
        self._began = time.monotonic()

    def at(self, what: str) -> Callable[[int, int], None]:
        """Begin a part that counts by itself."""
        self._began = time.monotonic()
        return lambda done, total: self.of(what, done, total)

    def of(self, what: str, done: int, total: int) -> None:
        """Show how far it is."""
        elapsed = time.monotonic() - self._began
        self._teller.tell(what, elapsed, elapsed / done * (total - done) if done else None)

    def close(self) -> None:
        """Take the bar away."""
        self._teller.close()
