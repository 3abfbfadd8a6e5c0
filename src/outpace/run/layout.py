"""Laying out one forward: [pending | window] per row, padded at the right, with who sees whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from outpace.run.tree import ancestors, sight_lines
from outpace.types import Adapter, Proposal

__all__ = ["Layout", "lay_out", "soften"]

_FEW = 1 << 10  # pairs of tokens that are looked at one by one on the host


@dataclass(frozen=True, slots=True)
class Layout:
    """Arguments of `Adapter.score`, and where each row's window starts in them.

    Attributes:
        tokens, position, visible, ask: as `Adapter.score` takes them.
        start: per row, the index of its first window node = its number of pending tokens; 0 on a canvas.
    """

    tokens: Tensor
    position: Tensor
    visible: Tensor | None
    ask: Tensor | None
    start: list[int]


def lay_out(pending: Sequence[Sequence[int]], bases: Sequence[int], proposal: Proposal) -> Layout:
    """Join pending tokens and proposed nodes into one forward; on a canvas nothing is pending.

    Args:
        pending: per row, final tokens without a valid cache entry.
        bases: per row, the logical position of its first pending token.
        proposal: the window.
    """
    device, width = proposal.tokens.device, proposal.tokens.shape[1]
    start = [len(tokens) for tokens in pending]
    longest = max(start)
    is_even = min(start) == longest and min(proposal.length) == width
    if proposal.is_whole:
        return _lay_whole(proposal, start, is_even)
    head = torch.tensor([list(t) + [0] * (longest - len(t)) for t in pending], dtype=torch.int64, device=device)
    is_plain = proposal.parent is None and proposal.position is None and proposal.visible is None
    if is_even and is_plain and len(start) == 1:
        position = torch.arange(bases[0], bases[0] + longest + width, device=device).unsqueeze(0)
        return _lay_chains(head, position, start, proposal)
    base = torch.tensor(list(bases), device=device).unsqueeze(1)
    if is_even and is_plain:
        position = base + torch.arange(longest + width, device=device)
        return _lay_chains(head, position, start, proposal)
    if is_even and width and not is_plain:
        is_bare = proposal.parent is not None and proposal.position is None and proposal.visible is None
        if is_bare and device.type == "cpu" and len(start) * (longest + width) ** 2 <= _FEW:
            return _lay_few(pending, bases, proposal)
        return _lay_trees(head, base, start, proposal)
    return _ragged(head, base, start, proposal)


def _lay_chains(head: Tensor, position: Tensor, start: list[int], proposal: Proposal) -> Layout:
    """Nothing is padded and every token sees all before it, so the adapter needs no mask."""
    tokens = torch.cat([head, proposal.tokens], 1) if proposal.tokens.shape[1] else head
    is_all = head.shape[1] == 1 and proposal.ask is None
    return Layout(tokens, position, None, None if is_all else _asked(start, proposal, tokens.shape[1]), start)


def _lay_trees(head: Tensor, base: Tensor, start: list[int], proposal: Proposal) -> Layout:
    """Nothing is padded: the nodes stand in one square behind the pending tokens, which they all see."""
    sight, longest = _sight(proposal), head.shape[1]
    assert sight is not None  # the caller has looked
    tokens = torch.cat([head, proposal.tokens], 1)
    total = tokens.shape[1]
    own = proposal.position if proposal.position is not None else base + longest - 1 + sight.sum(-1)
    position = torch.cat([base + torch.arange(longest, device=base.device), own], 1)
    visible = torch.ones(len(start), total, total, dtype=torch.bool, device=base.device).tril_()
    visible[:, longest:, longest:] = sight
    if proposal.visible is not None:  # which may leave a token unseen by itself
        visible.diagonal(dim1=1, dim2=2).fill_(True)
    is_all = longest == 1 and proposal.ask is None
    return Layout(tokens, position, visible, None if is_all else _asked(start, proposal, total), start)


def _lay_few(pending: Sequence[Sequence[int]], bases: Sequence[int], proposal: Proposal) -> Layout:
    """As `_lay_trees`, of trees so small that lists take less time than the calls of torch."""
    assert proposal.parent is not None  # the caller has looked
    tokens, position, visible = [], [], []
    longest, total = len(pending[0]), len(pending[0]) + proposal.tokens.shape[1]
    chain = [[True] * (place + 1) + [False] * (total - place - 1) for place in range(longest)]
    rows = zip(pending, bases, proposal.tokens.tolist(), proposal.parent.tolist(), strict=True)
    for held, base, drafted, parents in rows:
        lines = sight_lines(parents)
        tokens.append([*held, *drafted])
        position.append([*range(base, base + longest), *(base + longest - 1 + sum(line) for line in lines)])
        visible.append(chain + [[True] * longest + line for line in lines])
    start = [longest] * len(pending)
    ask = None if longest == 1 and proposal.ask is None else _asked(start, proposal, total)
    return Layout(torch.tensor(tokens), torch.tensor(position), torch.tensor(visible), ask, start)


def _sight(proposal: Proposal) -> Tensor | None:
    """Return [B, W, W]: node sees node; None = every node sees those before it, and stands behind them."""
    if proposal.visible is not None:
        return proposal.visible
    if proposal.parent is not None:
        return ancestors(proposal.parent)
    if proposal.position is None:
        return None
    rows, width = proposal.tokens.shape  # without a mask of its own, an adapter takes a chain's positions for granted
    return torch.ones(width, width, dtype=torch.bool, device=proposal.tokens.device).tril().expand(rows, -1, -1)


def _lay_whole(proposal: Proposal, start: list[int], is_even: bool) -> Layout:
    """The method proposes every token that is forwarded, with its position: all that is left is to mark padding."""
    position = proposal.position
    assert position is not None  # a canvas has no order of its own
    if not is_even:
        is_padding = np.arange(position.shape[1]) >= np.array(proposal.length)[:, np.newaxis]
        if position.is_cpu:  # small arrays: numpy starts sooner
            position = torch.from_numpy(np.where(is_padding, -1, position.numpy()))
        else:
            position = position.masked_fill(torch.from_numpy(is_padding).to(position.device), -1)
    return Layout(proposal.tokens, position, proposal.visible, proposal.ask, start)


def soften(
    adapter: Adapter, layout: Layout, window: Proposal | None, prompts: Sequence[Tensor | None], bases: Sequence[int]
) -> Tensor | None:
    """Return the embeddings [B, T, hidden] of a forward that holds soft ones, for `Adapter.score`; None = it has none.

    Args:
        adapter: embeds every other token.
        layout: of the forward.
        window: the proposal, of which `inputs` and `is_soft` are read; None = none.
        prompts: per row, those of its text's first positions, or None; empty = no row has any.
        bases: as `lay_out` takes them.
    """
    # Pending tokens behind the prompt are plain ones; a canvas, which has none pending, may forward any place.
    due = [
        (row, prompt)
        for row, (prompt, count, base) in enumerate(zip(prompts, layout.start, bases, strict=False))
        if prompt is not None and (not count or base < len(prompt))
    ]
    nodes, is_soft = (None, None) if window is None else (window.inputs, window.is_soft)
    if nodes is None and not due:
        return None
    if nodes is not None and is_soft is None and not any(layout.start):
        inputs = nodes if not due else nodes.clone()
    else:
        inputs = _with_nodes(adapter.embed(layout.tokens), nodes, is_soft, layout.start)
    for row, prompt in due:
        at = layout.position[row]
        is_prompt = ((at >= 0) & (at < len(prompt))).unsqueeze(-1)
        inputs[row] = torch.where(is_prompt, prompt.to(inputs)[at.clamp(0, len(prompt) - 1)], inputs[row])
    return inputs


def _with_nodes(inputs: Tensor, nodes: Tensor | None, is_soft: Tensor | None, start: list[int]) -> Tensor:
    """Return embeddings [B, T, hidden] with those of the window in their places."""
    if nodes is None or not nodes.shape[1]:
        return inputs
    node = torch.arange(inputs.shape[1], device=inputs.device) - torch.tensor(start, device=inputs.device).unsqueeze(1)
    inside = node.clamp(0, nodes.shape[1] - 1)
    is_node = (node >= 0) & (node < nodes.shape[1])
    if is_soft is not None:
        is_node &= is_soft.gather(1, inside)
    soft = nodes.to(inputs).gather(1, inside.unsqueeze(-1).expand_as(inputs))
    return torch.where(is_node.unsqueeze(-1), soft, inputs)


def _asked(start: list[int], proposal: Proposal, total: int) -> Tensor:
    """Return [B, A]: the root (last pending token), then the nodes; a row with nothing pending asks its first."""
    first = torch.tensor(start, device=proposal.tokens.device).unsqueeze(1)
    nodes = proposal.ask
    if nodes is None:
        nodes = torch.arange(-1, proposal.tokens.shape[1], device=proposal.tokens.device)
    return (first + nodes).clamp_(0, total - 1)


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
    sight = _sight(proposal) if width else None
    position = base + column
    if width and (proposal.position is not None or sight is not None):
        own = proposal.position if proposal.position is not None else base + starts - 1 + _depths(sight)
        position = torch.where(is_node, own.gather(1, safe), position)
    position = torch.where(is_real, position, -1)
    visible = None
    if sight is not None:
        visible = _visible(node, is_node, is_real, safe, sight)
    return Layout(tokens, position, visible, _asked(start, proposal, total), start)


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
