"""Write a text over tokens by chance, read it, write it anew, until it stays as it is.

Paper: Savinov et al. (2022), arXiv 2112.06749 (SUNDAE), section 2.3: argmax in every step, of the least sure tokens.
Guarantee: approximate: the text of several passes, not of one; what a template gives stands in it unchanged.
Cost: at most `passes` passes of the decoder over `lengths` texts; the source is read once.
Differences: the tokens by chance depend on the place alone, and each step takes the likeliest ones (no temperature).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from outpace.methods.whole.refinement import Draft, Refinement, lowest
from outpace.models.nar.cmlm import Cmlm
from outpace.papers import Paper
from outpace.setting import setting

__all__ = ["Sundae"]


@dataclass(frozen=True)
class Sundae(Refinement):
    """Step-unrolled denoising.

    Attributes:
        share: of the places that a step writes anew, those whose tokens are the least likely; the first step writes
            all of them.
    """

    share: float = setting(1.0, above=0.0, most=1.0)

    name: ClassVar[str] = "sundae"
    summary: ClassVar[str] = "Reads a whole text and writes it anew, pass by pass, until it stays as it is."
    paper: ClassVar[Paper] = Paper(
        "Step-unrolled Denoising Autoencoders for Text Generation",
        "Savinov et al.",
        2022,
        "2112.06749",
        120,
        "Sampling at a temperature; texts without a source; its sizes.",
        'outpace generate "A man rides a bike." --model runs/nar-sundae --method sundae',
    )

    def step(self, net: Cmlm, draft: Draft, at: int, blank: Tensor, first: Tensor | None) -> None:
        """Read the texts, and write the share of their places whose tokens are the least likely."""
        del blank
        log_probs = net.read(draft.run, draft.tokens) if first is None else first
        draft.scores = log_probs.gather(2, draft.tokens[:, :, None])[:, :, 0].to(draft.scores.dtype)
        counts = (draft.is_free.sum(1) * (1.0 if at == 0 else self.share)).ceil().long()
        draft.write(lowest(draft.scores, draft.is_free, counts), log_probs, at == 0)
