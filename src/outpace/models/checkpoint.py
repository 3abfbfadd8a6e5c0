"""What a model directory holds that is not read: some kinds of quantised weights, named before they are read.

Formats that have no loader here would otherwise fail at some tensor, or load as numbers that mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outpace.errors import ModelError
from outpace.models.hfquant_settings import read_quantisation

__all__ = ["check_checkpoint", "check_file", "check_marian"]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def check_file(path: Path) -> None:
    """Refuse a file in place of a directory, by what it is.

    Raises:
        ModelError: it is a file.
    """
    if not path.is_file():
        return
    check_marian(path)
    raise ModelError(
        f"{path} is neither a model directory nor a GGUF file.", "Give the directory that holds config.json."
    )


def check_marian(path: Path) -> None:
    """Refuse a model in Marian's own form: a file, or a directory without a config.json that holds one.

    Raises:
        ModelError: it is one.
    """
    if path.suffix == ".npz" or (not (path / "config.json").is_file() and any(path.glob("*.npz"))):
        raise ModelError(
            f"{path} is a Marian model in its own form (npz), which is not read here.",
            "Convert it with transformers (convert_marian_to_pytorch.py), or use its conversion on the hub.",
        )


def check_checkpoint(directory: Path) -> None:
    """Refuse a directory whose files say that they cannot be read here.

    Raises:
        ModelError: weights quantised in a way that has no reader.
    """
    config = _read(directory / "config.json")
    if isinstance(config, Mapping):
        read_quantisation(directory, config)
