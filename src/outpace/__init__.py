"""Outpace: token sequences faster than one token at a time, with the text unchanged.

    import outpace
    lm = outpace.load("stories")
    print(lm.generate("Once upon a time", method="prompt-lookup").text)

Names resolve on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Ask": "outpace.engine.face",
    "Conversation": "outpace.api.conversation",
    "Engine": "outpace.engine.core",
    "EngineProcess": "outpace.engine.process",
    "LanguageModel": "outpace.api.engine",
    "Limits": "outpace.engine.limits",
    "Recall": "outpace.api.recall",
    "Result": "outpace.api.result",
    "Run": "outpace.run.loop",
    "Row": "outpace.run.row",
    "Sampling": "outpace.sampling",
    "OutpaceError": "outpace.errors",
    "LayerMemory": "outpace.draft.layers",
    "RecyclingMemory": "outpace.draft.recycling",
    "SuffixMemory": "outpace.draft.suffix_history",
    "TokenCounts": "outpace.draft.vocabulary",
    "TrigramMemory": "outpace.draft.trigram",
    "load": "outpace.api.engine",
    "methods": "outpace.methods.catalogue",
}

__all__ = [
    "Ask",
    "Conversation",
    "Engine",
    "EngineProcess",
    "LanguageModel",
    "LayerMemory",
    "Limits",
    "OutpaceError",
    "Recall",
    "RecyclingMemory",
    "Result",
    "Row",
    "Run",
    "Sampling",
    "SuffixMemory",
    "TokenCounts",
    "TrigramMemory",
    "__version__",
    "load",
    "methods",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'outpace' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
