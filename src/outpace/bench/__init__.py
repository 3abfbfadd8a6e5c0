"""Speed: paired, interleaved measurements of methods and peers; one JSON schema, tables and plots.

`run(BenchOptions(...))` measures methods on prompts, `run_micro(MicroOptions(...))` forwards, overhead and memory.
Names resolve on first use, so that importing the package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "BenchOptions": "options",
    "MicroOptions": "options",
    "Report": "report",
    "run": "speed",
    "run_micro": "micro",
}

__all__ = ["BenchOptions", "MicroOptions", "Report", "run", "run_micro"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
