"""What one forward says of the undecided places of one row, and which token is drawn at each.

A draw is keyed by place and visit (`outpace.sampling.noise`): a place that is masked again, or looked at once more,
draws anew, and a draft that looks ahead draws what the reference will draw there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from outpace.canvas.row import Bools, Canvas, CanvasRow, Floats, Ids
from outpace.canvas.table import RowTable
from outpace.sampling.measures import Measures, measure
from outpace.sampling.noise import node_key, uniform
from outpace.sampling.sampler import Sampler
from outpace.types import Stream

__all__ = ["PartReading", "Reading", "Readings", "draw", "order_noise", "read", "read_all", "reread"]


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
        measured: [A] figures of the laws, looked at in one call for the whole batch; None = tensors are asked.
    """

    places: Ids
    tokens: Ids
    logits: Tensor
    sampler: Sampler
    visit: int
    waits: Bools | None = None
    measured: Measures | None = None

    @cached_property
    def probs(self) -> Tensor:
        """[A, V] float32 (float64 for float64 logits): the model's own law at temperature 1."""
        # Of the model's own logits, not the sampler's: how sure the model is does not depend on the temperature.
        logits = self.logits
        return (logits if logits.dtype == torch.float64 else logits.float()).softmax(-1)

    @cached_property
    def confidence(self) -> Floats:
        """[A] probability of the drawn token; 0 where the law is none."""
        known = self.measured
        if known is not None and known.tokens is self.tokens:
            found: Floats = np.where(self.tokens < 0, 0.0, 1 / known.mass)
            return found
        # A law that was looked at needs no sum over all tokens any more.
        laws = self.probs if known is None else self.logits
        at = torch.from_numpy(np.maximum(self.tokens, 0)).to(laws.device).unsqueeze(-1)
        said = laws.gather(-1, at).squeeze(-1)
        if known is None:
            return _host(said)
        with np.errstate(invalid="ignore"):
            return np.where(self.tokens < 0, 0.0, np.exp(said.double().cpu().numpy() - known.top) / known.mass)

    @cached_property
    def top_two(self) -> Floats:
        """[A, 2] the two greatest probabilities."""
        return self.measured.top_two if self.measured is not None else _host(self.probs.topk(2, dim=-1).values)

    @cached_property
    def entropy(self) -> Floats:
        """[A] entropy of the law, in nats."""
        if self.measured is not None and not self.is_broken:
            return self.measured.entropy
        probs = self.probs.double()
        return _host(-(probs * probs.clamp(min=1e-300).log()).sum(-1))

    @cached_property
    def gap(self) -> Floats:
        """[A] difference of the two greatest logits."""
        if self.measured is not None:
            with np.errstate(invalid="ignore"):
                return self.measured.top - self.measured.second
        best = self.logits.double().topk(2, dim=-1).values.cpu().numpy()
        found: Floats = best[..., 0] - best[..., 1]
        return found

    @property
    def is_broken(self) -> bool:
        """Whether some place has no law."""
        return bool((self.tokens < 0).any())

    def noise(self, visit: int | None = None) -> Floats:
        """Return [A] uniforms in (0, 1) for choosing an order; independent of the tokens' draws."""
        return order_noise(self.sampler, self.places, self.visit if visit is None else visit)

    def within(self, end: int | Ids) -> Bools:
        """Return [A] whether each place lies before `end`."""
        return self.places < end


@dataclass
class Readings(Reading):
    """What is said of B rows: as a `Reading`, with an axis of rows before the others.

    Attributes:
        visits: in place of `visit`, of each row.
    """

    visits: Sequence[int] = ()

    def noise(self, visit: int | None = None) -> Floats:
        """Return [B, A] uniforms in (0, 1) for choosing an order."""
        return order_noise(self.sampler, self.places, self.visits if visit is None else visit)


class PartReading(Reading):
    """Some places of an earlier reading; what has been computed of that one is taken over, when it is wanted.

    Args:
        whole: the earlier reading.
        index: [A] which of its places.
    """

    def __init__(self, whole: Reading, index: Ids) -> None:
        self.whole, self.index = whole, index
        self.places, self.tokens = whole.places[index], whole.tokens[index]
        self.sampler, self.visit, self.measured = whole.sampler, whole.visit, None
        self.waits = None if whole.waits is None else whole.waits[index]

    @cached_property
    def logits(self) -> Tensor:  # type: ignore[override]
        """[A, V], as in `Reading`."""
        return self.whole.logits[torch.from_numpy(self.index)]

    @cached_property
    def probs(self) -> Tensor:
        """[A, V], as in `Reading`."""
        return self.whole.probs[torch.from_numpy(self.index)]

    @cached_property
    def confidence(self) -> Floats:
        """[A], as in `Reading`."""
        if np.array_equal(self.tokens, self.whole.tokens[self.index]):
            return self.whole.confidence[self.index]
        return _chances(self.whole.probs, self.index, self.tokens)

    @cached_property
    def top_two(self) -> Floats:
        """[A, 2], as in `Reading`."""
        return self.whole.top_two[self.index]

    @cached_property
    def entropy(self) -> Floats:
        """[A], as in `Reading`."""
        return self.whole.entropy[self.index]

    @cached_property
    def gap(self) -> Floats:
        """[A], as in `Reading`."""
        return self.whole.gap[self.index]


def read(
    logits: Tensor,
    places: Ids,
    row: CanvasRow,
    canvas: Canvas,
    sampler: Sampler,
    banned: Tensor | None,
    measured: Measures | None = None,
) -> Reading:
    """Draw a token at every asked place.

    Args:
        logits: [A, V] of this row's asked places; changed in place.
        places: [A].
        row: as it was forwarded.
        canvas: the run's.
        sampler: of this row alone.
        banned: [K] int64 tokens that may not be written at all: the mask, and end tokens between given pieces; None =
            their logits are -inf already.
        measured: figures of these laws, the banned tokens ruled out; None = none are known.
    """
    # In place: the forward's logits belong to this step, and a copy of them would cost as much as the draw.
    if banned is not None:
        logits.index_fill_(-1, banned, float("-inf"))
    # Where nothing is drawn by chance and nothing is processed, the likeliest token is known already.
    is_known = measured is not None and sampler.settings.is_plain
    tokens = measured.tokens if measured is not None and is_known else draw(logits, places, row.visit, sampler)
    return Reading(places, tokens, logits, sampler, row.visit, _waits(places, tokens, row, canvas), measured)


def reread(known: Reading, index: Ids, row: CanvasRow, canvas: Canvas) -> Reading:
    """Return what is known of some places, drawn anew as another state of the row draws.

    Args:
        known: an earlier reading of the row.
        index: [A] which of its places.
        row: the state.
        canvas: the run's.
    """
    part = PartReading(known, index)
    # Without noise the same law gives the same token, whatever the visit: nothing is drawn, and no logits are moved.
    if not known.sampler.settings.is_greedy:
        part.tokens = draw(part.logits, part.places, row.visit, known.sampler)
    part.visit, part.waits = row.visit, _waits(part.places, part.tokens, row, canvas)
    return part


def read_all(logits: Tensor, places: Ids, rows: RowTable, canvas: Canvas, sampler: Sampler) -> Readings:
    """Draw a token at every asked place of all rows, as `read` does for one.

    Args:
        logits: [B, A, V]; the mask token is ruled out here, in place, and what else may not be written is already.
        places: [B, A]; a huge number where a row asks for fewer.
        rows: as they were forwarded.
        canvas: the run's.
        sampler: of all rows.
    """
    known, visit = measure(logits, canvas.mask_id), rows.visit[:, 0].tolist()
    if known is not None and sampler.settings.is_plain:
        tokens = known.tokens
    else:
        where = torch.from_numpy(places).to(logits.device)
        tokens = sampler.pick(sampler.process(logits, None), where, visit=visit).cpu().numpy()
    waits = None
    if canvas.ends_last:
        is_end = (tokens[..., np.newaxis] == rows.ends[:, np.newaxis]).any(-1)
        waits = is_end & (places > places[:, :1])
    return Readings(places, tokens, logits, sampler, 0, waits, known, visit)


def draw(logits: Tensor, places: Ids, visit: int, sampler: Sampler) -> Ids:
    """Return the token drawn at each place."""
    if not len(places):
        return np.zeros(0, dtype=np.int64)
    # The key is the place and the visit, never the rank among the masks: a guess asks for other places than the
    # reference does, and has to draw the same tokens.
    where = torch.from_numpy(places).to(logits.device).unsqueeze(0)
    tokens: Ids = sampler.pick(sampler.process(logits, None).unsqueeze(0), where, visit=visit)[0].cpu().numpy()
    return tokens


def _waits(places: Ids, tokens: Ids, row: CanvasRow, canvas: Canvas) -> Bools | None:
    """Return [A] the end tokens that have something undecided before them, if that is forbidden."""
    return np.isin(tokens, row.ends) & (places > places[:1]) if canvas.ends_last else None


def order_noise(sampler: Sampler, places: Ids, visit: int | Sequence[int]) -> Floats:
    """Return uniforms in (0, 1), one per place, of the stream that orders are chosen by.

    Args:
        sampler: of one row, or of B.
        places: [N], or [B, N].
        visit: tells draws at one place apart; of each row, where there are several.
    """
    # A stream of its own: which place comes next must not depend on which token was drawn there.
    key = node_key(sampler.keys, Stream.ORDER, torch.from_numpy(np.atleast_2d(places)), visit)
    noise: Floats = uniform(key, torch.zeros(1, dtype=torch.int64)).numpy().reshape(places.shape)
    return noise


def _chances(probs: Tensor, index: Ids, tokens: Ids) -> Floats:
    """Return the probability of one token per law, [A]; a token of -1 counts as 0."""
    at = torch.from_numpy(np.stack([index, np.maximum(tokens, 0)])).to(probs.device)
    return _host(probs[at[0], at[1]])


def _host(values: Tensor) -> Floats:
    # float64 on the host, so that a rule decides alike in every dtype; a law that is none counts as nothing.
    return values.double().nan_to_num(0.0).cpu().numpy()
