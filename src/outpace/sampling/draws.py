"""The draw of a token: the likeliest under logits with Gumbel noise on top.

Noise costs two logarithms a token, and few tokens can win. Compiled code may name those few (`take`); their noise is
then made as always, so that the token drawn is the same one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from outpace.sampling.noise import gumbel, is_on_host

__all__ = ["contenders", "drawn", "plain_drawn", "take"]

_offered: list[Callable[[Tensor, Tensor], Tensor | None]] = []


def take(find: Callable[[Tensor, Tensor], Tensor | None]) -> None:
    """Let compiled code name contenders from now on, wherever it can; it answers None where it cannot."""
    _offered[:] = [find]


def contenders(logits: Tensor, key: Tensor) -> Tensor | None:
    """Return tokens [N, C] that the winner is among, the lowest ids first; None where no compiled code serves.

    Args:
        logits: [N, V] float64, divided by the temperature.
        key: [N] int64 from `node_key`.
    """
    return _offered[0](logits, key) if _offered and is_on_host(logits) else None


def plain_drawn(logits: Tensor, key: Tensor) -> Tensor:
    """Return argmax(logits + Gumbel) of [N, V], [N] int64; ties go to the lowest id."""
    return (logits + gumbel(key, torch.arange(logits.shape[-1], device=logits.device))).argmax(-1)


def drawn(logits: Tensor, key: Tensor) -> Tensor:
    """Return the same, from the contenders alone where they are known."""
    ids = contenders(logits, key)
    if ids is None:
        return plain_drawn(logits, key)
    return ids.gather(-1, (logits.gather(-1, ids) + gumbel(key, ids)).argmax(-1, keepdim=True)).squeeze(-1)
