"""`outpace models`: the models that ship, and those in the local hub cache."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from outpace import zoo
from outpace.cli.output import print_json

__all__ = ["models"]

_WEIGHTS = ".safetensors"


def models(json: Annotated[bool, typer.Option("--json", help="Print {zoo: [...], cached: [...]}.")] = False) -> None:
    """List the models that ship with Outpace, and those that the hub cache holds."""
    shipped = [zoo.card(name).to_dict() for name in zoo.names()]
    cached = _cached()
    if json:
        print_json({"zoo": shipped, "cached": cached})
    else:
        _table(shipped, cached)


def _cached() -> list[dict[str, Any]]:
    """Return the models of the hub cache that have weights Outpace would open."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        found = scan_cache_dir()
    except (CacheNotFound, OSError):
        return []
    repos = sorted((repo for repo in found.repos if repo.repo_type == "model"), key=lambda repo: repo.repo_id)
    return [{"name": repo.repo_id, "num_bytes": repo.size_on_disk} for repo in repos if _has_weights(repo)]


def _has_weights(repo: Any) -> bool:
    return any(file.file_name.endswith(_WEIGHTS) for revision in repo.revisions for file in revision.files)


def _table(shipped: list[dict[str, Any]], cached: list[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("size", no_wrap=True, justify="right")
    table.add_column("what it is")
    for card in shipped:
        facts = (
            f"{card['parameters'] / 1e6:.2f} M parameters, {card['licence']}; trained on {', '.join(card['sources'])}"
        )
        what = Text.assemble(card["summary"], (f"\n{facts}", "dim"))
        table.add_row(Text(card["name"], style="bold"), _size(card["num_bytes"]), what)
    for model in cached:
        table.add_row(Text(model["name"]), _size(model["num_bytes"]), Text("in the local hub cache", style="dim"))
    Console().print(table)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
