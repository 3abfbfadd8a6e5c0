"""Conditional verification: a draft stays if the target gives it enough probability, the less the less sure it is.

Source: Wang et al. (2025), Alignment-Augmented Speculative Decoding, arXiv 2505.13204, flexible verification.
Guarantee: approximate. With p the target's law and H its entropy in nats, a draft x is kept if
p(x) >= min(threshold - slack * H, max p), and so are all drafts before it; the longest such path wins, of equally long
ones the likeliest. Nothing corrects for what was drafted, so texts lean towards the drafter. At temperature 0 the law
is the softmax.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from outpace.accept.nodes import decide, is_real, node_laws, parents
from outpace.run.tree import ancestors
from outpace.types import Decision, Proposal, Scores, View

__all__ = ["conditional_verification"]


def conditional_verification(
    proposal: Proposal, scores: Scores, view: View, threshold: float, slack: float
) -> Decision:
    """Accept the longest path of drafts that are likely enough, and draw one token more from the target's law.

    Args:
        proposal: a chain or a tree; its law does not matter.
        scores: logits [B, 1 + W, V], root first.
        view: whose sampler draws.
        threshold: probability that suffices where the target is sure.
        slack: how much less suffices per nat of entropy; a token that cannot be drawn never passes.
    """
    drawn_from = node_laws(proposal, scores, view)
    law, parent = node_laws(proposal, scores, replace(view, sampler=view.sampler.softened())), parents(proposal)
    every = torch.arange(len(view.texts), device=law.device)
    entropy = -torch.xlogy(law, law).sum(-1)
    floor = torch.minimum(threshold - slack * entropy, law.amax(-1)).gather(1, parent + 1)
    chance = law[every.unsqueeze(1), parent + 1, proposal.tokens].nan_to_num(0)
    is_kept = (chance >= floor) & (chance > 0) & is_real(proposal)
    sees = ancestors(parent)
    is_path = ~(sees & ~is_kept.unsqueeze(1)).any(-1)
    likelihood = (sees * chance.clamp(min=1e-30).log().unsqueeze(1)).sum(-1)
    # A path is as good as it is long; likelihood, squeezed below 1, decides between equals.
    merit = (sees.sum(-1) + 1 / (2 - likelihood)).masked_fill(~is_path, 0)
    best = torch.nn.functional.pad(merit, (1, 0)).argmax(-1) - 1
    return decide(proposal, scores, view, best, drawn_from[every, best + 1])
