"""Draw the open places several times, and write from the draw that a causal model finds likeliest for its price.

Paper: Xu et al. (2024), arXiv 2410.21357 (EDLM), the energy that an autoregressive model gives, and parallel
    importance sampling. Each of k candidates is drawn from the diffusion model's laws; one is
    taken with probability in proportion to p_guide / p_diffusion, and the rule writes its tokens.
Guarantee: approximate. candidates=1 is masked-diffusion, token for token, at every setting.
Cost: one forward of the model per step, and `candidates` forwards of the guide over the block; the guide's cache.
Differences: places are written by rank, not by chance, so that steps compare with the other samplers'; candidates end
    with the block; both laws go through the sampler (temperature, top-k), so that the weights are those of the draws;
    the energy that is trained by contrast was not built. At temperature 0 all candidates are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.canvas import Advance, Copy, Reading, advance
from outpace.canvas.guide import Guide
from outpace.canvas.importance import another, log_weight, taken, whole
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import CanvasBatch
from outpace.methods.diffusion.ranked import RankedCanvas
from outpace.setting import setting
from outpace.types import Context, Decision, Needs, Proposal, Scores, View

__all__ = ["Edlm"]


@dataclass(frozen=True)
class Edlm(RankedCanvas):
    """Energy-corrected masked diffusion.

    Attributes:
        candidates: texts drawn per step (the paper's k); 1 = plain decoding.
        guide: the causal model that tells the energy: a name, directory or hub id, of the same vocabulary.

    Raises:
        ConfigError: a setting outside its range.
    """

    candidates: int = setting(4, least=1, note="1 = plain decoding")
    guide: str = "stories"

    name: ClassVar[str] = "edlm"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Draws several candidates per step and takes one by the energy of a small causal model."
    paper: ClassVar[Paper] = Paper(
        "Energy-Based Diffusion Language Models for Text Generation",
        "Xu et al.",
        2024,
        "2410.21357",
        330,
        "The energy trained by noise contrast.",
    )

    @property
    def needs(self) -> Needs:
        """A masked model, and a causal one of its vocabulary."""
        return replace(super().needs, models=("guide",), model_attention={"guide": "causal"})

    def start(self, context: Context) -> CanvasBatch:
        """Return the rows' canvases, and an empty cache of the guide."""
        return replace(super().start(context), extra=Guide(context.models["guide"], context.cache_for("guide")))

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: CanvasBatch) -> Decision:
        """Draw candidates, weigh them, and advance every row by the one that is taken."""
        rows = [copies[0] for copies in proposal.carry]
        first = [read(row) for row, read in zip(rows, self.readers(scores, view, state), strict=True)]
        if self.candidates == 1 or view.sampler.settings.is_greedy:
            chosen = first
        else:
            chosen = self._chosen(rows, first, state)
        steps: list[Advance | None] = [
            None if reading.is_broken else advance(row.row, reading, row.window, state.parts)
            for row, reading in zip(rows, chosen, strict=True)
        ]
        return self.decide(steps, state)

    def _chosen(self, rows: Sequence[Copy], first: Sequence[Reading], state: CanvasBatch) -> list[Reading]:
        """Return, per row, the reading whose tokens are the candidate that is taken."""
        drawn, weights = [list(first)], list[list[float]]()
        for number in range(1, self.candidates):
            drawn.append([another(*pair, number, state.parts.canvas) for pair in zip(first, rows, strict=True)])
        for readings in drawn:
            wholes = [whole(reading, row) for reading, row in zip(readings, rows, strict=True)]
            said = state.extra.read(state.canvases, wholes)
            weights.append(
                [
                    log_weight(
                        reading.sampler.process(reading.logits, None),
                        reading.sampler.process(law, None),
                        filled.tokens,
                        reading.places - row.row.base,
                        row.row.ends,
                    )
                    for reading, filled, law, row in zip(readings, wholes, said, rows, strict=True)
                ]
            )
        return [
            drawn[taken(list(own), reading)][index]
            for index, (own, reading) in enumerate(zip(zip(*weights, strict=True), first, strict=True))
        ]
