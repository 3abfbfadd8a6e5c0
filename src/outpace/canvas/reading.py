"""What one forward says of the undecided places of one row, and which token is drawn at each.

A draw is keyed by place and visit (`outpace.sampling.noise`): a place that is masked again, or looked at once more,
draws anew, and a draft that looks ahead draws what the reference will draw there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from outpace.canvas.row import Bools, Canvas, CanvasRow, Floats, Ids
from outpace.sampling.noise import node_key, uniform
from outpace.sampling.sampler import Sampler
from outpace.types import Stream

__all__ = ["Reading", "order_noise", "read", "reread"]


@dataclass
class Reading:
    """The laws of A undecided places of one row.

    Attributes:
        places: [A] where, ascending.
        tokens: [A] the token drawn at each; -1 = the law is none (NaN).
        logits: [A, V] the model's own, the mask token ruled out; the device's.
        sampler: of this row alone.
        visit: part of the key of the draws.
        waits: [A] places that may not be written yet, whatever the rule says (`Canvas.ends_last`); None = none.
    """

    places: Ids
    tokens: Ids
    logits: Tensor
    sampler: Sampler
    visit: int
    waits: Bools | None = None

    @cached_property
    def probs(self) -> Tensor:
        """[A, V] float32 (float64 for float64 logits): the model's own law at temperature 1."""
        logits = self.logits
        return (logits if logits.dtype == torch.float64 else logits.float()).softmax(-1)

    @cached_property
    def confidence(self) -> Floats:
        """[A] probability of the drawn token; 0 where the law is none."""
        drawn = torch.from_numpy(self.tokens).to(self.probs.device).clamp(min=0).unsqueeze(-1)
        return _host(self.probs.gather(-1, drawn).squeeze(-1))

    @cached_property
    def top_two(self) -> Floats:
        """[A, 2] the two greatest probabilities."""
        return _host(self.probs.topk(2, dim=-1).values)

    @cached_property
    def entropy(self) -> Floats:
        """[A] entropy of the law, in nats."""
        probs = self.probs.double()
        return _host(-(probs * probs.clamp(min=1e-300).log()).sum(-1))

    @property
    def is_broken(self) -> bool:
        """Whether some place has no law."""
        return bool((self.tokens < 0).any())

    def noise(self, visit: int | None = None) -> Floats:
        """Return [A] uniforms in (0, 1) for choosing an order; independent of the tokens' draws."""
        return order_noise(self.sampler, self.places, self.visit if visit is None else visit)

    def within(self, end: int) -> Bools:
        """Return [A] whether each place lies before `end`."""
        return self.places < end


def read(logits: Tensor, places: Ids, row: CanvasRow, canvas: Canvas, sampler: Sampler, banned: Tensor) -> Reading:
    """Draw a token at every asked place.

    Args:
        logits: [A, V] of this row's asked places; changed in place.
        places: [A].
        row: as it was forwarded.
        canvas: the run's.
        sampler: of this row alone.
        banned: [K] int64 tokens that may not be written at all: the mask, and end tokens between given pieces.
    """
    logits.index_fill_(-1, banned, float("-inf"))
    return _draw(logits, places, row, canvas, sampler)


def reread(known: Reading, index: Ids, row: CanvasRow, canvas: Canvas) -> Reading:
    """Return what is known of some places, drawn anew as another state of the row draws.

    Args:
        known: an earlier reading of the row.
        index: [A] which of its places.
        row: the state.
        canvas: the run's.
    """
    reading = _draw(known.logits[torch.from_numpy(index)], known.places[index], row, canvas, known.sampler)
    names = ["probs", "top_two", "entropy"]
    names += ["confidence"] if np.array_equal(reading.tokens, known.tokens[index]) else []
    for name in names:  # what has been computed already
        if name in vars(known):
            vars(reading)[name] = vars(known)[name][index]
    return reading


def _draw(logits: Tensor, places: Ids, row: CanvasRow, canvas: Canvas, sampler: Sampler) -> Reading:
    if not len(places):
        return Reading(places, np.zeros(0, dtype=np.int64), logits, sampler, row.visit)
    where = torch.from_numpy(places).to(logits.device).unsqueeze(0)
    drawn = sampler.pick(sampler.process(logits, None).unsqueeze(0), where, visit=row.visit)
    tokens = drawn[0].cpu().numpy()
    waits = np.isin(tokens, row.ends) & (places > places[0]) if canvas.ends_last else None
    return Reading(places, tokens, logits, sampler, row.visit, waits)


def order_noise(sampler: Sampler, places: Ids, visit: int) -> Floats:
    """Return uniforms in (0, 1), one per place, of the stream that orders are chosen by.

    Args:
        sampler: of one row.
        places: [N].
        visit: tells draws at one place apart.
    """
    key = node_key(sampler.keys, Stream.ORDER, torch.from_numpy(places).unsqueeze(0), visit)
    noise: Floats = uniform(key, torch.zeros(1, dtype=torch.int64))[0, :, 0].numpy()
    return noise


def _host(values: Tensor) -> Floats:
    return values.double().nan_to_num(0.0).cpu().numpy()
