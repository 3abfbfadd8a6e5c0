"""Going down a tree of sampled drafts, one depth at a time: what the rules from root to leaf have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from outpace.accept.nodes import decide, is_real, parents
from outpace.sampling import Sampler, place_in_step
from outpace.types import Decision, Proposal, Scores, View

__all__ = ["SiblingRule", "Siblings", "descend"]

_STRIDE = 1 << 16  # more candidates than stand at one depth


@dataclass(frozen=True, slots=True)
class Siblings:
    """The children of the node where each row stands.

    Attributes:
        tokens: [B, K] int64.
        exists: [B, K] bool.
        law: [B, V] what they were drawn from, before any removal.
        place: [B] where the noise of their tests begins.
        sampler: whose noise.
    """

    tokens: Tensor
    exists: Tensor
    law: Tensor
    place: Tensor
    sampler: Sampler

    def accepts(self, chance: Tensor, j: int) -> Tensor:
        """Test candidate j with a chance [B] in each row; return [B] bool."""
        return self.sampler.accepts(chance.unsqueeze(1), (self.place + j).unsqueeze(1))[:, 0]


# From the candidates and the target's law [B, V] to the chosen candidate [B], -1 = none, and the law [B, V] that the
# next token is drawn from where none was.
SiblingRule = Callable[[Siblings, Tensor], tuple[Tensor, Tensor]]


def descend(proposal: Proposal, scores: Scores, view: View, rule: SiblingRule) -> Decision:
    """Let a rule choose among the children, go to the chosen one, and so on; each row until nothing is chosen.

    Siblings drawn with replacement may hold the same token. Then all nodes that hold the walk's text are stood on at
    once, and the children of all of them are candidates: they are independent draws from one law.

    Args:
        proposal: a tree or chain with the law of its drafts.
        scores: logits [B, 1 + W, V], root first.
        view: whose sampler draws.
        rule: who chooses.
    """
    assert proposal.law is not None  # the acceptors have checked
    sampler, device = view.sampler, scores.logits.device
    rows, width = proposal.tokens.shape
    every, lengths = torch.arange(rows, device=device), torch.tensor(view.lengths, device=device)
    history = sampler.history(view.texts, view.prompts, scores.logits.shape[-1])
    above, real = parents(proposal) + 1, is_real(proposal)
    is_here = torch.zeros(rows, width + 1, dtype=torch.bool, device=device)  # the root, then the nodes
    is_here[:, 0] = True
    end = torch.full((rows,), -1, device=device)
    alive = torch.ones(rows, dtype=torch.bool, device=device)
    law = torch.zeros(rows, scores.logits.shape[-1], dtype=torch.float64, device=device)
    for depth in range(width + 1):
        # Stage 1: the target's law where each row stands, and the children there; a row without any draws from it.
        target = sampler.law(sampler.process(scores.logits[every, end + 1], history)).probs()
        is_child = is_here.gather(1, above) & real
        most = int(is_child.sum(-1).max())
        if most == 0:
            law = torch.where(alive.unsqueeze(1), target, law)
            break
        # Stage 2: the rule chooses among the children, gathered to the left in their order.
        order = (~is_child).to(torch.int8).sort(dim=-1, stable=True).indices[:, :most]
        place = place_in_step(lengths, torch.tensor(depth * _STRIDE, device=device))
        candidates = Siblings(
            proposal.tokens.gather(1, order),
            is_child.gather(1, order),
            proposal.law.probs[every, order[:, 0]].double(),
            place,
            sampler,
        )
        choice, rest = rule(candidates, target)
        # A row that has ended keeps the law of its end, whatever the others do.
        law = torch.where(alive.unsqueeze(1), rest, law)
        alive = alive & (choice >= 0)
        if not bool(alive.any()):
            break
        # Stage 3: go down, to every node that holds the chosen token: processors see it from now on.
        node = order.gather(1, choice.clamp(min=0).unsqueeze(1))
        token = proposal.tokens.gather(1, node)
        is_here[:, 1:] = is_child & (proposal.tokens == token) & alive.unsqueeze(1)
        is_here[:, 0] = False
        end = torch.where(alive, node[:, 0], end)
        if history is not None:
            history.push(token[:, 0].tolist(), alive.nonzero().flatten().tolist())
    return decide(proposal, scores, view, end, law)
