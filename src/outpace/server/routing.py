"""Which replica an ask goes to: one that probably holds its prompt's beginning, unless it has much more to do.

Each beginning orders the replicas by a hash of both (rendezvous hashing: Thaler & Ravishankar 1998), so that routers
agree without talking to each other, and a replica that comes or goes moves only its own share of the beginnings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["prefix_of", "route"]

_TOKENS, _CHARACTERS = 64, 256


def prefix_of(prompt: Any) -> bytes:
    """Return the beginning of a prompt: 64 tokens, or 256 characters of a text or of a conversation."""
    if isinstance(prompt, str):
        return prompt[:_CHARACTERS].encode(errors="replace")
    given = list(prompt)[:_TOKENS]
    if given and not isinstance(given[0], int):
        return json.dumps(given, default=str)[:_CHARACTERS].encode()
    return json.dumps(given).encode()


def route(prefix: bytes, loads: Mapping[str, float], slack: float) -> list[str]:
    """Return replicas in the order in which an ask should try them.

    Args:
        prefix: the beginning of its prompt.
        loads: asks under way, by replica.
        slack: how many more than the least loaded one a replica may have and still be preferred for its cache.
    """
    most = min(loads.values(), default=0) + slack
    ranked = sorted(loads, key=lambda name: hashlib.blake2b(prefix + b"\0" + name.encode(), digest_size=8).digest())
    return sorted(ranked, key=lambda name: loads[name] > most)  # stable: the order of hashes stays within both
