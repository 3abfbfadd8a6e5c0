"""Pre-training of one-pass networks on texts alone: a fragment of a text is written from what stands around it.

Source: Huang et al. (2023), arXiv 2304.11791, double-source text infilling: the encoder reads a text whose fragment is
masked, the decoder is shown some of the fragment's own tokens at their places on the likeliest path, and the rest is
written all at once, so that what is said in one place must fit what is said in the others.
Differences: one fragment per text, and a single mask stands for it, however long it is; texts are sentences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from outpace.models.nar.network import UNSAID, NarNet, Pass
from outpace.papers import Paper
from outpace.train.data import EOS_ID, MASK_ID
from outpace.train.pairs import Ints

from .objectives import Objective, loss_of

if TYPE_CHECKING:
    from outpace.train.pairs import PairBatch

    from .network import TrainedNar

__all__ = ["Infilling", "cut_fragment", "fragments", "show"]

PAPERS = (
    Paper(
        "Directed Acyclic Transformer Pre-training for High-quality Non-autoregressive Text Generation",
        "Huang et al.",
        2023,
        "2304.11791",
        10,
        "Pre-training at its scale, on long documents with several fragments each; its published weights.",
        "outpace train nar-dag-stories",
    ),
)


@dataclass(frozen=True, slots=True)
class Infilling(Objective):
    """The likelihood of a fragment of which a share of the tokens is shown, whatever the network says by itself.

    Attributes:
        shown: that share.
    """

    shown: float = 0.15

    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the loss of the second pass; the first one finds the places of the tokens."""
        net, run = network.net, network.begin(batch)
        with torch.no_grad():
            wanted, _ = net.glance(run)
        show(net, run, wanted, self.shown)
        return loss_of(network, run)


def show(net: NarNet, run: Pass, wanted: Tensor, share: float) -> Tensor:
    """Put a share of the target's tokens, drawn by chance, at their places, in place of what the decoder reads there.

    Args:
        net, run: the network and the pass whose inputs change.
        wanted: [B, L] int64, what each place says (`NarNet.aligned`).
        share: of each row's tokens, rounded to the nearest one.

    Returns:
        Where a token is shown, [B, L] bool.
    """
    is_said = wanted != UNSAID
    draws = torch.rand(wanted.shape, device=wanted.device).masked_fill(~is_said, 2.0)
    is_shown = is_said & (draws.argsort(1).argsort(1) < (is_said.sum(1, keepdim=True) * share).round())
    symbols = net.embed_tokens(wanted.clamp(min=0)).to(run.inputs.dtype)
    run.inputs = torch.where(is_shown[:, :, None], symbols, run.inputs)
    return is_shown


def fragments(least: float, most: float) -> Callable[[Ints, np.random.Generator], tuple[Ints, Ints]]:
    """Return what makes a pair of a text [S], its end included: the text without a fragment, and the fragment.

    Args:
        least, most: share of the text's tokens that the fragment holds, drawn evenly between the two.
    """

    def split(text: Ints, generator: np.random.Generator) -> tuple[Ints, Ints]:
        size = len(text) - 1
        count = min(max(1, round(size * generator.uniform(least, most))), size)
        start = int(generator.integers(0, size - count + 1))
        return cut_fragment(text, start, start + count)

    return split


def cut_fragment(text: Ints, start: int, end: int) -> tuple[Ints, Ints]:
    """Return a text with one mask in place of the tokens from `start` to before `end`, and those tokens with an end."""
    kept = np.concatenate([text[:start], [MASK_ID], text[end:]])
    return kept, np.concatenate([text[start:end], [EOS_ID]])
