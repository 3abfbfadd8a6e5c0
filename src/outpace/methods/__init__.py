"""One file per decoding method; names resolve lazily through `outpace.registry`.

The package bears the name of the public function `outpace.methods()`, and importing it would hide the function: so it
can be called too, with the same answer.
"""

import sys
from types import ModuleType
from typing import Any

from outpace.methods.base import Method, Paper

__all__ = ["Method", "Paper"]


class _Methods(ModuleType):
    def __call__(self) -> list[dict[str, Any]]:
        from outpace import catalogue

        return catalogue.methods()


sys.modules[__name__].__class__ = _Methods
