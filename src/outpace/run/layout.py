"""Laying out one forward: [pending | window] per row, padded at the right, with who sees whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outpace.run.tree import ancestors
from outpace.types import Proposal

__all__ = ["Layout", "lay_canvas", "lay_out"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Arguments of `Adapter.score`, and where each row's window starts in them.

    Attributes:
        tokens, position, visible, ask: as `Adapter.score` takes them.
        start: per row, the index of its first window node = its number of pending tokens.
    """

    tokens: Tensor
    position: Tensor
    visible: Tensor | None
    ask: Tensor | None
    start: list[int]


def lay_canvas(proposal: Proposal) -> Layout:
    """Lay out a canvas: the method proposes every token that is forwarded, with its position; nothing is pending."""
    rows, width = proposal.tokens.shape
    assert proposal.position is not None  # a canvas has no order of its own
    position = proposal.position
    if min(proposal.length) < width:
        lengths = torch.tensor(proposal.length, device=position.device).unsqueeze(1)
        position = position.masked_fill(torch.arange(width, device=position.device) >= lengths, -1)
    return Layout(proposal.tokens, position, proposal.visible, proposal.ask, [0] * rows)


def lay_out(pending: Sequence[Sequence[int]], bases: Sequence[int], proposal: Proposal) -> Layout:
    """Join pending tokens and proposed nodes into one forward.

    Args:
        pending: per row, final tokens without a valid cache entry.
        bases: per row, the logical position of its first pending token.
        proposal: the window.
    """
    device, width = proposal.tokens.device, proposal.tokens.shape[1]
    start = [len(tokens) for tokens in pending]
    longest = max(start)
    is_even = min(start) == longest and min(proposal.length) == width
    head = torch.tensor([list(t) + [0] * (longest - len(t)) for t in pending], dtype=torch.int64, device=device)
    base = torch.tensor(list(bases), device=device).unsqueeze(1)
    if is_even and proposal.parent is None and proposal.position is None and proposal.visible is None:
        tokens = torch.cat([head, proposal.tokens], 1)
        position = base + torch.arange(longest + width, device=device)
        ask = None if longest == 1 else _asked(start, width, longest + width, device)
        return Layout(tokens, position, None, ask, start)
    return _ragged(head, base, start, proposal)


def _asked(start: list[int], width: int, total: int, device: torch.device) -> Tensor:
    """Return [B, 1 + W]: the root (last pending token), then the nodes; a row with nothing pending asks its first."""
    first = torch.tensor(start, device=device).unsqueeze(1) - 1
    return (first + torch.arange(width + 1, device=device)).clamp_(0, total - 1)


def _ragged(head: Tensor, base: Tensor, start: list[int], proposal: Proposal) -> Layout:
    device, width = proposal.tokens.device, proposal.tokens.shape[1]
    starts = torch.tensor(start, device=device).unsqueeze(1)
    lengths = torch.tensor(proposal.length, device=device).unsqueeze(1)
    total = max(start) + width
    column = torch.arange(total, device=device).unsqueeze(0)
    node = column - starts  # [B, T]: index into the window, negative for pending tokens
    is_node = (node >= 0) & (node < lengths)
    is_real = node < lengths
    safe = node.clamp(0, max(width - 1, 0))
    pad_head = torch.nn.functional.pad(head, (0, max(0, total - head.shape[1])))[:, :total]
    tokens = torch.where(is_node, proposal.tokens.gather(1, safe), pad_head) if width else pad_head
    sight = proposal.visible if width else None
    if width and sight is None and proposal.parent is not None:
        sight = ancestors(proposal.parent)
    position = base + column
    if width and (proposal.position is not None or sight is not None):
        own = proposal.position if proposal.position is not None else base + starts - 1 + _depths(sight)
        position = torch.where(is_node, own.gather(1, safe), position)
    position = torch.where(is_real, position, -1)
    visible = None
    if sight is not None:
        visible = _visible(node, is_node, is_real, safe, sight)
    return Layout(tokens, position, visible, _asked(start, width, total, device), start)


def _depths(sight: Tensor | None) -> Tensor:
    assert sight is not None  # the caller has checked
    return sight.sum(-1)


def _visible(node: Tensor, is_node: Tensor, is_real: Tensor, safe: Tensor, sight: Tensor) -> Tensor:
    """Return [B, T, T]: pending sees earlier pending, a node sees all pending and the nodes that `sight` allows."""
    rows, total = node.shape
    is_pending = node < 0
    order = torch.arange(total, device=node.device)
    causal = order.unsqueeze(0) <= order.unsqueeze(1)
    allowed = is_pending.unsqueeze(1) & (causal | is_node.unsqueeze(2))
    pairs = sight.gather(1, safe.unsqueeze(2).expand(rows, total, sight.shape[2]))
    pairs = pairs.gather(2, safe.unsqueeze(1).expand(rows, total, total))
    allowed = torch.where(is_node.unsqueeze(2) & is_node.unsqueeze(1), pairs, allowed)
    # A padded token sees itself, so that its softmax stays finite.
    return allowed & is_real.unsqueeze(2) | torch.eye(total, dtype=torch.bool, device=node.device)
