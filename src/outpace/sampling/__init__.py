"""From logits to a law to a token: the only place that knows temperature, truncation, penalties and noise.

Names resolve on first use: the command line reads the settings without waiting for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outpace.sampling.history import History
    from outpace.sampling.noise import Stream, fork_key, gumbel, node_key, place_in_step, row_key, uniform
    from outpace.sampling.sampler import Law, Sampler
    from outpace.sampling.settings import Sampling, SamplingOptions

_HOMES = {"History": "history", "Law": "sampler", "Sampler": "sampler", "Sampling": "settings"}
_HOMES |= {"SamplingOptions": "settings"}

__all__ = [
    "History",
    "Law",
    "Sampler",
    "Sampling",
    "SamplingOptions",
    "Stream",
    "fork_key",
    "gumbel",
    "node_key",
    "place_in_step",
    "row_key",
    "uniform",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'outpace.sampling' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"outpace.sampling.{_HOMES.get(name, 'noise')}"), name)
    globals()[name] = found
    return found
