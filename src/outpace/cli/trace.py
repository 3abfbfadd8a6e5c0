"""`outpace trace`: read a trace, print where tokens and time came from, or write it as a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outpace.cli.output import print_json
from outpace.errors import ConfigError

__all__ = ["trace"]


def trace(
    file: Annotated[Path, typer.Argument(help="A trace that `outpace generate --trace FILE` wrote.")],
    html: Annotated[Path | None, typer.Option(help="Write the page here; it needs no network.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as one object.")] = False,
) -> int:
    """Show which drafter each token came from, what was kept by depth, and the time; --html writes each step's tree."""
    from outpace.trace import read_trace, render
    from outpace.trace.page import summarise

    head, steps, results = read_trace(file)
    summary = summarise(steps)
    if html is not None:
        try:
            html.write_text(render(head, steps, results), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"The page {str(html)!r} cannot be written: {error.strerror}.", "Name a file.") from None
    if json:
        print_json({**head, "steps": len(steps), "results": results, **summary})
        return 0
    typer.echo(f"{head.get('method')} on {head.get('model')}: {len(steps)} steps")
    typer.echo(f"{'drafter':20}{'steps':>8}{'drafts':>8}{'kept':>8}{'tokens':>8}{'ms':>10}")
    for name, facts in summary["drafters"].items():
        cells = "".join(f"{facts[key]:>8.0f}" for key in ("steps", "drafts", "accepted", "tokens"))
        typer.echo(f"{name:20}{cells}{facts['seconds'] * 1e3:>10.1f}")
    depths = "  ".join(f"{item['depth']}: {item['kept'] / item['tried']:.0%}" for item in summary["depths"])
    typer.echo(f"kept by depth   {depths or 'nothing was drafted'}")
    typer.echo("time            " + "  ".join(f"{name}: {s * 1e3:.1f} ms" for name, s in summary["phases"].items()))
    if html is not None:
        typer.echo(f"Page: {html}")
    return 0
