"""Lenient acceptance: keep a draft that the target would not have written, where a rule lets it pass.

Sources: Kim et al. (2023), arXiv 2302.07863, the rollback policy of Big Little Decoder (a draft passes unless the
target finds it too unlikely); Bachmann et al. (2025), arXiv 2501.19309, Judge Decoding (it passes where it was judged
right).
Guarantee: approximate. Where nothing passes every token is the target's own pick, as in sample and match.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from outpace.types import Decision, Proposal, Scores, View

__all__ = ["judged", "lenient"]


def lenient(
    proposal: Proposal, scores: Scores, view: View, threshold: float, drafts: Tensor, counts: list[int]
) -> Decision:
    """Keep the drafts before the first one whose cross-entropy under the target exceeds the threshold.

    A draft that the target would have picked itself is always kept.

    Args:
        proposal: a chain of W nodes: the leading drafts.
        scores: logits [B, 1 + W, V].
        view: whose sampler draws.
        threshold: largest -log p(draft) in nats, after the processors and at temperature 1.
        drafts: [B, D] int64 tokens that the drafter wrote, which may go on behind the last node by one token: the
            logits of that node judge it.
        counts: how many of them per row.
    """
    return _kept(proposal, scores, view, drafts, counts, lambda step, cost: cost <= threshold)


def judged(proposal: Proposal, scores: Scores, view: View, is_right: Tensor) -> Decision:
    """Keep the drafts before the first one that is neither the target's pick nor judged right.

    A draft that the processors rule out is never kept.

    Args:
        proposal: a chain of W nodes.
        scores: logits [B, 1 + W, V].
        view: whose sampler draws.
        is_right: [B, W] bool.
    """

    def passes(step: int, cost: Tensor) -> Tensor:
        known = is_right[:, step] if step < is_right.shape[1] else torch.zeros_like(cost, dtype=torch.bool)
        return known & cost.isfinite()

    return _kept(proposal, scores, view, proposal.tokens, proposal.length, passes)


def _kept(
    proposal: Proposal,
    scores: Scores,
    view: View,
    drafts: Tensor,
    counts: list[int],
    passes: Callable[[int, Tensor], Tensor],
) -> Decision:
    """Keep drafts while they are the target's picks or pass, told by their place and cross-entropy [B]."""
    sampler, device = view.sampler, scores.logits.device
    history = sampler.history(view.texts, view.prompts, scores.logits.shape[-1])
    place = torch.tensor(view.lengths, device=device)
    nodes, written = torch.tensor(proposal.length, device=device), torch.tensor(counts, device=device)
    alive = torch.ones_like(place, dtype=torch.bool)
    recovered, num = torch.zeros_like(alive), torch.zeros_like(place)
    tokens, path = [], []
    for step in range(max(proposal.length, default=0) + 1):
        logits = sampler.process(scores.logits[:, step], history)
        pick = sampler.pick(logits, place + step)
        is_draft = step < written
        draft = drafts[:, step] if step < drafts.shape[1] else pick
        cost = -logits.double().log_softmax(-1).gather(-1, draft.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        is_kept = is_draft & (passes(step, cost) | (draft == pick)) & (pick >= 0)
        is_node = alive & is_kept & (step < nodes)
        token = torch.where(is_kept, draft, pick)
        tokens.append(token)
        path.append(torch.where(is_node, step, -1))
        num += alive
        recovered |= alive & is_draft & ~is_kept
        if history is not None:
            history.push(token.tolist(), is_node.nonzero().flatten().tolist())
        alive = is_node
    return Decision(torch.stack(tokens, 1), num, torch.stack(path, 1), is_recovered=recovered)
