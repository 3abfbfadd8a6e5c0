"""Cross-entropies over a vocabulary, in pieces that stay in the processor's cache: whole float32 tensors never arise.

`guess` goes through the target's frozen matrix: the loss of a token depends on its own hidden state alone, so the
gradient is known as soon as its logits are, and no [tokens, vocabulary] is kept. `compare` takes logits of any making.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from outpace.heads.net import Frozen

__all__ = ["Compared", "as_labels", "compare", "guess"]

_PIECE = 1 << 17  # logits that are worked on at once


class Compared(NamedTuple):
    """What logits [N, K] came to.

    Attributes:
        hard: [N] nats of the label, with a gradient.
        soft: [N] nats against the law, with a gradient; zeros without one.
        kept: [N] the share of drafts drawn from the logits' law that the target's keeps; zeros without one.
        right: [N] bool, the label is the likeliest.
    """

    hard: Tensor
    soft: Tensor
    kept: Tensor
    right: Tensor


def as_labels(frozen: Frozen, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return what tokens [...] are called among those that can be drafted, and bool [...] where they are."""
    if frozen.ids is None:
        return tokens, torch.ones_like(tokens, dtype=torch.bool)
    label = torch.searchsorted(frozen.ids, tokens).clamp_(max=len(frozen.ids) - 1)
    return label, frozen.ids[label] == tokens


def compare(logits: Tensor, label: Tensor, law: Tensor | None = None) -> Compared:
    """Hold logits [N, K] to labels [N], and to a law [N, K] where one is given; see `Compared`."""
    return Compared(*_Compare.apply(logits, label, law))  # type: ignore[no-untyped-call]


def guess(frozen: Frozen, hidden: Tensor, label: Tensor, law: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy [N] of each token in nats, with a gradient, and bool [N] where the likeliest was right.

    Args:
        frozen: the target.
        hidden: [N, hidden] what the drafter takes for the target's last hidden states.
        label: [N] the tokens to be guessed, as `as_labels` calls them.
        law: [N, K] the target's own law: the loss is then taken against it, and `label` decides only what counts as
            right; None = against `label`.
    """
    found: tuple[Tensor, Tensor] = _Guess.apply(hidden, label, law, frozen)  # type: ignore[no-untyped-call]
    return found


def _pieces(count: int, width: int) -> list[slice]:
    size = max(1, _PIECE // width)
    return [slice(start, start + size) for start in range(0, count, size)]


def _measure(logits: Tensor, at: Tensor, law: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hard, soft and kept, each [n], and the law of the logits [n, K] in float32."""
    top = logits.amax(-1, keepdim=True)
    shifted = (logits - top).float()
    own = shifted.exp()
    total = own.sum(-1, keepdim=True)
    own.div_(total)
    log_total = total.log_()[:, 0]
    hard = log_total - shifted.gather(1, at)[:, 0]
    if law is None:
        return hard, torch.zeros_like(hard), torch.zeros_like(hard), own
    kept = torch.minimum(own, law).sum(-1, dtype=torch.float32)
    soft = log_total * law.sum(-1, dtype=torch.float32) - shifted.mul_(law).sum(-1)
    return hard, soft, kept, own


class _Compare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, law: Tensor | None) -> tuple[Tensor, ...]:
        hard, soft, kept = (torch.empty(len(label), device=logits.device) for _ in range(3))
        right = torch.empty_like(label, dtype=torch.bool)
        for cut in _pieces(*logits.shape):
            piece, at = logits[cut], label[cut, None]
            hard[cut], soft[cut], kept[cut], _ = _measure(piece, at, None if law is None else law[cut])
            right[cut] = (piece.gather(1, at) >= piece.amax(-1, keepdim=True))[:, 0]
        ctx.save_for_backward(logits, label, law)
        ctx.mark_non_differentiable(kept, right)
        return hard, soft, kept, right

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        logits, label, law = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        hard, soft = (slope.float().unsqueeze(-1) for slope in slopes[:2])
        for cut in _pieces(*logits.shape):
            own = logits[cut].float().softmax(-1)
            if law is None:
                own.mul_(hard[cut])
            else:
                own.mul_(hard[cut] + soft[cut]).sub_(law[cut] * soft[cut])
            gradient[cut] = own.scatter_add_(1, label[cut, None], -hard[cut])
        return gradient, None, None


class _Guess(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, label: Tensor, law: Tensor | None, frozen: Frozen) -> tuple[Tensor, Tensor]:
        has_gradient = ctx.needs_input_grad[0]
        loss = torch.empty(len(label), device=hidden.device)
        right = torch.empty_like(label, dtype=torch.bool)
        gradient = torch.empty_like(hidden) if has_gradient else None
        size = 256  # of a product with the matrix, which is read anew for each
        for start in range(0, len(label), size):
            cut = slice(start, start + size)
            with torch.enable_grad():
                x = hidden[cut].detach().requires_grad_(has_gradient)
                logits = frozen.logits(x)
            slope = torch.empty_like(logits)
            for part in _pieces(*logits.shape):
                place = slice(cut.start + part.start, min(cut.start + part.stop, len(label), cut.stop))
                scores, at = logits.detach()[part], label[place, None]
                aim = None if law is None else law[place]
                hard, soft, _, own = _measure(scores, at, aim)
                loss[place] = hard if law is None else soft
                right[place] = (scores.gather(1, at) >= scores.amax(-1, keepdim=True))[:, 0]
                if aim is None:
                    slope[part] = own.scatter_add_(1, at, torch.full_like(at, -1, dtype=own.dtype))
                else:
                    slope[part] = own.sub_(aim)
            if gradient is not None:
                gradient[cut] = torch.autograd.grad(logits, x, slope)[0].to(gradient.dtype)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * slopes[0].unsqueeze(-1).to(gradient.dtype), None, None, None
