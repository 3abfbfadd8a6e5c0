"""Non-monotonic alignments of CTC: the target's words count wherever they stand, or its n-grams do.

Two objectives, to fine-tune a network that CTC has trained. `NonMonotonic` is the F1 of expected n-grams of order 1 or
2; `Bipartite` is the likeliest assignment of the target's tokens to places, blanks elsewhere.

Differences from the authors' code: the expected length counts the first place too, a text may be empty, and each row of
a batch has its own lengths; the assignment is found here, without SciPy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from outpace.errors import CapabilityError, ConfigError
from outpace.models.nar.ctc import Ctc
from outpace.papers import Paper

from .objectives import Objective, mean_of

if TYPE_CHECKING:
    from outpace.models.nar.network import Pass
    from outpace.train.pairs import PairBatch

    from .network import TrainedNar

__all__ = ["PAPERS", "Bipartite", "NonMonotonic", "assign", "expected_grams", "expected_total", "ngram_f1"]

PAPERS = (
    Paper(
        "Non-Monotonic Latent Alignments for CTC-Based Non-Autoregressive Machine Translation",
        "Shao and Feng",
        2022,
        "2210.03953",
        12,
        "N-grams of order 3 and 4, which the paper finds no better, and the CTC without collapsing that they need.",
        "outpace train nar-ctc-nmla",
    ),
)


@dataclass(frozen=True, slots=True)
class NonMonotonic(Objective):
    """1 - F1 of the n-grams that a text of the network's law is expected to share with the target (section 3.3).

    Attributes:
        order: 1 or 2.
        likelihood: weight of the CTC loss beside it.

    Raises:
        ConfigError: another order.
    """

    order: int = 2
    likelihood: float = 0.0

    def __post_init__(self) -> None:
        """Refuse orders whose expected counts are not known."""
        if self.order not in (1, 2):
            raise ConfigError(f"N-grams of order {self.order} are not counted here.", "Give order 1 or 2.")

    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the mean over rows, and the share of the likelihood."""
        run, outputs = _ctc_pass(network, batch)
        f1 = ngram_f1(outputs[0], run.is_place, run.targets, run.lengths, self.order)
        has_grams = run.lengths >= self.order
        found = torch.where(has_grams, 1 - f1, 0.0).sum() / has_grams.sum().clamp(min=1)
        return found + self.likelihood * mean_of(network.net.nll(outputs, run), run) if self.likelihood else found


@dataclass(frozen=True, slots=True)
class Bipartite(Objective):
    """The likeliest assignment of the target's tokens to places, in any order (section 3.2).

    Attributes:
        margin: places less likely than 2 ** -margin are left out, as the authors do: they are too far to be moved.
        likelihood: weight of the CTC loss beside it.
    """

    margin: float = math.log2(10)
    likelihood: float = 0.0

    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the mean per target token."""
        run, outputs = _ctc_pass(network, batch)
        blank = network.net.config.vocab_size
        said = _assigned(outputs[0], run.is_place, run.targets, run.lengths, blank)
        costs = -outputs[0].gather(2, said[:, :, None])[:, :, 0]
        is_near = run.is_place & (costs <= self.margin * math.log(2))
        is_reached = run.lengths <= run.is_place.sum(1)
        rows = torch.where(is_near, costs, 0.0).sum(1)
        found = mean_of(torch.where(is_reached, rows, 1e30), run)
        return found + self.likelihood * mean_of(network.net.nll(outputs, run), run) if self.likelihood else found


def _ctc_pass(network: TrainedNar, batch: PairBatch) -> tuple[Pass, list[Tensor]]:
    if not isinstance(network.net, Ctc):
        kind = type(network.net).__name__
        raise CapabilityError(f"Non-monotonic alignments are those of CTC, not of {kind}.", "Give the recipe a Ctc.")
    run = network.begin(batch)
    return run, network.net.finish(run)


def ngram_f1(log_probs: Tensor, is_place: Tensor, targets: Tensor, lengths: Tensor, order: int) -> Tensor:
    """Return 2 * (expected matches) / (expected n-grams + the target's), [B] (equations 11 to 14).

    An n-gram matches as often as it is expected, at most as often as the target has it.

    Args:
        log_probs: [B, L, V + 1], the blank last.
        is_place: [B, L] bool.
        targets: [B, T] int64, padded.
        lengths: [B] int64.
        order: 1 or 2.
    """
    grams, wanted = target_grams(targets, lengths, order)
    expected = expected_grams(log_probs, is_place, grams)
    matches = torch.minimum(expected, wanted.to(expected.dtype)).sum(1)
    return 2 * matches / (expected_total(log_probs, is_place, order) + wanted.sum(1)).clamp(min=1e-6)


def target_grams(targets: Tensor, lengths: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Return the n-grams of targets, [B, N, order], and how often each occurs, [B, N]: at its first place, else 0."""
    grams = targets.unfold(1, order, 1) if targets.shape[1] >= order else targets.new_zeros(len(targets), 0, order)
    at = torch.arange(grams.shape[1], device=targets.device)
    is_there = at < (lengths - order + 1)[:, None]
    is_same = (grams[:, :, None] == grams[:, None]).all(-1) & is_there[:, None] & is_there[:, :, None]
    is_first = ~(is_same & (at[None, :] < at[:, None])).any(2)
    return grams, is_same.sum(2) * is_first


def expected_grams(log_probs: Tensor, is_place: Tensor, grams: Tensor) -> Tensor:
    """Return how often each n-gram [B, N, 1 or 2] is expected in a text drawn from independent places, [B, N].

    A token of the text is a run of its symbol. One token begins where the place before says something else; a pair is
    a last place of the one, blanks, a first place of the other, which must not follow at once where both are equal.
    """
    said = [_probs(log_probs, is_place, gram) for gram in grams.unbind(-1)]  # each [B, L, N]
    first = said[0]
    if len(said) == 1:
        return (first * (1 - F.pad(first, (0, 0, 1, -1)))).sum(1)
    blank = log_probs[:, :, -1].exp()
    is_equal = grams[:, :, 0] == grams[:, :, 1]
    # `gone`: the mass of a first token that ended before the last place, with nothing but blanks since.
    gone = found = torch.zeros_like(first[:, 0])
    for at in range(1, first.shape[1]):
        ready = torch.where(is_equal, gone, gone + first[:, at - 1])
        found = found + ready * said[1][:, at]
        gone = (gone + first[:, at - 1]) * blank[:, at, None]
    return found


def expected_total(log_probs: Tensor, is_place: Tensor, order: int) -> Tensor:
    """Return how many n-grams are expected in a text, [B]: its tokens, less order - 1 where there are any."""
    every = log_probs[:, :, :-1].exp() * is_place[:, :, None]
    tokens = (every * (1 - F.pad(every, (0, 0, 1, -1)))).sum((1, 2))
    if order == 1:
        return tokens
    empty = (log_probs[:, :, -1] * is_place).sum(1).exp()
    return tokens - 1 + empty


def _probs(log_probs: Tensor, is_place: Tensor, tokens: Tensor) -> Tensor:
    """Return how likely each place says tokens [B, N], [B, L, N]; padding says nothing."""
    index = tokens[:, None].expand(-1, log_probs.shape[1], -1)
    return log_probs.gather(2, index).exp() * is_place[:, :, None]


@torch.no_grad()
def _assigned(log_probs: Tensor, is_place: Tensor, targets: Tensor, lengths: Tensor, blank: int) -> Tensor:
    """Return what each place says under the likeliest assignment, [B, L]: a token of the target or a blank."""
    found = torch.full(is_place.shape, blank, device=targets.device)
    for row, (places, length) in enumerate(zip(is_place.sum(1).tolist(), lengths.tolist(), strict=True)):
        if length > places:
            continue
        own = log_probs[row, :places]
        gains = own[:, targets[row, :length]] - own[:, blank : blank + 1]
        found[row, torch.from_numpy(assign(-gains.T.double().cpu().numpy())).to(found.device)] = targets[row, :length]
    return found


def assign(costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each row of costs [N, M], N <= M, a column of its own, with the least sum.

    The Hungarian method by shortest augmenting paths (Jonker and Volgenant, 1987): rows join one by one; potentials
    keep reduced costs non-negative.
    """
    rows, columns = costs.shape
    of_row, of_column = np.zeros(rows + 1), np.zeros(columns)
    owner = np.full(columns, -1)
    for row in range(rows):
        least, before = np.full(columns, np.inf), np.full(columns, -1)
        is_used = np.zeros(columns, dtype=bool)
        current, last = row, -1
        while True:
            reduced = np.where(is_used, np.inf, costs[current] - of_row[current] - of_column)
            is_less = reduced < least
            least[is_less], before[is_less] = reduced[is_less], last
            best: Any = np.where(is_used, np.inf, least).argmin()
            step = least[best]
            of_row[row] += step
            of_row[owner[is_used]] += step
            of_column[is_used] -= step
            least[~is_used] -= step
            is_used[best], last = True, best
            if owner[best] < 0:
                break
            current = owner[best]
        while last >= 0:
            owner[last] = row if before[last] < 0 else owner[before[last]]
            last = before[last]
    found = np.empty(rows, dtype=np.int64)
    found[owner[owner >= 0]] = np.nonzero(owner >= 0)[0]
    return found
