"""Rejection: keep a draft x with probability min(1, p(x) / q(x)), else draw from the residual.

Source: Leviathan, Kalman, Matias (2023), arXiv 2211.17192, algorithm 1; Chen et al. (2023), arXiv 2302.01318.
Guarantee: distribution. The proposal must carry the law its drafts were drawn from (`Sampled`); deterministic drafts
count as drawn from a one-hot law. Acceptance reads the `accept` stream and recovered tokens the `target` stream; drafts
must come from `draft`, because a ratio test is only right when its noise is independent of the proposal's.
"""

from __future__ import annotations

import torch

from outpace.accept.nodes import chance_of, decide, is_real, left_over, node_laws
from outpace.errors import ConfigError
from outpace.types import Decision, Proposal, Scores, View

__all__ = ["rejection"]


def rejection(proposal: Proposal, scores: Scores, view: View) -> Decision:
    """Accept a chain of sampled drafts.

    Args:
        proposal: a chain; `law` holds the drafts' laws [B, W, V], None = deterministic.
        scores: logits [B, 1 + W, V].
        view: whose sampler draws.

    Raises:
        ConfigError: the proposal is a tree.
    """
    if proposal.parent is not None:
        raise ConfigError("The rejection rule takes chains, not trees.", "Use accept='match' for trees.")
    target_probs = node_laws(proposal, scores, view)
    tokens, device = proposal.tokens, scores.logits.device
    rows, width = tokens.shape
    one_hot = torch.nn.functional.one_hot(tokens, target_probs.shape[-1]).to(target_probs.dtype)
    draft_probs = one_hot if proposal.law is None else proposal.law.probs.to(target_probs.dtype)

    # Stage 1: how many drafts stay.
    place = torch.tensor(view.lengths, device=device).unsqueeze(1) + torch.arange(width, device=device)
    kept = target_probs[:, :width].gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    drawn_with = draft_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    is_kept = view.sampler.accepts(chance_of(kept, drawn_with), place) & is_real(proposal)
    num = is_kept.cumprod(-1).sum(-1)

    # Stage 2: the token after them, from the residual law, or from the target's own after full acceptance.
    every = torch.arange(rows, device=device)
    is_rejected = num < torch.tensor(proposal.length, device=device)
    draft_law = torch.nn.functional.pad(draft_probs, (0, 0, 0, 1))[every, num]
    law, _ = left_over(target_probs[every, num], draft_law * is_rejected.unsqueeze(-1))
    return decide(proposal, scores, view, num - 1, law)
