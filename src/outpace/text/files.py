"""The small text files of a model's directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from outpace.errors import ModelError

__all__ = ["AGAIN", "read_object", "read_text"]

AGAIN = "Fetch the model again."


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file.

    Raises:
        ModelError: there is no such file, or it holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # the last for brackets without end
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not readable JSON of an object.", hint=AGAIN)
    return found


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        ModelError: it cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise ModelError(f"{path} is not readable text.", hint=AGAIN) from None
