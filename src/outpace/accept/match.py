"""Sample and match: draw the target's own next token, keep the draft if it equals it.

Source: rule 7 of Daliri, Musco, Musco (2024), drafter-invariant speculative decoding, with the noise keyed by position.
Guarantee: exact. Every token is the target's own draw, with plain decoding's processors and noise, so any chain or tree
of drafts gives the text of plain decoding under the same seed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outpace.accept.nodes import is_real, parents
from outpace.tree import ancestors
from outpace.types import Decision, Proposal, Scores, View

__all__ = ["picks", "sample_and_match"]


def sample_and_match(proposal: Proposal, scores: Scores, view: View) -> Decision:
    """Keep the longest path of drafts that the target would have drawn, plus its own next token.

    Args:
        proposal: a chain or a tree of W nodes.
        scores: logits [B, 1 + W, V], root first.
        view: whose sampler draws.
    """
    if proposal.parent is None and view.sampler.is_parallel:
        return _match_chain(proposal, picks(proposal, scores, view))
    return _walk(proposal, scores, view)


def picks(proposal: Proposal, scores: Scores, view: View) -> Tensor:
    """Draw the target's token after the root and after every node at once, [B, 1 + W]; stateless sampling only."""
    lengths = torch.tensor(view.lengths, device=scores.logits.device).unsqueeze(1)
    position = lengths + torch.nn.functional.pad(_depth(proposal), (1, 0))
    return view.sampler.pick(view.sampler.process(scores.logits, None), position)


def _depth(proposal: Proposal) -> Tensor:
    if proposal.parent is None:
        return torch.arange(1, proposal.tokens.shape[1] + 1, device=proposal.tokens.device).expand_as(proposal.tokens)
    return ancestors(proposal.parent).sum(-1)


def _match_chain(proposal: Proposal, drawn: Tensor) -> Decision:
    width = proposal.tokens.shape[1]
    if width == 0:
        return Decision(drawn, torch.ones_like(drawn[:, 0]))
    is_match = drawn[:, :width] == proposal.tokens
    if min(proposal.length) < width:
        is_match &= is_real(proposal)
    num = is_match.cumprod(-1).sum(-1)
    lengths = torch.tensor(proposal.length, device=drawn.device)
    # Accepted drafts equal the draws, so the draws are the text.
    return Decision(drawn, num + 1, is_recovered=num < lengths)


def _walk(proposal: Proposal, scores: Scores, view: View) -> Decision:
    """Descend one depth at a time, drawing only where the walk stands; processors see the path so far."""
    sampler, device = view.sampler, scores.logits.device
    rows, width = scores.logits.shape[0], proposal.tokens.shape[1]
    history = sampler.history(view.texts, view.prompts, scores.logits.shape[-1])
    parent, real = parents(proposal), is_real(proposal)
    node = torch.full((rows,), -1, device=device)
    alive = torch.ones(rows, dtype=torch.bool, device=device)
    place = torch.tensor(view.lengths, device=device)
    every = torch.arange(rows, device=device)
    tokens, path = [], []
    num = torch.zeros(rows, dtype=torch.int64, device=device)
    recovered = torch.zeros_like(alive)
    for _ in range(max(proposal.length, default=0) + 1):
        logits = sampler.process(scores.logits[every, node + 1], history)
        token = sampler.pick(logits, place)
        is_child = (parent == node.unsqueeze(1)) & real
        is_next = is_child & (proposal.tokens == token.unsqueeze(1)) if width else is_child
        found = is_next.any(-1) & alive
        tokens.append(token)
        following = is_next.to(torch.int8).argmax(-1) if width else node
        path.append(torch.where(found, following, -1))
        num += alive
        recovered |= alive & ~found & is_child.any(-1)
        if not bool(found.any()):
            break
        if history is not None:
            history.push(token.tolist(), found.nonzero().flatten().tolist())
        node, place, alive = torch.where(found, following, node), place + 1, found
    return Decision(torch.stack(tokens, 1), num, torch.stack(path, 1), is_recovered=recovered)
