"""One file per decoding method; names resolve lazily through `outpace.registry`."""

from outpace.methods.base import Method, Paper

__all__ = ["Method", "Paper"]
