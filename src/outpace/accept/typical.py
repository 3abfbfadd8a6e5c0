"""Typical acceptance: keep drafts that the target finds likely enough, whatever it would have drawn.

Source: Cai et al. (2024), Medusa, arXiv 2401.10774, section 2.3.1.
Guarantee: approximate at temperatures above 0. A draft x is kept if p(x) > min(epsilon, delta exp(-H(p))) with H the
entropy of the target's law p, and so are all drafts before it; the longest such path wins, of equally long ones the
likeliest. Nothing corrects for what was drafted, so texts lean towards the drafter and towards likely tokens. At
temperature 0 the law has one token, and only that token passes: plain decoding's text, token for token.
"""

from __future__ import annotations

import torch

from outpace.accept.nodes import decide, is_real, node_laws, parents
from outpace.run.tree import ancestors
from outpace.types import Decision, Proposal, Scores, View

__all__ = ["typical_acceptance"]


def typical_acceptance(
    proposal: Proposal, scores: Scores, view: View, epsilon: float = 0.09, delta: float = 0.3
) -> Decision:
    """Accept the longest path of likely drafts, and draw one token more from the target's law.

    Args:
        proposal: a chain or a tree; its law does not matter.
        scores: logits [B, 1 + W, V], root first.
        view: whose sampler draws.
        epsilon: a token this likely always passes.
        delta: share of exp(-entropy) that passes where the target is unsure.
    """
    target, parent, real = node_laws(proposal, scores, view), parents(proposal), is_real(proposal)
    every = torch.arange(len(target), device=target.device)
    entropy = -torch.xlogy(target, target).sum(-1)
    floor = (delta * (-entropy).exp()).clamp(max=epsilon).gather(1, parent + 1)
    chance = target[every.unsqueeze(1), parent + 1, proposal.tokens].nan_to_num(0)
    sees = ancestors(parent)
    # A path is as good as it is long; likelihood, squeezed below 1, decides between equals.
    is_kept = (chance > floor) & real
    is_path = ~(sees & ~is_kept.unsqueeze(1)).any(-1)
    likelihood = (sees * chance.clamp(min=1e-30).log().unsqueeze(1)).sum(-1)
    merit = (sees.sum(-1) + 1 / (2 - likelihood)).masked_fill(~is_path, 0)
    best = torch.nn.functional.pad(merit, (1, 0)).argmax(-1) - 1
    return decide(proposal, scores, view, best, target[every, best + 1])
