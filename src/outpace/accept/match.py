"""Sample and match: draw the target's own next token, keep the draft if it equals it.

Source: rule 7 of Daliri, Musco, Musco (2024), drafter-invariant speculative decoding, with the noise keyed by position.
Guarantee: exact. Every token is the target's own draw, with plain decoding's processors and noise, so any chain or tree
of drafts gives the text of plain decoding under the same seed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outpace.accept.nodes import is_real, parents
from outpace.run.tree import ancestors
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
    """Descend one depth at a time, drawing only where the walk stands; processors see the path so far.

    The tree is read back once; then each depth costs one draw for all rows, and none of the tree's size.
    """
    sampler, logits = view.sampler, scores.logits
    rows = logits.shape[0]
    history = sampler.history(view.texts, view.prompts, logits.shape[-1])
    children = _children(proposal)
    node, alive = [-1] * rows, list(range(rows))
    tokens: list[list[int]] = [[] for _ in range(rows)]
    path: list[list[int]] = [[] for _ in range(rows)]
    every = torch.arange(rows, device=logits.device)
    while alive:
        at = torch.tensor(node, device=logits.device) + 1
        place = torch.tensor([n + len(own) for n, own in zip(view.lengths, tokens, strict=True)], device=logits.device)
        drawn = sampler.pick(sampler.process(logits[every, at], history), place).tolist()
        found = []
        for row in alive:
            following = children[row].get((node[row], drawn[row]), -1)
            tokens[row].append(drawn[row])
            path[row].append(following)
            if following >= 0:
                node[row] = following
                found.append(row)
        if history is not None and found:
            history.push(drawn, found)
        alive = found
    has_children = [any(above == at for above, _ in own) for own, at in zip(children, node, strict=True)]
    return Decision(
        _padded(tokens, logits.device),
        torch.tensor([len(own) for own in tokens], device=logits.device),
        _padded(path, logits.device),
        is_recovered=torch.tensor(has_children, device=logits.device),
    )


def _children(proposal: Proposal) -> list[dict[tuple[int, int], int]]:
    """Return per row the node that follows (node, token), the first of equal ones; padding is left out."""
    found = []
    tables = zip(parents(proposal).tolist(), proposal.tokens.tolist(), proposal.length, strict=True)
    for parent, tokens, length in tables:
        own: dict[tuple[int, int], int] = {}
        for node, key in enumerate(zip(parent[:length], tokens[:length], strict=True)):
            own.setdefault(key, node)
        found.append(own)
    return found


def _padded(rows: list[list[int]], device: torch.device) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows], device=device)
