"""Models behind the `Adapter` contract. Names load lazily: importing this package imports no torch."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["Spec", "Tokenizer", "Transformer", "load_model", "load_tokenizer", "read_capabilities", "read_end_tokens"]

_HOMES = {
    "Spec": "spec",
    "Transformer": "transformer",
    "Tokenizer": "tokenizer",
    "load_model": "loading",
    "load_tokenizer": "tokenizer",
    "read_capabilities": "loading",
    "read_end_tokens": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
