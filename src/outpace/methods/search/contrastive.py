"""Of the likeliest tokens, the one that is likely and whose hidden state is unlike all states of the text before it.

Paper: Su, Lan, Wang, Yogatama, Kong, Collier (2022), arXiv 2202.06417; Su, Collier (2022), arXiv 2210.14140.
Guarantee: approximate: another text than greedy decoding's, on purpose; greedy decoding's own with alpha 0.
Cost: 1 target forward per emitted token and one more per text, over top_k + 1 positions; the last hidden state of every
    token of the text is kept.
Differences: the candidates are a tree of one level, so that the text is cached once and not once per candidate; the
    token that was chosen is forwarded again with the next candidates. Where less than top_k entries are left of the
    context, or of a server's pages, only as many candidates are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from outpace.draft.features import Features
from outpace.methods.base import Method, Paper, trees
from outpace.methods.search.steered import likely, written
from outpace.setting import setting
from outpace.types import Context, Decision, Guarantee, Needs, Outcome, Outputs, Proposal, Scores, View

__all__ = ["ContrastiveSearch"]

_LAST = Outputs(has_last=True)


@dataclass
class Compared:
    """What is known of each row: its states, and its candidates with their probabilities; None = not yet."""

    features: Features
    ids: list[list[int] | None]
    probs: list[list[float]]


@dataclass(frozen=True)
class ContrastiveSearch(Method):
    """Contrastive search.

    Attributes:
        alpha: weight of the penalty, the largest cosine with a state of the text; 0 = greedy decoding.
        top_k: candidates, the likeliest tokens.

    Raises:
        ConfigError: a number out of range.
    """

    alpha: float = setting(0.6, least=0, most=1)
    top_k: int = setting(4, least=1, most=256)

    name: ClassVar[str] = "contrastive-search"
    family: ClassVar[str] = "search"
    summary: ClassVar[str] = "Takes the likely token whose hidden state is least like those before it."
    draws: ClassVar[bool] = False
    paper: ClassVar[Paper] = Paper(
        "Contrastive Search Is What You Need For Neural Text Generation",
        "Su, Collier",
        2022,
        "2210.14140",
        220,
        "The contrastive training that makes states isotropic, and the sixteen languages.",
    )

    @property
    def guarantee(self) -> Guarantee:
        """Another text than greedy decoding's."""
        return Guarantee.APPROXIMATE

    @property
    def needs(self) -> Needs:
        """A model that scores trees and gives its last hidden states."""
        return Needs(has_tree=True, has_rollback=True, width=self.top_k, outputs=_LAST)

    def start(self, context: Context) -> Compared:
        """Return rows of which nothing is known."""
        rows, target = len(context.texts), context.target
        none: list[list[int] | None] = [None] * rows
        return Compared(Features.begin(_LAST, rows, 0, target.dtype, target.device), none, [[] for _ in none])

    def propose(self, view: View, state: Compared) -> Proposal:
        """Return the candidates side by side; nothing in a row's first step, which tells what they are."""
        own = [ids or [] for ids in state.ids]
        proposal = trees(view, [(ids, [-1] * len(ids)) for ids in own], self.name)
        proposal.drafts = [0] * len(own)  # they are compared, and one of them is written, whatever the target would
        return proposal

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Compared) -> Decision:
        """Take the candidate of most probability less likeness, of equals the likelier one."""
        assert scores.last is not None  # it was asked for
        tokens = []
        for row, (ids, probs) in enumerate(zip(state.ids, state.probs, strict=True)):
            count = min(proposal.length[row], len(ids or []))
            best = 0
            if count > 1:
                text = torch.cat([one for one in (state.features.held[row], scores.last[row, :1]) if len(one)])
                likeness = _largest_cosine(scores.last[row, 1 : 1 + count], text).tolist()
                merits = [(1 - self.alpha) * p - self.alpha * c for p, c in zip(probs[:count], likeness, strict=True)]
                best = merits.index(max(merits))
            tokens.append(ids[best] if ids else -1)
        num = [0 if ids is None else 1 for ids in state.ids]
        decision = written(tokens, view)
        decision.num = torch.tensor(num, dtype=torch.int64, device=view.device)
        return decision

    def observe(self, outcome: Outcome, view: View, state: Compared) -> Compared:
        """Keep the states of the text, and the candidates that follow what was written."""
        state.features.observe(outcome, view)
        if outcome.proposal is None or outcome.scores is None:
            return state
        node = [
            (ids.index(tokens[0]) + 1) if ids and tokens else 0
            for ids, tokens in zip(state.ids, outcome.emitted, strict=True)
        ]
        every = torch.arange(len(node), device=outcome.scores.logits.device)
        behind = outcome.scores.logits[every, torch.tensor(node, device=every.device)]
        found, chances = likely(behind, view, self.top_k)
        pairs = [
            [(token, chance) for token, chance in zip(ids, probs, strict=True) if chance]
            for ids, probs in zip(found.tolist(), chances.tolist(), strict=True)
        ]
        ids: list[list[int] | None] = [[token for token, _ in row] for row in pairs]
        return Compared(state.features, ids, [[chance for _, chance in row] for row in pairs])


def _largest_cosine(states: Tensor, text: Tensor) -> Tensor:
    """Return the largest cosine of each state [K, F] with those of the text [N, F], [K] float64."""
    unit = [torch.nn.functional.normalize(one.double(), dim=-1) for one in (states, text)]
    return (unit[0] @ unit[1].T).amax(-1)
