"""Lenient acceptance: keep a draft unless the target finds it too unlikely, else write the target's own token.

Source: Kim et al. (2023), arXiv 2302.07863, the rollback policy of Big Little Decoder.
Guarantee: approximate. With threshold 0 every token is the target's own pick, as in sample and match; without a limit
every draft stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outpace.types import Decision, Proposal, Scores, View

__all__ = ["lenient"]


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
        is_kept = is_draft & ((cost <= threshold) | (draft == pick)) & (pick >= 0)
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
