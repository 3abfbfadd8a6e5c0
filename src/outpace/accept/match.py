"""Sample and match: draw the target's own next token, keep the draft if it equals it.

Source: rule 7 of Daliri, Musco, Musco (2024), drafter-invariant speculative decoding, with the noise keyed by position.
Guarantee: exact. Every token is the target's own draw, with plain decoding's processors and noise, so any chain or tree
of drafts gives the text of plain decoding under the same seed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outpace.accept.nodes import children_of, is_real, parents
from outpace.run.beside import merge
from outpace.run.tree import ancestors
from outpace.sampling import Sampler
from outpace.types import Decision, Proposal, Scores, View

__all__ = ["picks", "sample_and_match"]

_FEW = 1 << 19  # logits that are looked through in the time of a few draws


def sample_and_match(proposal: Proposal, scores: Scores, view: View) -> Decision:
    """Keep the longest path of drafts that the target would have drawn, plus its own next token.

    Args:
        proposal: a chain or a tree of W nodes.
        scores: logits [B, 1 + W, V], root first.
        view: whose sampler draws.
    """
    if view.sampler.parts:
        return _by_parts(proposal, scores, view)
    is_bare = proposal.tokens.shape[1] == 0 and not view.sampler.settings.is_stateful  # there is one place to draw at
    if is_bare or (proposal.parent is None and view.sampler.is_parallel):
        return _match_chain(proposal, picks(proposal, scores, view))
    return _walk(proposal, scores, view)


def _by_parts(proposal: Proposal, scores: Scores, view: View) -> Decision:
    """Decide the rows of equal settings together."""
    asked, decisions = scores.logits.shape[1], []
    for index, sampler in view.sampler.parts:
        parent = None if proposal.parent is None else proposal.parent[index]
        own = Proposal(proposal.tokens[index], [proposal.length[i] for i in index], parent)
        seen = view.part(index, view.cache.part(index), sampler)
        decisions.append(sample_and_match(own, scores.part(index, asked), seen))
    return merge(decisions, [index for index, _ in view.sampler.parts])


def picks(proposal: Proposal, scores: Scores, view: View) -> Tensor:
    """Draw the target's token after the root and after every node at once, [B, 1 + W]; stateless sampling only."""
    processed, device = view.sampler.process(scores.logits, None), scores.logits.device
    if view.sampler.settings.is_greedy:  # without noise, places play no part
        return view.sampler.pick(processed, torch.empty(0))
    lengths = torch.tensor(view.lengths, device=device).unsqueeze(1)
    if proposal.parent is None:
        position = lengths + torch.arange(scores.logits.shape[1], device=device)
    else:
        position = torch.nn.functional.pad(ancestors(proposal.parent).sum(-1), (1, 0)) + lengths
    return view.sampler.pick(processed, position)


def _match_chain(proposal: Proposal, drawn: Tensor) -> Decision:
    width = proposal.tokens.shape[1]
    if width == 0:
        return Decision(drawn, torch.ones_like(drawn[:, 0]))
    is_match = drawn[:, :width] == proposal.tokens
    lengths: int | Tensor = width
    if min(proposal.length) < width:
        is_match &= is_real(proposal)
        lengths = torch.tensor(proposal.length, device=drawn.device)
    num = is_match.cumprod(-1).sum(-1)
    # Accepted drafts equal the draws, so the draws are the text.
    return Decision(drawn, num + 1, is_recovered=num < lengths)


def _walk(proposal: Proposal, scores: Scores, view: View) -> Decision:
    """Descend one depth at a time; processors see the path so far.

    The tree is read back once, with the draws at all nodes where they may be made at once; else each depth costs one
    draw for all rows, where the walk stands, and none of the tree's size.
    """
    sampler, logits = view.sampler, scores.logits
    rows, width = proposal.tokens.shape
    device = logits.device

    # Stage 1: what stands where.
    parts = [proposal.tokens, parents(proposal)]
    if _is_at_once(sampler, logits):
        parts.append(picks(proposal, scores, view))
    table = torch.cat(parts, 1).tolist()
    children = [
        children_of(row[:width], row[width : 2 * width], n) for row, n in zip(table, proposal.length, strict=True)
    ]
    ahead = [row[2 * width :] for row in table]

    # Stage 2: down, until no child holds the token drawn.
    history = sampler.history(view.texts, view.prompts, logits.shape[-1])
    node, alive = [-1] * rows, list(range(rows))
    tokens: list[list[int]] = [[] for _ in range(rows)]
    path: list[list[int]] = [[] for _ in range(rows)]
    every = torch.arange(rows, device=device)
    while alive:
        if len(parts) == 3:
            drawn = [own[at + 1] for own, at in zip(ahead, node, strict=True)]
        else:
            at = torch.tensor(node, device=device) + 1
            place = torch.tensor([n + len(own) for n, own in zip(view.lengths, tokens, strict=True)], device=device)
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
        _padded(tokens, device),
        torch.tensor([len(own) for own in tokens], device=device),
        _padded(path, device),
        is_recovered=torch.tensor(has_children, device=device),
    )


def _is_at_once(sampler: Sampler, logits: Tensor) -> bool:
    """Whether drawing at every node is cheaper than going back and forth at each depth.

    An accelerator is waited for once. The CPU looks at every logit, which pays for few of them and without noise.
    """
    if logits.device.type != "cpu":
        return sampler.is_parallel
    return sampler.is_parallel and sampler.settings.is_greedy and logits[0].numel() <= _FEW


def _padded(rows: list[list[int]], device: torch.device) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows], device=device)
