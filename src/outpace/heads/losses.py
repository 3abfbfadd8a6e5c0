"""Cross-entropy through the target's frozen output matrix, in pieces: no [tokens, vocabulary] is ever kept.

The loss of a token depends on its own hidden state alone, so the gradient is known as soon as the logits are: the
backward pass needs neither them nor a second product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from outpace.heads.net import Frozen

__all__ = ["as_labels", "guess"]

_PIECE = 256  # tokens whose logits stand in memory at once


def as_labels(frozen: Frozen, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return what tokens [...] are called among those that can be drafted, and bool [...] where they are."""
    if frozen.ids is None:
        return tokens, torch.ones_like(tokens, dtype=torch.bool)
    label = torch.searchsorted(frozen.ids, tokens).clamp_(max=len(frozen.ids) - 1)
    return label, frozen.ids[label] == tokens


def guess(frozen: Frozen, hidden: Tensor, label: Tensor, last: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy [N] of each token in nats, with a gradient, and bool [N] where the likeliest was right.

    Args:
        frozen: the target.
        hidden: [N, hidden] what the drafter takes for the target's last hidden states.
        label: [N] the tokens to be guessed, as `as_labels` calls them.
        last: [N, hidden] the target's own last hidden states: the loss is then taken against its law of the tokens that
            can be drafted, and `label` decides only what counts as right; None = against `label`.
    """
    found: tuple[Tensor, Tensor] = _Guess.apply(hidden, label, last, frozen)  # type: ignore[no-untyped-call]
    return found


class _Guess(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, label: Tensor, last: Tensor | None, frozen: Frozen) -> tuple[Tensor, Tensor]:
        has_gradient = ctx.needs_input_grad[0]
        loss = torch.empty(len(label), dtype=torch.float32, device=hidden.device)
        right = torch.empty_like(label, dtype=torch.bool)
        gradient = torch.empty_like(hidden) if has_gradient else None
        for start in range(0, len(label), _PIECE):
            cut = slice(start, start + _PIECE)
            aim = None if last is None else frozen.logits(last[cut]).detach().float().softmax(-1)
            with torch.enable_grad():
                x = hidden[cut].detach().requires_grad_(has_gradient)
                logits = frozen.logits(x)
            scores = logits.detach()
            at = label[cut, None]
            right[cut] = (scores.gather(1, at) >= scores.amax(-1, keepdim=True))[:, 0]
            # Softmax in the matrix's own dtype when only its gradient counts; a look at held-out texts wants every bit.
            law = scores.softmax(-1) if has_gradient and aim is None else scores.float().softmax(-1)
            if aim is None:
                loss[cut] = -law.gather(1, at)[:, 0].float().clamp_(min=1e-38).log_()
            else:
                loss[cut] = -(aim * law.clamp(min=1e-38).log()).sum(-1)
            if gradient is not None:
                slope = (
                    law - aim if aim is not None else law.scatter_add_(1, at, torch.full_like(at, -1, dtype=law.dtype))
                )
                gradient[cut] = torch.autograd.grad(logits, x, slope.to(logits.dtype))[0].to(gradient.dtype)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * slopes[0].unsqueeze(-1).to(gradient.dtype), None, None, None
