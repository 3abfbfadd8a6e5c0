"""What acceptors share: the target's laws at the nodes of a window, what is left of a law, and the last token."""

from __future__ import annotations

import torch
from torch import Tensor

from outpace.run.tree import ancestors
from outpace.sampling import Law
from outpace.types import Decision, Proposal, Scores, Stream, View

__all__ = ["chance_of", "children_of", "decide", "is_real", "left_over", "node_laws", "parents"]


def parents(proposal: Proposal) -> Tensor:
    """Return [B, W] int64: each node's parent, -1 = the last final token; a chain is a tree as well."""
    if proposal.parent is not None:
        return proposal.parent
    rows, width = proposal.tokens.shape
    return torch.arange(-1, width - 1, device=proposal.tokens.device).expand(rows, width)


def is_real(proposal: Proposal) -> Tensor:
    """Return [B, W] bool: nodes that are no padding."""
    device, width = proposal.tokens.device, proposal.tokens.shape[1]
    lengths = torch.tensor(proposal.length, device=device).unsqueeze(1)
    return torch.arange(width, device=device).unsqueeze(0) < lengths


def node_laws(proposal: Proposal, scores: Scores, view: View) -> Tensor:
    """Return the target's law after the root and after every node, [B, 1 + W, V] float64.

    Processors see each node's own path: the final text and the drafts from the root down to the node. Where logits are
    no numbers the law is all zero, so that no draft is kept there.
    """
    sampler, logits = view.sampler, scores.logits
    vocab = logits.shape[-1]
    if not sampler.settings.is_stateful:
        return sampler.law(sampler.process(logits, None).reshape(-1, vocab)).probs().view(logits.shape)
    rows, texts = [], []
    for row, (text, tokens, parent) in enumerate(
        zip(view.texts, proposal.tokens.tolist(), parents(proposal).tolist(), strict=True)
    ):
        paths: list[list[int]] = [list(text)]
        for token, above in zip(tokens, parent, strict=True):
            paths.append([*paths[above + 1], token])
        rows += [row] * len(paths)
        texts += paths
    history = sampler.rows(rows).history(texts, [view.prompts[row] for row in rows], vocab)
    return sampler.law(sampler.process(logits.reshape(-1, vocab), history)).probs().view(logits.shape)


def chance_of(target: Tensor, draft: Tensor) -> Tensor:
    """Return target / draft, and 0 where the draft could not have been drawn."""
    return torch.where(draft > 0, target / draft, 0.0)


def left_over(target: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is left of a law after part of it was given away, normalised [..., V], and its mass [..., 1].

    Nothing left means that both were equal up to rounding; the target's own law is then the right limit.
    """
    rest = (target - taken).clamp_(min=0)
    mass = rest.sum(-1, keepdim=True)
    return torch.where(mass > 0, rest / mass, target), mass


def decide(proposal: Proposal, scores: Scores, view: View, end: Tensor, law: Tensor) -> Decision:
    """Write the path to the last accepted node and one token more, -1 where the logits there are no numbers.

    Args:
        proposal, scores, view: the step.
        end: [B] int64 the last accepted node, -1 = none.
        law: [B, V] what the token behind it is drawn from, not necessarily normalised.
    """
    rows, width = proposal.tokens.shape
    device, every = end.device, torch.arange(rows, device=end.device)
    parent, order = parents(proposal), torch.arange(width, device=end.device)
    sees = torch.nn.functional.pad(ancestors(parent), (0, 0, 1, 0))  # the root in front sees no node
    is_on_path = sees[every, end + 1]
    num = is_on_path.sum(-1)
    # Parents precede children, so the path's nodes stand in order.
    path = torch.where(is_on_path, order, width).sort(-1).values
    path = torch.nn.functional.pad(path, (0, 1), value=width)
    place = torch.tensor(view.lengths, device=device) + num
    key = view.sampler.noise(Stream.TARGET, place.unsqueeze(1))[:, 0]
    is_sound = torch.isfinite(scores.logits[every, end + 1].amax(-1))
    last = view.sampler.draw(Law(law.log(), None, law.shape[-1], is_sound), key)
    tokens = (
        torch.nn.functional.pad(proposal.tokens, (0, 1)).gather(1, path).scatter(1, num.unsqueeze(1), last[:, None])
    )
    has_child = ((parent == end.unsqueeze(1)) & is_real(proposal)).any(-1)
    return Decision(tokens, num + 1, torch.where(path == width, -1, path), is_recovered=has_child)


def children_of(tokens: list[int], parent: list[int], length: int) -> dict[tuple[int, int], int]:
    """Return the node that follows (node, token), the first of equal ones; padding is left out."""
    found: dict[tuple[int, int], int] = {}
    for node, key in enumerate(zip(parent[:length], tokens[:length], strict=True)):
        found.setdefault(key, node)
    return found
