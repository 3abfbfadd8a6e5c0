"""`outpace graph`: write a graph of sub-problems, those that wait for nothing side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from outpace.cli.options import DtypeName, MethodOptions
from outpace.cli.output import print_json, write_text
from outpace.cli.values import Dtype, options, text_file
from outpace.errors import ConfigError

__all__ = ["graph"]


def graph(
    file: Annotated[str, typer.Argument(help="The graph: 'name [level]: prompt' a line, or JSON; - = standard input.")],
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="[LEVEL=]MODEL", help="What writes; several by level, the first for nodes without one."),
    ] = None,
    method: Annotated[str, typer.Option(help="How to decode; `outpace methods` lists all.")] = "autoregressive",
    option: MethodOptions = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of a node.")] = 48,
    temperature: Annotated[float, typer.Option(help="0 = the likeliest tokens.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Fixes every random draw.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End a node before this text.")] = None,
    dtype: DtypeName = Dtype.AUTO,
    json: Annotated[bool, typer.Option("--json", help="Print an object a node, one a line.")] = False,
) -> None:
    """Write every node of a graph; {name} in a prompt stands for what that node wrote.

    Nodes whose parents are written are written in one batch, each as it would be alone. With several --model, a node's
    level names the one that writes it.
    """
    from outpace.api.graph import read_graph, write_graph

    nodes, named = read_graph(text_file(file)), _levels(model or ["stories"])
    from outpace.api.engine import load

    models = {level: load(name, dtype=dtype.value) for level, name in named.items()}
    asked = {"method": method, "options": options(option or []), "stop": stop or ()}
    found = write_graph(models, nodes, max_tokens=max_tokens, temperature=temperature, seed=seed, **asked)
    for one in found:
        print_json(one.to_dict()) if json else write_text(f"{one.name} ({one.model}): {one.text.strip()}\n")


def _levels(given: list[str]) -> dict[str, str]:
    """Return models by level.

    Raises:
        ConfigError: one of several has no level, or two have the same.
    """
    levels = {each.partition("=")[0] if "=" in each else "": each.partition("=")[2] or each for each in given}
    if len(levels) < len(given) or (len(given) > 1 and "" in levels):
        raise ConfigError(
            "Several models were named, but not each for a level of its own.", "Write --model hard=MODEL."
        )
    return levels
