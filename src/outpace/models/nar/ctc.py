"""CTC: each source token becomes a few places; each says a token or a blank; runs of one symbol collapse, blanks drop.

Papers: Libovický and Helcl (2018), arXiv 1811.04719: state splitting; the loss is Graves et al. (2006), summed by
PyTorch, which is as fast as anything of ours on so few symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.papers import Paper

from .network import UNSAID, NarConfig, NarNet, Pass
from .prefixes import prefix_beam

__all__ = ["PAPERS", "Ctc", "CtcConfig", "best_alignment", "ctc_nll", "repeats_of"]


PAPERS = (
    Paper(
        "End-to-End Non-Autoregressive Neural Machine Translation with Connectionist Temporal Classification",
        "Libovický, Helcl",
        2018,
        "1811.04719",
        37,
        "Its deeper decoder, and its data sets.",
        "outpace train nar-ctc-raw",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CtcConfig(NarConfig):
    """Sizes of a CTC network.

    Attributes:
        factor: places per source token.
    """

    factor: int = 3


class Ctc(NarNet):
    """A network with a blank (symbol V) beside the vocabulary."""

    Config = CtcConfig
    kind: ClassVar[str] = "ctc"
    extra_symbols: ClassVar[int] = 1

    def __init__(self, config: CtcConfig) -> None:
        super().__init__(config)
        self.spread = nn.Linear(config.width, config.factor * config.width)

    def places(self, run: Pass) -> tuple[Tensor, Tensor]:
        """Split each source state into `factor` places."""
        factor = self.config.factor
        own = self.spread(run.states).unflatten(-1, (factor, -1)).flatten(1, 2)
        return own, run.is_real.repeat_interleave(factor, 1)

    def finish(self, run: Pass) -> list[Tensor]:
        """Return the log-probabilities [B, L, V + 1]."""
        return [self.head(self.decode(run))]

    def nll(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Sum over all alignments; a target that needs more places than there are gets 1e30."""
        return ctc_nll(outputs[0], run.is_place.sum(1), run.targets, run.lengths, self.config.vocab_size)

    def aligned(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return the symbols of the likeliest alignment (Viterbi); rows without one are UNSAID throughout."""
        return best_alignment(outputs[0], run.is_place.sum(1), run.targets, run.lengths, self.config.vocab_size)

    def texts(self, outputs: Sequence[Tensor], is_place: Tensor, count: int) -> list[list[list[int]]]:
        """Return the texts of greatest mass that a beam over prefixes finds."""
        sizes = is_place.sum(1).tolist()
        rows = [prefix_beam(row[:size], max(count, 4), 4, 1e-3) for row, size in zip(outputs[0], sizes, strict=True)]
        return [[list(text) for _, text in row[:count]] for row in rows]

    def laws(self, outputs: Sequence[Tensor], is_place: Tensor) -> list[Tensor]:
        """Collapse each row's likeliest symbols; a token's law is that of the first place of its run."""
        (found,) = outputs
        symbols = found.argmax(-1)
        before = F.pad(symbols[:, :-1], (1, 0), value=-1)
        is_said = (symbols != before) & (symbols != self.config.vocab_size) & is_place
        return [row[said, :-1] for row, said in zip(found, is_said, strict=True)]


def ctc_nll(log_probs: Tensor, places: Tensor, targets: Tensor, lengths: Tensor, blank: int) -> Tensor:
    """Return the negative log of the mass of all alignments to the targets, [B]; arguments as of `best_alignment`.

    A target that needs more places than there are gets 1e30, and no gradient. PyTorch's sum sees the symbols of the
    targets alone, a tenth of the vocabulary or less.
    """
    # 1) A token is called by where it stands first in its target, the blank comes last.
    calls = (targets[:, :, None] == targets[:, None, :]).int().argmax(2) if targets.shape[1] else targets
    size = targets.shape[1]
    symbols = F.pad(targets, (0, 1), value=blank)[:, None].expand(-1, log_probs.shape[1], -1)
    said = log_probs.gather(2, symbols)
    # 2) The sum. Without `zero_infinity` the gradient of a target that does not fit is NaN.
    found = F.ctc_loss(said.transpose(0, 1), calls, places, lengths, blank=size, reduction="none", zero_infinity=True)
    # 3) PyTorch's gradient is p - posterior, which is right behind a softmax over all symbols only; p is taken off.
    needed = lengths + repeats_of(targets, lengths)
    is_on = (torch.arange(said.shape[1], device=said.device) < places[:, None]) & (needed <= places)[:, None]
    surplus = (said.exp() * is_on[:, :, None]).sum((1, 2))
    return torch.where(needed > places, torch.full_like(found, 1e30), found + (surplus.detach() - surplus))


def repeats_of(targets: Tensor, lengths: Tensor) -> Tensor:
    """Return how many tokens of each target [B, T] equal the one before them, [B]; a blank must stand between."""
    is_inside = torch.arange(1, targets.shape[1], device=targets.device) < lengths[:, None]
    return ((targets[:, 1:] == targets[:, :-1]) & is_inside).sum(1)


@torch.no_grad()
def best_alignment(log_probs: Tensor, places: Tensor, targets: Tensor, lengths: Tensor, blank: int) -> Tensor:
    """Return the symbol that each place says on the likeliest alignment to its target (Viterbi), [B, L] int64.

    Args:
        log_probs: [B, L, V + 1].
        places: [B] int64, real places of each row.
        targets: [B, T] int64, padded.
        lengths: [B] int64 of the targets.
        blank: its symbol.

    Returns:
        UNSAID on padding, and throughout a row whose places do not suffice.
    """
    rows, size = targets.shape
    # States: blank, y1, blank, y2, ..., blank; 2T + 1 of them.
    symbols = targets.new_full((rows, 2 * size + 1), blank)
    symbols[:, 1::2] = targets
    said = log_probs.gather(2, symbols[:, None].expand(-1, log_probs.shape[1], -1)).float()
    can_skip = torch.zeros_like(symbols, dtype=torch.bool)
    can_skip[:, 3::2] = targets[:, 1:] != targets[:, :-1]
    never = float("-inf")
    best = said.new_full(symbols.shape, never)
    best[:, :2] = said[:, 0, :2]
    moves = []
    for at in range(1, log_probs.shape[1]):
        by_two = F.pad(best, (2, 0), value=never)[:, :-2].masked_fill(~can_skip, never)
        found, move = torch.stack([best, F.pad(best, (1, 0), value=never)[:, :-1], by_two]).max(0)
        is_on = (at < places)[:, None]
        best = torch.where(is_on, found + said[:, at], best)
        moves.append(torch.where(is_on, move, 0))
    last = torch.stack([2 * lengths, (2 * lengths - 1).clamp(min=0)], 1)
    ends, pick = best.gather(1, last).max(1)
    state = last.gather(1, pick[:, None])[:, 0]
    path = [state]
    for move in reversed(moves):
        state = state - move.gather(1, state[:, None])[:, 0]
        path.append(state)
    found = symbols.gather(1, torch.stack(path[::-1], 1))
    is_there = (torch.arange(found.shape[1], device=found.device) < places[:, None]) & (ends > never)[:, None]
    return found.masked_fill(~is_there, UNSAID)
