"""`outpace certify`: put a method's guarantee to the test on a real model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from outpace.cli.checks import check_method
from outpace.cli.options import ModelName
from outpace.cli.output import print_json
from outpace.cli.progress import Teller
from outpace.cli.values import Device, Dtype, options
from outpace.errors import ConfigError

__all__ = ["certify"]


def certify(
    model: ModelName = "stories",
    method: Annotated[
        str | None, typer.Option(help="The method to prove (several: A,B); prompt-lookup unless --all.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="A search to prove: reduced, it writes the method's text.")] = None,
    all: Annotated[
        bool, typer.Option("--all", help="Every method that fits the model, with default settings.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Processes side by side, with several methods.")] = 2,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="KEY=VALUE", help="A setting of the method; of several, draft=MODEL."),
    ] = None,
    law: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:KEY=VALUE,...", help="A law over the next token, of both (repeatable)."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file: JSON lines with a text each, or texts parted by empty lines.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Where flips are listed; float64 = only prove.")] = Dtype.AUTO,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    seed: Annotated[int, typer.Option(help="Fixes every random draw.")] = 0,
    time_limit: Annotated[float, typer.Option(help="Seconds per method; what does not fit is named.")] = 300.0,
    json: Annotated[bool, typer.Option("--json", help="Print the certificate as one object.")] = False,
) -> int:
    """Compare a method with its reference under every kind of sampling, and print a certificate.

    The reference is plain decoding; of a lossless method on a canvas, the same sampler with one token per step. The
    exit status is 0 only if the guarantee held and enough was seen to tell: 1 = something differs, or the method is
    approximate and gets no certificate; 3 = nothing differs, but too little was seen.
    """
    began = time.monotonic()
    names = [] if method is None else [name for name in method.split(",") if name]
    if search is not None and (all or len(names) > 1):
        raise ConfigError("A search is certified beside one method.", "Name one with --method.")
    if all or len(names) > 1:
        chosen_options = options(option or [])
        if set(chosen_options) - {"draft"} or law or prompts is not None or (all and names):
            hint = "Name one with --method; only -o draft=MODEL goes with several."
            raise ConfigError("Several methods are certified with default settings.", hint)
        draft = chosen_options.get("draft", "auto")
        return _certify_all(model, names, dtype.value, seed, time_limit, jobs, json, draft)
    texts, name, given = (
        None if prompts is None else _texts(prompts),
        names[0] if names else "prompt-lookup",
        option or [],
    )
    if search is not None:
        return _certify_search(model, search, name, options(given), texts, device.value, seed, time_limit, json)
    chosen, _ = check_method(model, name, options(given))
    from outpace.testing.certify import Plan
    from outpace.testing.certify import certify as prove

    teller = Teller()
    # What loading the libraries took counts too.
    plan = Plan(
        time_limit - (time.monotonic() - began),
        on_progress=lambda seen: teller.tell(seen.what, seen.elapsed_s, seen.left_s, seen.is_done),
    )
    certificate = prove(
        model, chosen, texts, dtype=dtype.value, device=device.value, seed=seed, plan=plan, law=law or ()
    )
    teller.close()
    print_json(certificate.to_dict()) if json else typer.echo(certificate.render())
    return certificate.exit_status


def _certify_search(
    model: str,
    search: str,
    name: str,
    given: dict[str, str],
    texts: list[str] | None,
    device: str,
    seed: int,
    limit_s: float,
    is_json: bool,
) -> int:
    """Certify a search, reduced, beside a method; return the exit status."""
    from outpace.search.base import read_search
    from outpace.testing.certify_search import certify_search

    held, rest = read_search(search, name, given)
    assert held is not None  # it was named
    method, _ = check_method(model, name, rest or {})
    certificate = certify_search(model, held, method, texts, device=device, seed=seed, limit_s=limit_s)
    print_json(certificate.to_dict()) if is_json else typer.echo(certificate.render())
    return certificate.exit_status


def _certify_all(
    model: str, names: list[str], dtype: str, seed: int, limit_s: float, jobs: int, is_json: bool, draft: str
) -> int:
    """Certify several methods; a line each as they are done, and the exit status of the worst."""
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}.", "jobs must be 1 or more.")
    from outpace.testing.certify_all import certifiable, certify_all

    entries, began, teller = list[Any](), time.monotonic(), Teller()
    count = len(names) or sum(method is not None for method, _ in certifiable(model, (), draft))
    for entry in certify_all(model, names, dtype=dtype, seed=seed, limit_s=limit_s, jobs=jobs, draft=draft):
        entries.append(entry)
        teller.close()
        if not is_json:
            typer.echo(entry.render())
        if entry.certificate is not None or entry.is_failure:
            elapsed, num = time.monotonic() - began, sum(e.certificate is not None or e.is_failure for e in entries)
            teller.tell(f"{num} of {count} methods", elapsed, elapsed / num * (count - num), is_done=is_json)
    teller.close()
    failed = [entry.method for entry in entries if not entry.holds]
    statuses = {entry.exit_status for entry in entries}
    if is_json:
        told = [
            {"method": e.method, "reason": e.reason, "certificate": e.certificate.to_dict() if e.certificate else None}
            for e in entries
        ]
        print_json({"model": model, "holds": not failed, "methods": told})
    else:
        num = sum(entry.certificate is not None for entry in entries)
        verdict = f"NOT CERTIFIED: {', '.join(failed)}" if failed else "all certified"
        typer.echo(f"{num} methods in {time.monotonic() - began:.0f} s: {verdict}")
    return 1 if 1 in statuses else max(statuses, default=0)


def _texts(file: Path) -> list[str]:
    from outpace.bench.prompts import read_prompts

    return [prompt.text for prompt in read_prompts(str(file))]
