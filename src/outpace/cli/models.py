"""`outpace models`: the models that ship, those that `outpace get` fetches, and those in the local hub cache."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from outpace import zoo
from outpace.cli.get import row
from outpace.cli.output import print_json, print_table
from outpace.zoo.published import published

__all__ = ["models"]

_WEIGHTS = ".safetensors"


def models(json: Annotated[bool, typer.Option("--json", help="Print {zoo, published, cached}.")] = False) -> None:
    """List the models that ship with Outpace, those that `outpace get` fetches, and those that the hub cache holds."""
    shipped = [zoo.card(name).to_dict() for name in zoo.names()]
    cached = _cached()
    if json:
        print_json({"zoo": shipped, "published": [model.to_dict() for model in published()], "cached": cached})
    else:
        local = [(model["name"], _size(model["num_bytes"]), "", "in the local hub cache") for model in cached]
        print_table(("name", ">size", "what it is"), [*map(_line, shipped), *map(row, published()), *local])


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


def _line(card: dict[str, Any]) -> tuple[str, str, str, str]:
    facts = f"{card['parameters'] / 1e6:.2f} M parameters, {card['licence']}; trained on {', '.join(card['sources'])}"
    return card["name"], _size(card["num_bytes"]), card["summary"], facts


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
