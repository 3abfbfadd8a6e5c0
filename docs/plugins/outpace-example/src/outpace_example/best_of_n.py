"""Write several texts of one prompt side by side; every few tokens, all of them go on from the likeliest.

Paper: none; best-of-n in its smallest form, to show how rows fork.
Guarantee: approximate (what is written is no longer drawn from the model's law alone).
Cost: 1 target forward per token of all rows; a copy of the cache at each fork.
Differences: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from outpace.accept import sample_and_match
from outpace.methods.base import Method
from outpace.methods.setting import setting
from outpace.types import Context, Decision, Guarantee, Needs, Outcome, Proposal, Scores, View

__all__ = ["BestOfN"]


@dataclass(frozen=True)
class BestOfN(Method):
    """Keep the best of the rows of each group; `Row.score` tells which is best in the end.

    Attributes:
        every: tokens between two choices.

    Raises:
        ConfigError: a setting outside its range.
    """

    every: int = setting(8, least=1)

    name: ClassVar[str] = "best-of-n"
    family: ClassVar[str] = "search"
    summary: ClassVar[str] = "Samples side by side; every few tokens, all go on from the likeliest."

    @property
    def needs(self) -> Needs:
        """Rows may continue others."""
        return Needs(has_forks=True)

    @property
    def guarantee(self) -> Guarantee:
        """Likely texts are preferred."""
        return Guarantee.APPROXIMATE

    def start(self, context: Context) -> Tensor:
        """Return the log-probability of what each row has written, [B] float64."""
        return torch.zeros(len(context.texts), dtype=torch.float64, device=context.target.device)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Tensor) -> Decision:
        """Draw a token for each row; where a choice is due, every row of a group takes the best one's text."""
        decision = sample_and_match(proposal, scores, view)
        law = scores.logits[:, 0].double().log_softmax(-1)
        total = state + law.gather(1, decision.tokens[:, :1].clamp(min=0)).squeeze(1).nan_to_num(nan=float("-inf"))
        source = torch.arange(len(total), device=total.device)
        for rows in view.groups:
            if (view.lengths[rows[0]] - view.prompts[rows[0]] + 1) % self.every == 0:
                members = torch.tensor(rows, device=total.device)
                source[members] = members[total[members].argmax()]
        decision.source, decision.score, decision.tokens = source, total[source], decision.tokens[source]
        return decision

    def observe(self, outcome: Outcome, view: View, state: Tensor) -> Tensor:
        """Keep the scores; the loop has let them follow the rows already."""
        del view
        score = None if outcome.decision is None else outcome.decision.score
        return state if score is None else score
