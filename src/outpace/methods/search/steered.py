"""What searches that steer away from repetition share: the few likeliest tokens, and how likely each is."""

from __future__ import annotations

import torch
from torch import Tensor

from outpace.sampling import Sampling
from outpace.sampling.truncation import candidates
from outpace.types import Decision, View

__all__ = ["likely", "written"]


def likely(logits: Tensor, view: View, count: int) -> tuple[Tensor, Tensor]:
    """Return the likeliest tokens after each row's text, what the settings forbid left out.

    Args:
        logits: [B, V] after the last token of each row.
        view: whose sampler processes them.
        count: how many at most; at least 1.

    Returns:
        ids: [B, K] int64, the likeliest first, ties by lowest id.
        probs: [B, K] float64, of the processed law over the whole vocabulary; 0 = no token to take, which the first
            is only where the logits are no numbers.
    """
    history = view.sampler.history(view.texts, view.prompts, logits.shape[-1])
    processed = view.sampler.process(logits, history)
    values, ids, _ = candidates(processed, Sampling(temperature=1.0, top_k=min(count, logits.shape[-1])))
    probs = (values - processed.double().logsumexp(-1, keepdim=True)).exp()
    return ids, torch.where(torch.isfinite(values[:, :1]), probs, 0.0)


def written(tokens: list[int], view: View) -> Decision:
    """Return the decision to write one token per row; -1 = none can be."""
    column = torch.tensor(tokens, dtype=torch.int64, device=view.device).unsqueeze(1)
    return Decision(column, torch.ones_like(column[:, 0]), torch.full_like(column, -1))
