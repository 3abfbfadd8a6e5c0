"""`outpace drafter`: look at a trained drafter's files, wherever they are from, and write ours for other engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from outpace.cli.output import print_json, write_text
from outpace.errors import ConfigError

__all__ = ["drafter"]

drafter = typer.Typer(help="Check a drafter's files against its target, or write them for other engines.")

_Target = Annotated[str, typer.Option("--target", help="The model that it drafts for: a name, directory or GGUF file.")]
_Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one object.")]


@drafter.command("check")
def check(
    path: Annotated[Path, typer.Argument(help="The drafter's directory or GGUF file.")],
    target: _Target,
    keep: Annotated[bool, typer.Option("--keep", help="Use it from now on, even if it is useless.")] = False,
    dtype: _Dtype = "auto",
    json: _Json = False,
) -> int:
    """Read a drafter of any layout, try what its files leave open, and say how many tokens a round it gives.

    The same happens by itself when a drafter is used with a target for the first time; the verdict is kept. Exit
    status 1: it gives less than 1.2 tokens a round.
    """
    from outpace.api.drafter_check import check_drafter
    from outpace.api.engine import load

    _look(path)
    verdict = check_drafter(load(target, dtype=dtype), path, is_kept=keep)
    found = {"drafter": str(path), "target": target, **verdict.to_dict()}
    print_json(found) if json else write_text(_table(found))
    return 0 if verdict.is_useful else 1


@drafter.command("export")
def export(
    path: Annotated[Path, typer.Argument(help="A drafter's directory, of `outpace train drafter` or from elsewhere.")],
    out: Annotated[Path, typer.Option(help="The directory to write; it must not exist.")],
    target: _Target,
    to: Annotated[str, typer.Option("--to", help="The layout: see the page on drafter files.")],
    dtype: _Dtype = "auto",
) -> None:
    """Write a drafter in the layout of another engine, and read it back to see that nothing was lost."""
    from outpace.api.drafter_check import export_drafter
    from outpace.api.engine import load

    _look(path)
    if out.exists():
        raise ConfigError(f"{str(out)!r} exists.", "Name another directory with --out.")
    before, after = export_drafter(load(target, dtype=dtype), path, out, to)
    typer.echo(f"{out}: {to}; {before:.2f} tokens a round before, {after:.2f} read back")


def _look(path: Path) -> None:
    if not path.exists():
        raise ConfigError(f"There is no drafter {str(path)!r}.", "Give its directory or GGUF file.")


def _table(found: dict[str, Any]) -> str:
    lines = [
        f"layout      {found['layout']}",
        f"kind        {found['kind']}",
        f"drafts      {found['tokens_per_round']:.2f} tokens a round on fixed prompts",
        *(f"{name:<12}{value}" for name, value in found["chosen"].items()),
        *(f"note: {sentence}" for sentence in found["findings"]),
    ]
    if found["cause"]:
        ending = "useless" if found["layout"] == "Outpace" else "refused"  # ours is used when it is named
        lines.append(f"{'kept all the same' if found['is_kept'] else ending}: {found['cause']}")
    return "\n".join(lines) + "\n"
