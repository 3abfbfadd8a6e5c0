"""Copy what followed the most similar place of the text, by the model's own hidden states of two layers.

Paper: none; prompt lookup, with the place chosen by what the model makes of it instead of by how long the match is.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token; two hidden states per token of the text are kept.
Differences: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from outpace.methods.base import Method
from outpace.methods.setting import setting
from outpace.types import Context, Needs, Outcome, Outputs, Proposal, View

__all__ = ["HiddenLookup"]


@dataclass(frozen=True)
class HiddenLookup(Method):
    """Draft what followed the place whose hidden states are most like those here.

    Attributes:
        draft_len: most tokens drafted per step.
        low: the first layer whose input is compared.
        high: the second.

    Raises:
        ConfigError: a setting outside its range.
    """

    draft_len: int = setting(4, least=1)
    low: int = setting(1, least=0)
    high: int = setting(2, least=0)

    name: ClassVar[str] = "hidden-lookup"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "Copies what followed the place whose hidden states are most alike."

    @property
    def needs(self) -> Needs:
        """A causal target that gives its hidden states and can drop staged entries."""
        outputs = Outputs(layers=(self.low, self.high))
        return Needs(has_rollback=True, width=self.draft_len, outputs=outputs)

    def start(self, context: Context) -> list[Tensor | None]:
        """Return what is known of each row: [P, 2 * hidden] of its first P tokens; nothing yet."""
        return [None] * len(context.texts)

    def propose(self, view: View, state: list[Tensor | None]) -> Proposal:
        """Draft behind the likest place; the last token has no hidden state yet, so the one before it is compared."""
        rows = zip(view.texts, view.room, state, strict=True)
        length = [min(self.draft_len, room - 1) if len(text) > 2 else 0 for text, room, _ in rows]
        tokens = torch.zeros(len(length), max(length), dtype=torch.int64, device=view.device)
        for row, (text, known) in enumerate(zip(view.texts, state, strict=True)):
            if known is None or not length[row]:
                continue
            ids = torch.tensor(text, device=view.device)
            likeness = (known[:-1] @ known[-1]).masked_fill(ids[1:-1] != ids[-1], -1)
            at = likeness.argmax() + 2 + torch.arange(length[row], device=view.device)  # never read by the host
            tokens[row, : length[row]] = ids[at.clamp(max=len(text) - 1)]
        return Proposal(tokens, length, origin=self.name)

    def observe(self, outcome: Outcome, view: View, state: list[Tensor | None]) -> list[Tensor | None]:
        """Note the hidden states of what was made final: those of a prefill chunk, or of the root and its path."""
        assert outcome.scores is not None  # they were asked for
        both = torch.cat([outcome.scores.taps[layer] for layer in (self.low, self.high)], -1)
        both = torch.nn.functional.normalize(both, dim=-1)
        news: list[Tensor | None] = []
        for row, known in enumerate(state):
            if outcome.chunk:
                fresh = both[row, : len(outcome.chunk[row])]
            else:
                fresh = both[row, [0, *(node + 1 for node in outcome.path[row][:-1])]]
            news.append(fresh if known is None else torch.cat([known, fresh]))
        return news
