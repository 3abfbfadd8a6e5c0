"""The draw of a token: the likeliest under logits with Gumbel noise on top.

Noise costs two logarithms a token, and few tokens can win. Compiled code may name those few (`take`); their noise is
then made as always, so that the token drawn is the same one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from outpace.sampling.noise import gumbel, is_on_host

__all__ = ["contenders", "drawn", "plain_drawn", "sampled", "take"]

Find = Callable[[Tensor, float, Tensor], "tuple[Tensor, Tensor] | None"]
_offered: list[Find] = []


def take(find: Find) -> None:
    """Let compiled code name contenders from now on, wherever it can; it answers None where it cannot."""
    _offered[:] = [find]


def contenders(logits: Tensor, key: Tensor) -> Tensor | None:
    """Return tokens [N, C] that the winner is among, the lowest ids first; None where no compiled code serves.

    Args:
        logits: [N, V] float64, divided by the temperature.
        key: [N] int64 from `node_key`.
    """
    if not _offered or not is_on_host(logits) or logits.dtype != torch.float64:
        return None
    found = _offered[0](logits, 1.0, key)
    return None if found is None else found[0]


def plain_drawn(logits: Tensor, key: Tensor) -> Tensor:
    """Return argmax(logits + Gumbel) of [N, V], [N] int64; ties go to the lowest id."""
    return (logits + gumbel(key, torch.arange(logits.shape[-1], device=logits.device))).argmax(-1)


def sampled(logits: Tensor, temperature: float, key: Tensor) -> Tensor | None:
    """Return argmax(logits / temperature + Gumbel), [N] int64, -1 where a law is none; None where no code serves.

    Args:
        logits: [N, V] as the model gives them: only those of contenders are brought to float64 and divided.
        temperature: above 0.
        key: [N] int64 from `node_key`.
    """
    found = _offered[0](logits, temperature, key) if _offered and is_on_host(logits) else None
    if found is None:
        return None
    ids, is_sound = found
    best = (logits.gather(-1, ids).double() / temperature + gumbel(key, ids)).argmax(-1, keepdim=True)
    return torch.where(is_sound, ids.gather(-1, best).squeeze(-1), -1)


def drawn(logits: Tensor, key: Tensor) -> Tensor:
    """Return the same, from the contenders alone where they are known."""
    ids = contenders(logits, key)
    if ids is None:
        return plain_drawn(logits, key)
    return ids.gather(-1, (logits.gather(-1, ids) + gumbel(key, ids)).argmax(-1, keepdim=True)).squeeze(-1)
