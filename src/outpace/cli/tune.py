"""`outpace tune`: measure what scoring k tokens costs here, for the methods that size their drafts by it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from outpace.cli.options import DeviceName, DtypeName, ModelName
from outpace.cli.output import print_json
from outpace.cli.values import Device, Dtype
from outpace.errors import ConfigError

__all__ = ["tune"]


def tune(
    model: ModelName = "stories",
    context: Annotated[int, typer.Option(help="Cached tokens before the timed forward.")] = 256,
    batch: Annotated[int, typer.Option(help="Rows side by side.")] = 1,
    repeats: Annotated[int, typer.Option(help="Rounds; the median is kept.")] = 15,
    dtype: DtypeName = Dtype.AUTO,
    device: DeviceName = Device.AUTO,
    json: Annotated[bool, typer.Option("--json", help="Print {model, file, sizes, seconds, ...}.")] = False,
) -> int:
    """Time forwards of 1 to 64 tokens and store the curve; `auto` and `sequoia` read it.

    Run it on the machine, precision and number of threads that will decode, with nothing else running.
    """
    for name, value in {"context": context, "batch": batch, "repeats": repeats}.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}.", f"{name} must be 1 or more.")
    from outpace.api.engine import load
    from outpace.schedule.tune import measure_curve, save_curve

    lm = load(model, dtype=dtype.value, device=device.value)
    curve = measure_curve(lm.target, context=context, batch=batch, repeats=repeats, tell=_progress())
    file = save_curve(lm.target, curve)
    if json:
        told = {"sizes": curve.sizes, "seconds": curve.seconds, "context": curve.context, "batch": curve.batch}
        print_json({"model": model, "file": str(file), **told})
        return 0
    typer.echo(f"{'tokens':>8}{'ms':>10}{'of one':>9}")
    for size, seconds in zip(curve.sizes, curve.seconds, strict=True):
        typer.echo(f"{size:>8}{seconds * 1e3:>10.3f}{seconds / curve.seconds[0]:>8.2f}x")
    typer.echo(f"Stored in {file}")
    return 0


def _progress() -> Callable[[str], None] | None:
    """Return a function that says how far it is, where a person looks on."""
    if not sys.stderr.isatty():
        return None
    return lambda text: print(f"\r{text}", end="", file=sys.stderr, flush=True)
