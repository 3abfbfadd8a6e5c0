"""Draft all open places side by side, keep them by the ratio rule under the one-pass joint density.

Paper: Guo and Ermon (2025), arXiv 2504.20456 (ASSD), with the model itself as the drafter.
Guarantee: distribution: the text has the law of drawing place after place in the row's order.
Cost: two forwards a burst, which writes two places at least; never more forwards than places.
Differences: the order is random instead of ascending; the drafts of the n-gram variant are left out; what stands behind
    an end token is written too, and dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.parallel.ordered import OrderedMethod

__all__ = ["AnySubset"]


@dataclass(frozen=True)
class AnySubset(OrderedMethod):
    """Any-subset speculative decoding."""

    name: ClassVar[str] = "any-subset"
    family: ClassVar[str] = "parallel"
    summary: ClassVar[str] = "Drafts all open places of an any-order model at once; one joint pass keeps their law."
    paper: ClassVar[Paper] = Paper(
        "Reviving Any-Subset Autoregressive Models with Principled Parallel Sampling and Speculative Decoding",
        "Guo, Ermon",
        2025,
        "2504.20456",
        142,
        "The drafts from n-grams, and XLNet as the network.",
        'outpace generate "Once upon a time" --model runs/stories-any-order --method any-subset --json',
    )
