"""SpecTr's k-seq: independent candidates, each tested against the whole law of the target, divided by a common factor.

Source: Sun, Suresh, Ro, Beirami, Jain, Yu (2023), SpecTr, arXiv 2310.15141, algorithms 2 and 3.
Guarantee: distribution. With k candidates from q and the target's law p, let beta(rho) be the sum of min(q, p / rho).
The first x with u < p(x) / (rho q(x)) is kept; all fail with probability (1 - beta)^k, and then the token is drawn from
p - min(q, p / rho) (1 - (1 - beta)^k) / beta. That is a law for every rho with 1 - (1 - beta)^k <= rho beta, and most
is accepted where both sides are equal. At the next position, the drafts that agree with what was kept are candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outpace.accept.descent import Siblings, descend
from outpace.accept.match import sample_and_match
from outpace.accept.nodes import chance_of, left_over
from outpace.errors import ConfigError
from outpace.types import Decision, Proposal, Scores, View

__all__ = ["division_factor", "spectr"]

_HALVINGS = 40


def spectr(proposal: Proposal, scores: Scores, view: View) -> Decision:
    """Accept a beginning of one of several drafts.

    Args:
        proposal: a tree of independently drawn siblings, such as k chains from the root, with their law. Drafts without
            a law are deterministic and get sample and match.
        scores: logits [B, 1 + W, V], root first.
        view: whose sampler draws.

    Raises:
        ConfigError: the drafts were drawn without replacement.
    """
    if proposal.law is None or proposal.tokens.shape[1] == 0:
        return sample_and_match(proposal, scores, view)
    if not proposal.law.has_replacement:
        raise ConfigError("SpecTr's rule takes independent drafts.", "Draw with replacement, or use multi_candidate.")
    return descend(proposal, scores, view, _first_accepted)


def _first_accepted(candidates: Siblings, target: Tensor) -> tuple[Tensor, Tensor]:
    draft, number = candidates.law, candidates.exists.sum(-1, keepdim=True)
    factor = division_factor(target, draft, number)
    choice = torch.full_like(candidates.tokens[:, 0], -1)
    for j in range(candidates.tokens.shape[1]):
        token = candidates.tokens[:, j : j + 1]
        chance = chance_of(target.gather(1, token), factor * draft.gather(1, token))[:, 0]
        is_kept = candidates.accepts(chance, j) & candidates.exists[:, j] & (choice < 0)
        choice = torch.where(is_kept, j, choice)
    share = torch.minimum(draft, target / factor)
    one = share.sum(-1, keepdim=True)
    given = share * chance_of(_any_of(one, number), one)
    return choice, left_over(target, given)[0]


def division_factor(target: Tensor, draft: Tensor, number: Tensor) -> Tensor:
    """Return the root rho in [1, k] of 1 - (1 - beta(rho))^k = rho beta(rho), [B, 1], rounded up.

    Args:
        target: [B, V] law.
        draft: [B, V] law.
        number: [B, 1] int64 candidates k; where there is none, 1 is returned.
    """
    low = torch.ones_like(target[:, :1])
    high = number.clamp(min=1).to(target.dtype)  # (1 - beta)^k >= 1 - k beta, so that this end is always allowed
    if int(number.max()) <= 1:
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        one = torch.minimum(draft, target / middle).sum(-1, keepdim=True)
        is_allowed = _any_of(one, number) <= middle * one
        low, high = torch.where(is_allowed, low, middle), torch.where(is_allowed, middle, high)
    return high


def _any_of(one: Tensor, number: Tensor) -> Tensor:
    """Return the probability that any of k independent tests succeeds."""
    return 1 - (1 - one).clamp_(min=0) ** number
