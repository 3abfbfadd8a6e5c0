"""Several candidates in turn: each gets the ratio test against what the rejected ones before it have left.

Source: Yang, Huang, Dai, Chen (2024), Multi-Candidate Speculative Decoding, arXiv 2401.06706, for candidates drawn with
and without replacement; Jeon et al. (2024), Recursive Speculative Decoding, arXiv 2402.14160, whose recursive rejection
sampling is the same rule without replacement, applied at each node of a tree; Miao et al. (2023), SpecInfer, arXiv
2305.09781, with replacement.
Guarantee: distribution. With p the target's law and q the drafts': x is kept with probability min(1, p(x) / q(x)); if
it is not, p becomes norm((p - q)+), and without replacement q becomes norm(q without x), for the next candidate.

Whether a candidate exists may depend on the noise of the tokens before it, never on its own token. Fixed shapes and
stochastic beams fulfil that: a beam is cut by values that are independent of the token, given the earlier siblings.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from outpace.accept.descent import Siblings, descend
from outpace.accept.match import sample_and_match
from outpace.accept.nodes import chance_of, left_over
from outpace.types import Decision, Proposal, Scores, View

__all__ = ["multi_candidate"]


def multi_candidate(proposal: Proposal, scores: Scores, view: View) -> Decision:
    """Accept a path of a tree, or of a chain, of sampled drafts.

    Args:
        proposal: siblings stand in the order in which they were drawn; `law` says whether with replacement. Drafts
            without a law are deterministic, for which sample and match is this rule.
        scores: logits [B, 1 + W, V], root first.
        view: whose sampler draws.
    """
    if proposal.law is None or proposal.tokens.shape[1] == 0:
        return sample_and_match(proposal, scores, view)
    return descend(proposal, scores, view, partial(_in_turn, has_replacement=proposal.law.has_replacement))


def _in_turn(candidates: Siblings, target: Tensor, has_replacement: bool) -> tuple[Tensor, Tensor]:
    draft = candidates.law
    choice = torch.full_like(candidates.tokens[:, 0], -1)
    for j in range(candidates.tokens.shape[1]):
        token = candidates.tokens[:, j : j + 1]
        is_tested = candidates.exists[:, j] & (choice < 0)
        chance = chance_of(target.gather(1, token), draft.gather(1, token))[:, 0]
        is_kept = candidates.accepts(chance, j) & is_tested
        choice = torch.where(is_kept, j, choice)
        is_rejected = (is_tested & ~is_kept).unsqueeze(1)
        target = torch.where(is_rejected, left_over(target, draft)[0], target)
        if not has_replacement:
            rest = draft.scatter(1, token, 0.0)
            draft = torch.where(is_rejected, rest / rest.sum(-1, keepdim=True).clamp_(min=1e-300), draft)
    return choice, target
