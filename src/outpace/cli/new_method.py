"""`outpace new-method`: a method file that fulfils the contract as it is written, and its test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outpace.cli.scaffold import write_method

__all__ = ["new_method"]


def new_method(
    name: Annotated[str, typer.Argument(help="Lower-case words joined by hyphens, such as my-method.")],
    out: Annotated[Path, typer.Option("--out", help="Where the two files go.")] = Path("."),
) -> None:
    """Write a new method and its test, both working as they are."""
    method, test = write_method(name, out)
    typer.echo(f"Wrote {method} and {test}.\nRun the test with: pytest {test}")
