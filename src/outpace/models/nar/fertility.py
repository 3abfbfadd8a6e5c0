"""Fertility: each source token says how many target tokens it becomes; its state is copied to so many places.

Paper: Gu et al. (2018), arXiv 1711.02281, sections 3 and 4: the fertilities are a latent variable that word alignments
supervise (equation 8), each place says one token, all at once. Other texts than that of the likeliest fertilities are
chosen by the method `noisy-parallel`.
Differences: copied are the encoder's last states, not its inputs; there is no positional attention, and no fine-tuning
by reinforcement (section 4.3). A word aligner of our own (`outpace.train.nar.links`) stands for fast_align.
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

__all__ = ["PAPERS", "Fertility", "FertilityConfig", "copies", "counted", "evenly"]

PAPERS = (
    Paper(
        "Non-Autoregressive Neural Machine Translation",
        "Gu et al.",
        2018,
        "1711.02281",
        43,
        "Positional attention, and fine-tuning by reinforcement.",
        "outpace train nar-fertility && outpace generate TEXT --model runs/nar-fertility --method noisy-parallel"
        " -o teacher=runs/captions-teacher",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FertilityConfig(NarConfig):
    """Sizes of a network with fertilities.

    Attributes:
        most_fertility: most places of a source token.
    """

    most_fertility: int = 7


class Fertility(NarNet):
    """A network whose places are copies of source states."""

    Config = FertilityConfig
    kind: ClassVar[str] = "fertility"
    wants_links: ClassVar[bool] = True

    def __init__(self, config: FertilityConfig) -> None:
        super().__init__(config)
        self.fertility = nn.Linear(config.width, config.most_fertility + 1)

    def places(self, run: Pass) -> tuple[Tensor, Tensor]:
        """Copy each source state as often as the target's links say, or as is likeliest."""
        found, size = self.law(run), run.targets.shape[1]
        fertilities = found.argmax(-1)
        if size:
            links = run.extra["links"] if "links" in run.extra else evenly(run.is_real, run.lengths, size)
            fertilities = counted(links, run.is_real, run.lengths, self.config.most_fertility)
        run.extra |= {"law": found, "fertilities": fertilities}
        return copies(run.states, fertilities, run.is_real, self.config.max_positions)

    def law(self, run: Pass) -> Tensor:
        """Return the log-probabilities of each source token's fertility, [B, S, most + 1]."""
        found: Tensor = self.fertility(run.states)
        return (found if found.dtype == torch.float64 else found.float()).log_softmax(-1)

    def finish(self, run: Pass) -> list[Tensor]:
        """Return the log-probabilities of tokens [B, L, V] and of fertilities [B, S, most + 1]."""
        return [self.head(self.decode(run)), run.extra["law"]]

    def nll(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return that of the fertilities and of the tokens at their places; 1e30 where the places do not suffice."""
        tokens, law = outputs
        size, wanted = tokens.shape[1], run.targets[:, : tokens.shape[1]]
        said = F.pad(tokens[:, : wanted.shape[1]].gather(2, wanted[:, :, None])[:, :, 0], (0, size - wanted.shape[1]))
        told = law.gather(2, run.extra["fertilities"][:, :, None])[:, :, 0]
        found = -(said * run.asked).sum(1) - (told * run.is_real).sum(1)
        return found.masked_fill(run.is_place.sum(1) != run.lengths, 1e30)

    def aligned(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return the target itself, [B, L]; rows whose places do not suffice are UNSAID throughout."""
        size = outputs[0].shape[1]
        wanted = F.pad(run.targets[:, :size], (0, max(0, size - run.targets.shape[1])))
        is_said = run.is_place & (run.is_place.sum(1) == run.lengths)[:, None]
        return wanted.masked_fill(~is_said, UNSAID)

    def laws(self, outputs: Sequence[Tensor], is_place: Tensor) -> list[Tensor]:
        """Return the laws of all places of each row."""
        return [row[held] for row, held in zip(outputs[0], is_place, strict=True)]


def copies(states: Tensor, fertilities: Tensor, is_real: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Copy source states to places, in the order of the source.

    Args:
        states: [B, S, W].
        fertilities: [B, S] int64; those of padding do not count.
        is_real: [B, S] bool.
        most: places of a row at most; what comes later is left out.

    Returns:
        inputs [B, L, W] and is_place [B, L]; a source of no fertility at all gets one place, of its first token.
    """
    held = fertilities.masked_fill(~is_real, 0)
    held = torch.cat([held[:, :1] + (held.sum(1, keepdim=True) == 0), held[:, 1:]], 1)
    ends = held.cumsum(1)
    size = ends[:, -1].clamp(max=most)
    at = torch.arange(int(size.max()), device=states.device).expand(len(states), -1).contiguous()
    # The token of a place is the first one whose copies end behind it.
    index = torch.searchsorted(ends, at, right=True).clamp(max=states.shape[1] - 1)
    return states.gather(1, index[:, :, None].expand(-1, -1, states.shape[-1])), at < size[:, None]


def counted(links: Tensor, is_real: Tensor, lengths: Tensor, most: int) -> Tensor:
    """Return how many target tokens each source token has, [B, S] int64, none more than `most`.

    Args:
        links: [B, T] int64, the source token of each target token.
        is_real: [B, S] bool.
        lengths: [B] int64 of the targets; what stands behind them does not count.
        most: what a token has beyond it goes to the next one that has room, to the right, then to the left.
    """
    is_on = torch.arange(links.shape[1], device=links.device) < lengths[:, None]
    found = torch.zeros_like(is_real, dtype=torch.int64).scatter_add(1, links, is_on.long())
    room, carry = most * is_real.long(), torch.zeros_like(lengths)
    if not bool((found > room).any()):
        return found
    order = list(range(is_real.shape[1]))
    for at in [*order, *reversed(order)]:
        held = found[:, at] + carry
        found[:, at] = held.minimum(room[:, at])
        carry = held - found[:, at]
    return found


def evenly(is_real: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Return links [B, size] that spread targets of the given lengths evenly over their sources."""
    at = torch.arange(size, device=lengths.device)
    return (at * is_real.sum(1)[:, None] // lengths.clamp(min=1)[:, None]).minimum(is_real.sum(1)[:, None] - 1)
