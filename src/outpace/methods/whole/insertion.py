"""Let a text grow around given tokens in rounds: each slot gets one token at most, all slots at once.

Paper: Zhang et al. (2020), arXiv 2005.00558 (POINTER), section 3.3, and Hsieh, Lee, Lim (2021), arXiv 2103.09548
    (ENCONTER): a round fills slots until all say nothing.
Guarantee: approximate; every given token stands in the text, in order, phrases in one piece, whatever the network says.
Cost: a pass of the decoder a round; a text of N tokens takes about log2(N) rounds where slots are filled evenly.
Differences: where the text has less room than there are slots to fill, the surest are filled. `reluctance` is taken
    from "nothing" in the first round and less each further one, POINTER's `noi_decay` in nats.
"""

from __future__ import annotations

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
        reluctance: nats taken from "nothing" in the first round; in round r the r-th part.
        repeats: let a token come beside an equal one.

    Raises:
        ConfigError: no rounds, or a negative reluctance.
    """

    rounds: int = setting(32, least=1, note="without a round nothing is written")
    reluctance: float = setting(0.0, least=0.0, is_finite=True)
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
            "BERT as a start, and the bottom-up training variant.",
            'outpace generate "The Vaults|pub|riverside" --model runs/restaurants-entities --method insertion --json',
        ),
    )

    def complete(self, growing: Growing) -> None:
        """Do rounds until no slot wants a token."""
        rows = list(range(len(growing.sketches)))
        for turn in range(1, self.rounds + 1):
            rows = [row for row in rows if growing.left(row) > 0]
            if not rows:
                return
            laws = growing.look(rows)[0]
            rows = [row for place, row in enumerate(rows) if self._grow(growing, row, laws[place], turn)]

    def _grow(self, growing: Growing, row: int, laws: Tensor, turn: int) -> bool:
        """Fill the slots of a row that want a token; return whether one did."""
        tokens = growing.sketches[row].tokens
        laws = laws[: len(tokens) + 1].clone()
        laws[:, -1] -= self.reluctance / turn
        if not self.repeats and tokens:
            at, beside = torch.arange(len(tokens)), torch.tensor(tokens, device=laws.device)
            laws[at, beside] = laws[at + 1, beside] = NEVER
        best, symbols = laws.max(-1)
        is_open = growing.sketches[row].is_open
        wants = [slot for slot, symbol in enumerate(symbols.tolist()) if is_open[slot] and symbol < laws.shape[1] - 1]
        surest = sorted(wants, key=lambda slot: -float(best[slot]))[: growing.left(row)]
        for slot in sorted(surest, reverse=True):
            growing.insert(row, slot, [int(symbols[slot])], [laws[slot, :-1]])
        return bool(wants)
