"""`outpace certify`: put a method's guarantee to the test on a real model."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outpace.cli.checks import check_method
from outpace.cli.output import print_json
from outpace.cli.values import Device, Dtype, options
from outpace.errors import ConfigError

if TYPE_CHECKING:
    from outpace.testing.certify import Line

__all__ = ["certify"]


def certify(
    model: Annotated[str, typer.Option(help="A shipped model, a directory or a hub id.")] = "stories",
    method: Annotated[
        str | None, typer.Option(help="The method to prove (several: A,B); prompt-lookup unless --all.")
    ] = None,
    all: Annotated[
        bool, typer.Option("--all", help="Every method that fits the model, with default settings.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Processes side by side, with several methods.")] = 2,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="A setting of the method.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file: JSON lines with a text each, or texts parted by empty lines.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Where flips are listed; float64 = only prove.")] = Dtype.AUTO,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    seed: Annotated[int, typer.Option(help="Fixes every random draw.")] = 0,
    time_limit: Annotated[float, typer.Option(help="Begin no new round of texts after these seconds.")] = 600.0,
    json: Annotated[bool, typer.Option("--json", help="Print the certificate as one object.")] = False,
) -> int:
    """Compare a method with its reference under every kind of sampling, and print a certificate.

    The reference is plain decoding; of a lossless method on a canvas, the same sampler with one token per step. The
    exit status is 0 only if the guarantee held and enough was seen to tell; an approximate method gets none.
    """
    names = [] if method is None else [name for name in method.split(",") if name]
    if all or len(names) > 1:
        if option or prompts is not None or (all and names):
            raise ConfigError("Several methods are certified with default settings.", "Name one with --method.")
        return _certify_all(model, names, dtype.value, seed, time_limit, jobs, json)
    texts = None if prompts is None else _texts(prompts)
    chosen, _ = check_method(model, names[0] if names else "prompt-lookup", options(option or []))
    from outpace.testing.certify import certify as prove

    certificate = prove(
        model,
        chosen,
        texts,
        dtype=dtype.value,
        device=device.value,
        seed=seed,
        limit_s=time_limit,
        on_line=_tell if sys.stderr.isatty() else None,
    )
    print_json(certificate.to_dict()) if json else typer.echo(certificate.render())
    return certificate.exit_status


def _certify_all(model: str, names: list[str], dtype: str, seed: int, limit_s: float, jobs: int, is_json: bool) -> int:
    """Certify several methods; a line each as they are done, and the exit status of the worst."""
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}.", "jobs must be 1 or more.")
    from outpace.testing.certify_all import certify_all

    entries, began = [], time.monotonic()
    lower = "bfloat16" if dtype == "auto" else dtype
    for entry in certify_all(model, names, dtype=lower, seed=seed, limit_s=limit_s, jobs=jobs):
        entries.append(entry)
        if not is_json:
            typer.echo(entry.render())
    failed = [entry.method for entry in entries if not entry.holds]
    if is_json:
        told = [
            {"method": e.method, "reason": e.reason, "certificate": e.certificate.to_dict() if e.certificate else None}
            for e in entries
        ]
        print_json({"model": model, "holds": not failed, "methods": told})
    else:
        count = sum(entry.certificate is not None for entry in entries)
        verdict = f"NOT CERTIFIED: {', '.join(failed)}" if failed else "all certified"
        typer.echo(f"{count} methods in {time.monotonic() - began:.0f} s: {verdict}")
    return 1 if failed else 0


def _texts(file: Path) -> list[str]:
    from outpace.bench.prompts import read_prompts

    return [prompt.text for prompt in read_prompts(str(file))]


def _tell(line: Line) -> None:
    """Say on the terminal that one setting is done."""
    print(f"{line.setting}, {line.dtype}: {'holds' if line.holds else 'FAILS'}", file=sys.stderr, flush=True)
