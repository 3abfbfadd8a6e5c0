"""What tells a vocabulary from others, whichever file it was read from."""

from __future__ import annotations

import hashlib
from typing import Any

__all__ = ["fingerprint"]


def fingerprint(tokenizer: Any) -> str:
    """Return a digest of a tokenizer's vocabulary, spelling by spelling in the order of the ids."""
    spelled = "\n".join(tokenizer.token(index) for index in range(tokenizer.vocab_size))
    return hashlib.sha256(spelled.encode()).hexdigest()[:32]
