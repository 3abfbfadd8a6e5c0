"""What networks that read a text with blanks are trained for: masked places, or unrolled denoising."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor

from outpace.methods.whole.refinement import lowest
from outpace.models.nar.cmlm import Cmlm
from outpace.models.nar.network import Pass
from outpace.models.nar.sga import Sga
from outpace.papers import Paper

from .objectives import Objective

if TYPE_CHECKING:
    from outpace.train.pairs import PairBatch

    from .network import TrainedNar

__all__ = ["Masked", "MaskedTexts", "Unrolled", "smoothed"]

PAPERS = (
    Paper(
        "UT5: Pretraining Non autoregressive T5 with unrolled denoising",
        "Salem et al.",
        2023,
        "2311.08552",
        40,
        "Its sizes, corpora and downstream tasks: captions are denoised, then translated.",
        "outpace train nar-unrolled-captions",
    ),
    Paper(
        "Extrapolating Multilingual Understanding Models as Multilingual Generators",
        "Wu et al.",
        2023,
        "2305.13140",
        74,
        "Its encoder, prompts and other tasks; a small masked encoder of our own is frozen.",
        "outpace train nar-sga",
    ),
)


@dataclass(frozen=True, slots=True)
class Masked(Objective):
    """Some tokens of the target, any number of them, are masked; they are to be said.

    Paper: Ghazvininejad et al. (2019), arXiv 1904.09324, section 2.2.

    Attributes:
        smoothing: share of the label that goes to all tokens evenly.
        length: weight of the length's loss, which is a mean over texts.
    """

    smoothing: float = 0.1
    length: float = 0.1

    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the loss in nats per masked token."""
        net, run = cast("Cmlm", network.net), network.begin(batch)
        targets = _padded(run)
        is_said = torch.arange(targets.shape[1], device=targets.device) < run.lengths[:, None]
        counts = (torch.rand(len(targets), device=targets.device) * run.lengths).long() + 1
        is_masked = lowest(torch.rand(targets.shape, device=targets.device), is_said, counts)
        log_probs = net.read(run, targets.masked_fill(is_masked, net.config.mask_token))
        losses = smoothed(log_probs, targets, self.smoothing)
        told = (losses * is_masked).sum() / is_masked.sum().clamp(min=1)
        return told + self.length * net.lengths.nll(run.extra["length law"], run).mean()


@dataclass(frozen=True, slots=True)
class MaskedTexts(Objective):
    """A share of each source's tokens is to be said by the encoder alone; the targets are not looked at.

    Paper: Devlin et al. (2018), arXiv 1810.04805, section 3.1: of these tokens 80% are masked, 10% are others by
    chance, and 10% stand there, so that the states of tokens that are read tell which ones they are.

    Attributes:
        share: of the tokens.
    """

    share: float = 0.3

    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the loss in nats per token to be said."""
        net, is_real = cast("Sga", network.net), batch.mask.bool()
        is_text = is_real & ~torch.isin(batch.sources, torch.tensor(net.unsaid, device=is_real.device))
        is_asked = is_text & (torch.rand(is_real.shape, device=is_real.device) < self.share)
        drawn = torch.rand(is_real.shape, device=is_real.device)
        reads = batch.sources.masked_fill(is_asked & (drawn < 0.8), net.config.mask_token)
        others = net.noise(None, *is_real.shape).to(is_real.device)
        reads = torch.where(is_asked & (drawn >= 0.9), others, reads)
        losses = smoothed(net.head(net.guessed(reads, is_real)), batch.sources, 0.0)
        return (losses * is_asked).sum() / is_asked.sum().clamp(min=1)


@dataclass(frozen=True, slots=True)
class Unrolled(Objective):
    """The target is to be said from a spoilt copy of it, then from what was said, and so on.

    Paper: Savinov et al. (2022), arXiv 2112.06749, equations 5 and 6.

    Attributes:
        steps: how often the network reads; 1 = plain denoising, the paper's two.
        begin: what it reads first: "noise", where a share of the tokens, uniform in [0, 1], are others by chance; or
            "blank", where there is nothing yet.
        smoothing: share of the label that goes to all tokens evenly.
        length: weight of the length's loss, which is a mean over texts.
    """

    steps: int = 2
    begin: Literal["noise", "blank"] = "noise"
    smoothing: float = 0.0
    length: float = 0.1

    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the mean loss of the steps in nats per target token."""
        net, run = cast("Cmlm", network.net), network.begin(batch)
        targets = _padded(run)
        is_said = torch.arange(targets.shape[1], device=targets.device) < run.lengths[:, None]
        reads = self._first(net, run, targets)
        told = torch.zeros((), device=targets.device)
        for step in range(self.steps):
            log_probs = net.read(run, reads)
            losses = smoothed(log_probs, targets, self.smoothing)
            told = told + (losses * is_said).sum() / is_said.sum().clamp(min=1) / self.steps
            if step + 1 < self.steps:  # what is said next is drawn, and no gradient goes through it
                noise = -torch.log(torch.empty_like(log_probs).exponential_())
                reads = (log_probs.detach() + noise).argmax(-1)
        return told + self.length * net.lengths.nll(run.extra["length law"], run).mean()

    def _first(self, net: Cmlm, run: Pass, targets: Tensor) -> Tensor:
        if self.begin == "blank":
            return net.blanks(run.is_place.sum(1))
        share = torch.rand(len(targets), 1, device=targets.device)
        is_spoilt = torch.rand(targets.shape, device=targets.device) < share
        return torch.where(is_spoilt, net.noise(None, *targets.shape).to(targets.device), targets)


def smoothed(log_probs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Return the cross-entropy [B, L] with labels [B, L], a share of which goes to all tokens that can be said."""
    own = -log_probs.gather(-1, targets[:, :, None])[:, :, 0].clamp(min=-1e4)  # padding may be what cannot be said
    if not smoothing:
        return own
    is_open = ~log_probs.isinf()
    others = -log_probs.masked_fill(~is_open, 0.0).sum(-1) / is_open.sum(-1)
    return (1 - smoothing) * own + smoothing * others


def _padded(run: Pass) -> Tensor:
    """Return the targets [B, L], one for every place."""
    return torch.nn.functional.pad(run.targets, (0, run.is_place.shape[1] - run.targets.shape[1]))
