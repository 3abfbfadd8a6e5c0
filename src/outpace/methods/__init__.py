"""The decoding methods, one file each, by group; names resolve lazily through `outpace.methods.registry`.

The package bears the name of the public function `outpace.methods()`, and importing it would hide the function: so it
can be called too, with the same answer. Nothing is imported before it is used, since listing names needs no torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outpace.methods.base import Method, Paper

__all__ = ["Method", "Paper"]


class _Methods(ModuleType):
    def __call__(self) -> list[dict[str, Any]]:
        from outpace.methods import catalogue

        return catalogue.methods()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("outpace.methods.base"), name)


sys.modules[__name__].__class__ = _Methods
