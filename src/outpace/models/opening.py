"""Which door a model comes through: our own decoder where a family fits, transformers for everything else."""

from __future__ import annotations

from pathlib import Path

from outpace.models.families import FAMILIES
from outpace.models.loading import load_model, read_capabilities, read_config, resolve
from outpace.types import Adapter, Capabilities

__all__ = ["locate", "offered_by", "open_model"]

_PREFIX = "hf:"


def locate(name: str) -> tuple[Path, bool]:
    """Return a model's directory, and whether the native decoder serves it.

    Args:
        name: a zoo name, directory or hub id; "hf:NAME" asks for the transformers adapter.
    """
    directory = resolve(name.removeprefix(_PREFIX))
    return directory, not name.startswith(_PREFIX) and read_config(directory).get("model_type") in FAMILIES


def offered_by(name: str) -> Capabilities | None:
    """Return a model's capabilities without loading weights; None where only running it tells (transformers)."""
    directory, is_native = locate(name)
    return read_capabilities(directory) if is_native else None


def open_model(name: str, dtype: str = "auto", device: str = "auto", is_compiled: bool = True) -> Adapter:
    """Load a model by name through the right door.

    Raises:
        ModelError: it cannot be found, read or trusted.
    """
    directory, is_native = locate(name)
    if is_native:
        return load_model(directory, dtype=dtype, device=device, is_compiled=is_compiled)
    from outpace.models.hf import load_transformers

    adapter = load_transformers(str(directory), dtype=dtype, device=device)
    if not name.startswith(_PREFIX):
        adapter.notes.append("This architecture has no native loader: it runs through transformers, which is slower.")
    return adapter
