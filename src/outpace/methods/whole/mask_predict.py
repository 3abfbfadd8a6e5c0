"""Write all places at once, mask those that are least sure, and write these again, in ever smaller numbers.

Paper: Ghazvininejad et al. (2019), arXiv 1904.09324, sections 3.2 and 3.3.
Guarantee: approximate: the text of several passes, not of one; what a template gives stands in it unchanged.
Cost: at most `passes` passes of the decoder over `lengths` texts; the source is read once.
Differences: a text is finished when a pass leaves it as it was, as in fairseq.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from outpace.methods.whole.refinement import Draft, Refinement, lowest
from outpace.models.nar.cmlm import Cmlm
from outpace.papers import Paper

__all__ = ["MaskPredict"]


@dataclass(frozen=True)
class MaskPredict(Refinement):
    """Mask-predict decoding."""

    name: ClassVar[str] = "mask-predict"
    summary: ClassVar[str] = "Writes a text in one pass, then masks and writes anew what is least sure, pass by pass."
    paper: ClassVar[Paper] = Paper(
        "Mask-Predict: Parallel Decoding of Conditional Masked Language Models",
        "Ghazvininejad et al.",
        2019,
        "1904.09324",
        None,
        "Its sizes; re-ranking of lengths by another model.",
        'outpace generate "A man rides a bike." --model runs/nar-cmlm --method mask-predict --option passes=4',
    )

    def step(self, net: Cmlm, draft: Draft, at: int, blank: Tensor, first: Tensor | None) -> None:
        """Mask floor(N (1 - at / passes)) of N free places, those with the lowest scores, and write them."""
        counts = draft.is_free.sum(1) * (self.passes - at) // self.passes
        is_open = lowest(draft.scores, draft.is_free, counts)
        reads = torch.where(is_open, blank, draft.tokens)
        draft.write(is_open, net.read(draft.run, reads) if first is None else first, at == 0)
