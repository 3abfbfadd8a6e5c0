"""Write the likeliest texts side by side, and keep the best of those that end.

Paper: none; beam search as transformers' `generate(num_beams=...)` does it, choice for choice and score for score.
Guarantee: exact: with drafts as without, the texts and scores of the search that writes one token per step.
Cost: 1 target forward of all beams per token, fewer where drafts tell what follows; a copy of a row's entries where a
    text goes on in two rows. An encoder runs once for all beams.
Differences: scores are float64, where transformers rounds logits to float32. Where fewer texts than beams are possible,
    fewer are found, where transformers fills up with texts of score -1e9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.search.searched import Searched

__all__ = ["BeamSearch"]


@dataclass(frozen=True)
class BeamSearch(Searched):
    """Beam search."""

    name: ClassVar[str] = "beam-search"
    summary: ClassVar[str] = (
        "The likeliest texts side by side, the best of them returned; drafts for all beams at once."
    )
