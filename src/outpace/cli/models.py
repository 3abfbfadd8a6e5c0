"""`outpace models`: models that ship, that `outpace get` fetches and in the local hub cache, and packed weights."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from outpace import store, zoo
from outpace.cli.get import row
from outpace.cli.output import print_json, print_table, write_text
from outpace.zoo.published import published

__all__ = ["models"]

_WEIGHTS = ".safetensors"


def models(
    json: Annotated[bool, typer.Option("--json", help="Print {zoo, published, cached, packed}.")] = False,
    clear_packed: Annotated[
        bool, typer.Option("--clear-packed", help="Remove the packed weights that earlier starts kept.")
    ] = False,
) -> None:
    """List the models that ship with Outpace, those that `outpace get` fetches, and those that the hub cache holds.

    Below them stands what the packed weights take that are kept for quick starts: at most OUTPACE_PACKED_GB gigabytes
    (8; 0 keeps none).
    """
    if clear_packed:
        store.clear_packed()
    shipped = [zoo.card(name).to_dict() for name in zoo.names()]
    cached = _cached()
    if json:
        fetched = [model.to_dict() for model in published()]
        print_json({"zoo": shipped, "published": fetched, "cached": cached, "packed": _packed()})
    else:
        local = [(model["name"], _size(model["num_bytes"]), "", "in the local hub cache") for model in cached]
        print_table(("name", ">size", "what it is"), [*map(_line, shipped), *map(row, published()), *local])
        packed = _packed()
        count = f"{packed['num_files']} packed {'model' if packed['num_files'] == 1 else 'models'}"
        write_text(f"{count}, {_size(packed['num_bytes'])} of {_size(packed['limit'])}, in {packed['folder']}\n")


def _packed() -> dict[str, Any]:
    """Return what is kept of packed weights, and where."""
    sizes = [size for _, size in store.list_packed()]
    folder, limit = str(store.packed_folder()), store.packed_limit()
    return {"folder": folder, "num_files": len(sizes), "num_bytes": sum(sizes), "limit": limit}


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
