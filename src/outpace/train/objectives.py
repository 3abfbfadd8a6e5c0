"""What each kind of model is trained to minimise: one function of (network, batch) per objective."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import MASK_ID
from .network import Llama

TEACHER_SHARE = 0.9


def causal_loss(network: Llama, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, in nats; `tokens` int64 [B, T + 1]."""
    logits = network(tokens[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def mask_tokens(tokens: Tensor, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mask each row of `tokens` [B, T] at its own rate t ~ U(0, 1): (masked copy [B, T], weights float32 [B, T]).

    The rates are stratified: one in each B-th of the unit interval, which lowers the variance of the bound at no cost.
    The weights are 1/t where a token is masked and 0 elsewhere, over the number of tokens: with them the summed
    cross-entropy is the bound of MDLM (Sahoo et al., 2024, arXiv 2406.07524, eq. 10) per token.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    batch, length = tokens.shape
    offset = torch.rand((), generator=generator)
    rate = ((torch.arange(batch) + offset) / batch).clamp_min(1.0 / length).unsqueeze(1)
    is_masked = (torch.rand((batch, length), generator=generator) < rate).to(tokens.device)
    weights = is_masked / rate.to(tokens.device) / tokens.numel()
    return torch.where(is_masked, MASK_ID, tokens), weights


def masked_loss(network: Llama, masked: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    """Bound on the negative log-likelihood per token, in nats; all arguments [B, T]."""
    logits = network(masked).float().flatten(0, 1)
    # The mask itself is never an answer: it must not take probability from the words.
    logits = logits.index_fill(1, torch.tensor([MASK_ID], device=logits.device), -1e4)
    losses: Tensor = F.cross_entropy(logits, tokens.flatten(), reduction="none") * weights.flatten()
    return losses.sum()


def distilled_loss(network: Llama, tokens: Tensor, teacher: Llama) -> Tensor:
    """Cross-entropy against the teacher's distribution and, a little, against the text, in nats.

    Args:
        network: The student.
        tokens: The text, int64 [B, T + 1].
        teacher: The parent, whose next-token distributions the student learns.
    """
    with torch.no_grad():
        taught_probs: Tensor = teacher(tokens[:, :-1]).float().softmax(-1)
    logprobs: Tensor = network(tokens[:, :-1]).float().log_softmax(-1)
    taught = -(taught_probs * logprobs).sum(-1).mean()
    text = F.nll_loss(logprobs.flatten(0, 1), tokens[:, 1:].flatten())
    return TEACHER_SHARE * taught + (1 - TEACHER_SHARE) * text
