"""Speed: paired, interleaved measurements of methods and peers; one JSON schema, tables and plots.

`run` measures methods on prompts, `run_catalogue` all methods that are registered (both take `BenchOptions`),
`run_growth` batch, context and budget (`GrowthOptions`), `run_micro` forwards, overhead and memory (`MicroOptions`).
Names resolve on first use, so that importing the package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "BenchOptions": "options",
    "GrowthOptions": "options",
    "MicroOptions": "options",
    "Report": "report",
    "run": "speed",
    "run_catalogue": "catalogue",
    "run_growth": "growth",
    "run_micro": "micro",
}

__all__ = ["BenchOptions", "GrowthOptions", "MicroOptions", "Report", "run", "run_catalogue", "run_growth", "run_micro"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
