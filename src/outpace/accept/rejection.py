"""Rejection: keep a draft x with probability min(1, p(x) / q(x)), else draw from the residual.

Source: Leviathan, Kalman, Matias (2023), arXiv 2211.17192, algorithm 1; Chen et al. (2023), arXiv 2302.01318.
Guarantee: distribution. The proposal must carry the law its drafts were drawn from (`Sampled`); deterministic drafts
count as drawn from a one-hot law. Acceptance reads the `accept` stream and recovered tokens the `target` stream; drafts
must come from `draft`, because a ratio test is only right when its noise is independent of the proposal's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.sampling import Law, uniform
from outpace.types import Decision, Proposal, Scores, Stream, View

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
    target_probs = _target_probs(proposal, scores, view)
    tokens, device = proposal.tokens, scores.logits.device
    rows, width = tokens.shape
    vocab = target_probs.shape[-1]
    one_hot = torch.nn.functional.one_hot(tokens, vocab).to(target_probs.dtype)
    draft_probs = one_hot if proposal.law is None else proposal.law.probs.to(target_probs.dtype)
    lengths = torch.tensor(proposal.length, device=device)
    is_real = torch.arange(width, device=device).unsqueeze(0) < lengths.unsqueeze(1)
    place = torch.tensor(view.lengths, device=device).unsqueeze(1) + torch.arange(width + 1, device=device)

    # Stage 1: how many drafts stay. u < p/q, written without division so that q = 0 rejects.
    uniforms = _accept_uniforms(view, place[:, :width])
    kept = target_probs[:, :width].gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    drawn_with = draft_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    is_kept = (uniforms * drawn_with < kept) & (drawn_with > 0) & is_real
    num = is_kept.cumprod(-1).sum(-1)

    # Stage 2: the token after them, from the residual law, or from the target's own after full acceptance.
    every = torch.arange(rows, device=device)
    target_law = target_probs[every, num]
    is_rejected = num < lengths
    draft_law = torch.nn.functional.pad(draft_probs, (0, 0, 0, 1))[every, num]
    residual = (target_law - draft_law * is_rejected.unsqueeze(-1)).clamp_(min=0)
    # A residual of nothing means equal laws up to rounding: the target's own law is the right limit.
    residual = torch.where(residual.sum(-1, keepdim=True) > 0, residual, target_law)
    last = view.sampler.draw(
        Law(residual.log(), None, vocab), view.sampler.noise(Stream.TARGET, place.gather(1, num.unsqueeze(1)))[:, 0]
    )
    last = torch.where(torch.isfinite(scores.logits[every, num].amax(-1)), last, -1)
    written = torch.nn.functional.pad(tokens, (0, 1)).scatter(1, num.unsqueeze(1), last.unsqueeze(1))
    return Decision(written, num + 1, is_recovered=is_rejected)


def _target_probs(proposal: Proposal, scores: Scores, view: View) -> Tensor:
    """Return the target's law after the root and each node, [B, 1 + W, V]; drafts count as history."""
    sampler, logits = view.sampler, scores.logits
    history = sampler.history(view.texts, view.prompts, logits.shape[-1])
    if history is None:
        flat = sampler.process(logits, None).reshape(-1, logits.shape[-1])
        return sampler.law(flat).probs().view(logits.shape)
    laws = []
    for index in range(logits.shape[1]):
        laws.append(sampler.law(sampler.process(logits[:, index], history)).probs())
        if index < proposal.tokens.shape[1]:
            history.push(proposal.tokens[:, index].tolist(), list(range(logits.shape[0])))
    return torch.stack(laws, 1)


def _accept_uniforms(view: View, place: Tensor) -> Tensor:
    return uniform(
        view.sampler.noise(Stream.ACCEPT, place), torch.zeros(1, dtype=torch.int64, device=place.device)
    ).squeeze(-1)
