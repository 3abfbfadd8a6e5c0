"""Traversal verification: a tree is searched from its leaves to its root for a path that may be kept whole.

Source: Weng et al. (2025), arXiv 2505.12398. On a chain this is block verification.
Guarantee: distribution. With p and q the target's and the drafts' laws of the children of node v, and a the share of
the target's law at v that may be kept below v (1 at the root): child x enters with share min(1, a p(x) / q(x)). The
children are searched in their order, each with all that hangs on it, before v itself is tested. A leaf, or a node whose
children have all failed, is kept with its share. If child x fails with all below it, what is left of a p is (a p - q)+,
of mass S; failing had probability 1 - a + S; so v goes on with the law p' = (a p - q)+ / S and the share
S / (S + 1 - a), and without replacement with q' = norm(q without x). By induction each node keeps exactly its share of
the target's law.

The shape of the tree must not depend on the drafted tokens. That of a stochastic beam does: how many children a node
has tells of the tokens that its siblings hold. Tests look ahead, so their noise and the drafts' must be new in each
step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outpace.accept.match import sample_and_match
from outpace.accept.nodes import chance_of, decide, is_real, left_over, node_laws, parents
from outpace.run.tree import ancestors
from outpace.sampling import place_in_step
from outpace.types import Decision, Proposal, Scores, View

__all__ = ["traversal_verification"]


def traversal_verification(proposal: Proposal, scores: Scores, view: View) -> Decision:
    """Accept a path of a tree, or of a chain, of sampled drafts.

    Args:
        proposal: siblings stand in the order in which they were drawn; `law` says whether with replacement. Drafts
            without a law are deterministic and get sample and match.
        scores: logits [B, 1 + W, V], root first.
        view: whose sampler draws.
    """
    if proposal.law is None or proposal.tokens.shape[1] == 0:
        return sample_and_match(proposal, scores, view)
    # One node per turn in all rows, leaves first: the first one kept ends its row's search.
    search = _Search(proposal, node_laws(proposal, scores, view))
    lengths = torch.tensor(view.lengths, device=scores.logits.device)
    for turn in range(proposal.tokens.shape[1]):
        place = place_in_step(lengths, torch.tensor(turn, device=lengths.device))
        is_kept = view.sampler.accepts(search.chance(turn).unsqueeze(1), place.unsqueeze(1))[:, 0]
        if search.settle(turn, is_kept):
            break
    return decide(proposal, scores, view, search.end, search.law())


class _Search:
    """Where the search stands in every row; indices into the root and the nodes are one above the nodes' own."""

    def __init__(self, proposal: Proposal, target: Tensor) -> None:
        assert proposal.law is not None  # the acceptor has checked
        self.tokens, self.has_replacement = proposal.tokens, proposal.law.has_replacement
        self.target, draft = target, proposal.law.probs.double()
        self.above, self.real = parents(proposal) + 1, is_real(proposal)
        rows, width = self.tokens.shape

        # Whose turn comes when: a node's, when all below it have failed.
        self.every = torch.arange(rows, device=target.device)
        self.sees = ancestors(parents(proposal))
        self.depth = self.sees.sum(-1)
        self.order = _children_first(self.sees, self.real)
        self.rank = torch.empty_like(self.order).scatter_(
            1, self.order, torch.arange(width, device=target.device).expand(rows, width)
        )

        # The law of each node's children, which every child carries: kept at the first of them.
        is_child = self.above.unsqueeze(1) == torch.arange(width + 1, device=target.device).view(1, -1, 1)
        self.first = (is_child & self.real.unsqueeze(1)).to(torch.int8).argmax(-1)
        self.draft = draft.clone()

        # How much of the target's law may be kept at each node, from the root, which is kept for sure, down.
        every = self.every.unsqueeze(1)
        self.ratio = chance_of(target[every, self.above, self.tokens], draft.gather(-1, self.tokens[..., None])[..., 0])
        self.share = torch.ones(rows, width + 1, dtype=target.dtype, device=target.device)
        self._enter(self.real)
        self.end = torch.full_like(self.every, -1)
        self.is_open = torch.ones_like(self.every, dtype=torch.bool)

    def chance(self, turn: int) -> Tensor:
        """Return the chance of the node whose turn it is, [B]."""
        return self.share[self.every, self.order[:, turn] + 1]

    def settle(self, turn: int, is_kept: Tensor) -> bool:
        """End the search at the node if it was kept, else tell its parent; return whether nothing is left to do."""
        node = self.order[:, turn]
        is_tested = self.is_open & self.real[self.every, node]
        self.end = torch.where(is_tested & is_kept, node, self.end)
        self.is_open = self.is_open & ~(is_tested & is_kept)
        is_rejected = is_tested & ~is_kept
        if not bool(is_rejected.any()):
            return True
        self._take_from_parent(node, is_rejected, turn)
        return False

    def law(self) -> Tensor:
        """Return what the next token is drawn from, [B, V]."""
        return self.target[self.every, self.end + 1]

    def _take_from_parent(self, node: Tensor, is_rejected: Tensor, turn: int) -> None:
        # Stage 1: what the failed child could not give is left to its parent, as a law and as a share.
        every, only = self.every, is_rejected.unsqueeze(1)
        parent = self.above[every, node]
        first = self.first[every, parent]
        share, target, draft = self.share[every, parent], self.target[every, parent], self.draft[every, first]
        rest, mass = left_over(share.unsqueeze(1) * target, draft)
        mass = mass[:, 0]
        target = torch.where(only & (mass > 0).unsqueeze(1), rest, target)
        share = torch.where(is_rejected, chance_of(mass, mass + 1 - share), share)

        # Stage 2: without replacement, no later sibling can hold the child's token.
        if not self.has_replacement:
            left = draft.scatter(1, self.tokens[every, node].unsqueeze(1), 0.0)
            draft = torch.where(only, left / left.sum(-1, keepdim=True).clamp_(min=1e-300), draft)
            self.draft[every, first] = draft
        self.target[every, parent], self.share[every, parent] = target, share

        # Stage 3: the shares of all that is still to come below the parent.
        is_sibling = only & (self.above == parent.unsqueeze(1))
        ratio = chance_of(target.gather(1, self.tokens), draft.gather(1, self.tokens))
        self.ratio = torch.where(is_sibling, ratio, self.ratio)
        is_below = (parent == 0).unsqueeze(1) | self.sees[every, :, (parent - 1).clamp(min=0)]
        self._enter(only & is_below & (self.rank > turn) & (self.depth > self._depth_of(parent)))

    def _depth_of(self, index: Tensor) -> Tensor:
        return torch.nn.functional.pad(self.depth, (1, 0)).gather(1, index.unsqueeze(1))

    def _enter(self, is_new: Tensor) -> None:
        """Compute the shares of nodes from those of their parents, from the top down."""
        for depth in range(1, int(self.depth.max()) + 1):
            share = (self.share.gather(1, self.above) * self.ratio).clamp(max=1)
            self.share[:, 1:] = torch.where(is_new & (self.depth == depth), share, self.share[:, 1:])


def _children_first(sees: Tensor, real: Tensor) -> Tensor:
    """Return [B, W] nodes in post-order, siblings in their order, padding last.

    A node's key is the list of nodes on its path, followed by numbers above all nodes: keys in alphabetical order put
    everything below a node in front of it.
    """
    width = sees.shape[1]
    path = torch.where(sees, torch.arange(width, device=sees.device), width).sort(-1).values
    path = path.masked_fill(~real.unsqueeze(-1), width)
    order = torch.arange(width, device=sees.device).expand(path.shape[:2])
    for place in reversed(range(int(sees.sum(-1).max()))):
        key = path[:, :, place].gather(1, order)
        order = order.gather(1, key.argsort(dim=-1, stable=True))
    return order
