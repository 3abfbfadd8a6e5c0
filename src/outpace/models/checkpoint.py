"""What a model directory holds that is not read: GGUF, some kinds of quantised weights; named before they are read.

Formats that have no loader here would otherwise fail at some tensor, or load as numbers that mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outpace.errors import ModelError
from outpace.models.hfquant_settings import read_quantisation

__all__ = ["check_checkpoint", "check_file"]


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
    if path.suffix == ".gguf":
        raise _gguf(path)
    raise ModelError(f"{path} is a file, not a model directory.", "Give the directory that holds config.json.")


def check_checkpoint(directory: Path) -> None:
    """Refuse a directory whose files say that they cannot be read here.

    Raises:
        ModelError: GGUF alone, or weights quantised in a way that has no reader.
    """
    weights = [*directory.glob("*.safetensors")]
    gguf = next(iter(sorted(directory.glob("*.gguf"))), None)
    if gguf is not None and not weights:
        raise _gguf(gguf)
    config = _read(directory / "config.json")
    if isinstance(config, Mapping):
        read_quantisation(directory, config)


def _gguf(path: Path) -> ModelError:
    return ModelError(
        f"{path} is a GGUF file, which is not read here.",
        "Use the checkpoint that it was made from: a directory with config.json and safetensors.",
    )
