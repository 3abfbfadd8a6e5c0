"""Let a text grow around given tokens in rounds: each slot gets one token at most, all slots at once.

Paper: Zhang et al. (2020), arXiv 2005.00558 (POINTER), section 3.3, and Hsieh, Lee, Lim (2021), arXiv 2103.09548
    (ENCONTER): a round fills slots until all say nothing.
Guarantee: approximate; every given token stands in the text, in order, phrases in one piece, whatever the network says.
Cost: a pass of the decoder a round; a text of N tokens takes about log2(N) rounds where slots are filled evenly.
Differences: a slot stays empty where "nothing" is as likely as `nothing` says, not where it is the likeliest symbol:
    of many words that could come, each may be less likely than nothing although one of them should. Where the text has
    less room than there are slots to fill, the surest are filled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from outpace.methods.whole.sketched import Growing, SketchMethod
from outpace.models.nar.sketched import NEVER
from outpace.papers import Paper
from outpace.setting import setting

__all__ = ["Insertion"]


@dataclass(frozen=True)
class Insertion(SketchMethod):
    """Insertion in parallel rounds.

    Attributes:
        rounds: most rounds.
        nothing: probability of "nothing" from which on a slot stays empty.
        repeats: let a token come beside an equal one.

    Raises:
        ConfigError: no rounds, or a probability outside 0 to 1.
    """

    rounds: int = setting(32, least=1, note="without a round nothing is written")
    nothing: float = setting(0.5, above=0.0, most=1.0)
    repeats: bool = False

    name: ClassVar[str] = "insertion"
    summary: ClassVar[str] = "Completes given words: each slot between them gets a token at once, round by round."
    kinds: ClassVar[tuple[str, ...]] = ("insertion",)
    papers: ClassVar[tuple[Paper, ...]] = (
        Paper(
            "POINTER: Constrained Progressive Text Generation via Insertion-based Generative Pre-training",
            "Zhang et al.",
            2020,
            "2005.00558",
            3,
            "BERT as a start, pre-training on Wikipedia, and beam search within a round.",
            'outpace generate "dog park ball" --model runs/stories-insertion --method insertion --json',
        ),
        Paper(
            "ENCONTER: Entity Constrained Progressive Sequence Generation via Insertion-based Transformer",
            "Hsieh, Lee, Lim",
            2021,
            "2103.09548",
            193,
            "BERT as a start, and its balanced variant.",
            'outpace generate "The Vaults|pub|riverside" --model runs/restaurants-entities --method insertion --json',
        ),
    )

    def complete(self, growing: Growing) -> None:
        """Do rounds until no slot wants a token."""
        rows = list(range(len(growing.sketches)))
        for _ in range(self.rounds):
            rows = [row for row in rows if growing.left(row) > 0]
            if not rows:
                return
            laws = growing.look(rows)[0]
            rows = [row for place, row in enumerate(rows) if self._grow(growing, row, laws[place])]

    def _grow(self, growing: Growing, row: int, laws: Tensor) -> bool:
        """Fill the slots of a row that want a token; return whether one did."""
        tokens, is_open = growing.sketches[row].tokens, growing.sketches[row].is_open
        laws = laws[: len(is_open)].clone()
        if not self.repeats and tokens:
            at, beside = torch.arange(len(tokens)), torch.tensor(tokens, device=laws.device)
            laws[at, beside] = laws[at + 1, beside] = NEVER
        wants = (laws[:, -1] < math.log(self.nothing)).tolist()
        best, found = laws[:, :-1].max(-1)
        slots = [slot for slot in range(len(is_open)) if is_open[slot] and wants[slot] and float(best[slot]) > NEVER]
        surest = sorted(slots, key=lambda slot: -float(best[slot]))[: growing.left(row)]
        for slot in sorted(surest, reverse=True):
            growing.insert(row, slot, [int(found[slot])], [laws[slot, :-1]])
        return bool(surest)
