"""What rules on a canvas ask of laws: the likeliest token, the two greatest logits, and how the mass is spread.

One look at the logits of all rows serves every rule. Compiled code may take the look (`take`); tensors are its oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from outpace.sampling.truncation import likeliest

__all__ = ["Measures", "measure", "measure_there", "plain_measure", "take"]

Floats = npt.NDArray[np.float64]
_offered: list[Callable[[Tensor, int], Measures | None]] = []


@dataclass(frozen=True, slots=True)
class Measures:
    """Figures of laws [..., A]; of a law that is none, the token is -1.

    Attributes:
        tokens: the likeliest, ties by lowest id.
        top, second: the two greatest logits.
        mass: the sum of e^(x - top) over all logits x.
        moment: the sum of e^(x - top) * (x - top).
    """

    tokens: npt.NDArray[np.int64]
    top: Floats
    second: Floats
    mass: Floats
    moment: Floats

    def __getitem__(self, index: Any) -> Measures:
        """Return those of some laws."""
        parts = (self.top, self.second, self.mass, self.moment)
        return Measures(self.tokens[index], *(part[index] for part in parts))

    @property
    def top_two(self) -> Floats:
        """[..., A, 2] the two greatest probabilities; 0 where the law is none."""
        with np.errstate(invalid="ignore"):
            both = np.stack([np.ones_like(self.mass), np.exp(self.second - self.top)], -1) / self.mass[..., None]
        return np.where(self.tokens[..., None] < 0, 0.0, both)

    @property
    def entropy(self) -> Floats:
        """[..., A] entropy of the law, in nats."""
        found: Floats = np.log(self.mass) - self.moment / self.mass
        return found


def take(look: Callable[[Tensor, int], Measures | None]) -> None:
    """Let compiled code look from now on, wherever it can; it answers None where it cannot."""
    _offered[:] = [look]


def measure(logits: Tensor, barred: int = -1) -> Measures | None:
    """Return the figures of logits [B, A, V] by compiled code, or of a device; None on a host where no code serves.

    Args:
        logits: changed in place where a token is barred, whoever looks at them.
        barred: a token that is ruled out of all laws first; -1 = none.
    """
    found = _offered[0](logits, barred) if _offered else None
    if found is None and barred >= 0:
        logits[..., barred] = float("-inf")
    return measure_there(logits) if found is None and not logits.is_cpu else found


def measure_there(logits: Tensor) -> Measures:
    """Return the figures of logits [..., V] where they lie, brought to the host in one transfer; sums are float32."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    best = wide.topk(2, dim=-1).values
    below = wide - best[..., :1]
    part = below.exp()
    moment = (part * below.clamp(min=-100)).sum(-1)
    # A token's number is exact among floats: there are fewer than 2 ** 24.
    told = torch.stack([likeliest(logits).to(wide.dtype), best[..., 0], best[..., 1], part.sum(-1), moment])
    tokens, *figures = told.cpu().numpy().astype(np.float64)
    return Measures(tokens.astype(np.int64), *figures)


def plain_measure(logits: Tensor) -> Measures:
    """Return the same figures of logits [..., V] by tensors, in float64."""
    return measure_there(logits.double())
