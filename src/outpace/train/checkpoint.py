"""Checkpoints that survive a full disk and a killed process: written beside the old one, then swapped in."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import torch

from outpace.errors import ConfigError, ModelError, StorageError


def save(state: dict[str, Any], path: Path) -> None:
    """Write `state` to `path` in one indivisible step.

    Whatever happens, `path` holds either the previous checkpoint or the new one, whole.

    Raises:
        StorageError: When the disk is full or the file cannot be written.
    """
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    # torch wraps a failed write in a RuntimeError, so the cause is looked up in the chain.
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise StorageError(_explain(error, path), "Free some space, then run again with --resume.") from error


def _explain(error: BaseException, path: Path) -> str:
    kept = "the previous checkpoint is still valid" if path.exists() else "there is no earlier checkpoint"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk is full, so {path} was not written; {kept}"
        cause = cause.__cause__ or cause.__context__
    return f"{path} could not be written ({error}); {kept}"


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint (tensors and plain values only, never code).

    Raises:
        ConfigError: When it is missing.
        ModelError: When it is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no checkpoint at {path}", "Leave out --resume to start afresh.") from error
    except Exception as error:
        raise ModelError(f"the checkpoint {path} cannot be read", "Delete it and train again.") from error
    return state
