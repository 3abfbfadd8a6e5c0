"""Drafting a tree with a model, one level per forward.

`draft_best` chooses the nodes by their scores, under a budget; `draft_shape` fills a tree whose shape is given. Both
are deterministic given the noise, so sample and match keeps them exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outpace.draft.likeliest import likeliest
from outpace.draft.reading import SPREAD, Drafter, branch_scores, columns
from outpace.run.tree import TokenTree, ancestors, kept_order, largest
from outpace.types import View

__all__ = ["draft_best", "draft_shape"]


def draft_best(
    drafter: Drafter,
    view: View,
    levels: Sequence[int],
    budget: int,
    *,
    width: int = 0,
    by_slot: bool = False,
    floor: float = 0.0,
    min_gain: float = -1.0,
    spread: float = SPREAD,
) -> TokenTree:
    """Draft the `budget` best nodes of each row's tree of continuations.

    A node's score is the log-probability that the target's walk reaches it (`branch_scores`, summed along the path).
    It is ranked by that, or by its slot: the chance that the walk reaches its parent and takes none of its likelier
    siblings. Neither rises from parent to child, so whatever falls out of the best stays out, with all that would
    hang on it; after each level only the best nodes are kept, and only those among them are expanded that can still
    have a child among the best. The result is the best tree of all, not only of those looked at.

    Args:
        drafter: who is asked.
        view: the run.
        levels: depth limit per row; 0 = this row drafts nothing.
        budget: most nodes per row.
        width: most nodes per level; 0 = no other limit than the budget.
        by_slot: rank by slot.
        floor: nodes ranked below this probability are not drafted.
        min_gain: a row stops growing after a level that raised its expected number of accepted drafts by no more.
        spread: as in `branch_scores`.
    """
    # 1 Begin at the final text: a frontier of one node, the root, whose reach is certain where a row may draft.
    # Penalties see the final text alone: drafts differ by branch, and a wrong penalty costs acceptance only.
    history = view.sampler.history(view.texts, view.prompts, drafter.vocab_size)
    logits, ids = columns(drafter, view, drafter.texts(view, levels).unsqueeze(1))
    rows, device = logits.shape[0], logits.device
    limit = torch.tensor(levels, device=device)
    start = torch.tensor(view.lengths, device=device).unsqueeze(1)
    tree = TokenTree(start.new_zeros(rows, 0), start.new_zeros(rows, 0), [0] * rows)
    tree.score = key = logits.new_zeros(rows, 0, dtype=torch.float64)
    frontier = torch.full((rows, 1), -1, device=device)
    base = torch.where(limit > 0, 0.0, float("-inf")).double().unsqueeze(1)  # log-probability of reaching the frontier
    for level in range(max(levels, default=0)):
        size, before = tree.tokens.shape[1], tree.score.exp().sum(-1)
        # 2 Give every frontier node its likeliest children. More than the budget could never all be kept.
        log_probs = branch_scores(view, logits, start + level, history, spread, ids)
        found, found_key = _children(log_probs, base, frontier, budget, by_slot)
        if ids is not None:
            found.tokens = ids[found.tokens]
        tree, key = _joined(tree, key, found, found_key, width or budget)
        # 3 Keep the best of old and new together: a new child may push an older node out, and nothing can hang on
        # that one, since no key rises from parent to child. Order is kept, so parents still precede children.
        is_kept = largest(key.masked_fill(key.exp() < floor, float("-inf")), budget)
        order, _ = kept_order(is_kept)
        is_new = (order >= size) & is_kept.gather(1, order)
        tree, key = tree.keep(is_kept), key.gather(1, order).masked_fill(~is_kept.gather(1, order), float("-inf"))
        assert tree.score is not None  # it has been set above
        tree.score = tree.score.masked_fill(key == float("-inf"), float("-inf"))
        # 4 Choose what grows on: nodes of this level that were kept and can still have a child among the best.
        is_growing = (tree.score.exp().sum(-1) - before > min_gain) & (level + 1 < limit)
        # Where the budget is spent, a first child gets in only if its parent's score beats the last of the best.
        last = key.amin(-1) if key.shape[1] == budget else torch.full_like(before, float("-inf"))
        is_open = is_new & is_growing.unsqueeze(1) & (tree.score > last.unsqueeze(1))
        frontier, _ = kept_order(is_open)
        if level + 1 == max(levels) or frontier.shape[1] == 0:
            break
        # 5 Ask the drafter what follows them, in one forward for all rows.
        is_real = is_open.gather(1, frontier)
        base = tree.score.gather(1, frontier).masked_fill(~is_real, float("-inf"))
        logits, ids = columns(drafter, view, drafter.nodes(tree, frontier, is_real))
    return tree


def _children(
    log_probs: Tensor, base: Tensor, frontier: Tensor, budget: int, by_slot: bool
) -> tuple[TokenTree, Tensor]:
    """Return the likeliest children of the frontier's nodes as [B, F * K] nodes, and their keys."""
    count = min(budget, log_probs.shape[-1])
    tokens = likeliest(log_probs.flatten(0, 1), count).view(*log_probs.shape[:2], count)
    values = log_probs.gather(2, tokens).double()
    score = base.unsqueeze(-1) + values
    key = score
    if by_slot:
        share = values.exp()
        slot = base.unsqueeze(-1) + (1 - (share.cumsum(-1) - share)).clamp_(min=0).log_()
        # Not below the score, which rounding could bring about, and not for a token that cannot be picked.
        key = torch.maximum(slot, score).masked_fill(values == float("-inf"), float("-inf"))
    parent = frontier.unsqueeze(-1).expand(tokens.shape)
    nodes = TokenTree(tokens.flatten(1), parent.flatten(1), [], score.flatten(1))
    return nodes, key.masked_fill(key.isnan(), float("-inf")).flatten(1)


def _joined(tree: TokenTree, key: Tensor, found: TokenTree, found_key: Tensor, most: int) -> tuple[TokenTree, Tensor]:
    """Return the tree with the `most` best of the found nodes behind its own, and all keys."""
    best_key, best = found_key.topk(min(most, found_key.shape[1]), dim=-1)
    assert tree.score is not None and found.score is not None  # both carry scores
    joined = TokenTree(
        torch.cat([tree.tokens, found.tokens.gather(1, best)], 1),
        torch.cat([tree.parent, found.parent.gather(1, best)], 1),
        [],
        torch.cat([tree.score, found.score.gather(1, best)], 1),
    )
    return joined, torch.cat([key, best_key], 1)


def draft_shape(
    drafter: Drafter,
    view: View,
    levels: Sequence[int],
    parent: Tensor,
    rank: Tensor,
    length: Sequence[int],
) -> tuple[TokenTree, Tensor]:
    """Fill a given shape: the node of rank r under a parent is the parent's r-th likeliest continuation.

    Args:
        drafter, view, levels: as in `draft_best`; nodes deeper than a row's limit are left out.
        parent: [B, W] int64 parents, -1 = the last final token; parents precede children.
        rank: [B, W] int64, 0 = likeliest.
        length: nodes per row.

    Returns:
        The tree, and its nodes' ranks [B, W'].
    """
    history = view.sampler.history(view.texts, view.prompts, drafter.vocab_size)
    logits, ids = columns(drafter, view, drafter.texts(view, levels).unsqueeze(1))
    rows, device = logits.shape[0], logits.device
    start, limit = torch.tensor([view.lengths, list(levels)], device=device).unsqueeze(-1)
    is_node = torch.arange(parent.shape[1], device=device) < torch.tensor(length, device=device).unsqueeze(1)
    # 1 Cut the shape to each row's limit; a depth of 0 marks what is no node.
    depth = ancestors(parent).sum(-1).masked_fill(~is_node, 0)
    is_kept = is_node & (depth <= limit)
    order, _ = kept_order(is_kept)
    tree = TokenTree(torch.zeros_like(parent), parent, list(length)).keep(is_kept)
    rank, depth = rank.gather(1, order), depth.gather(1, order).masked_fill(~is_kept.gather(1, order), 0)
    tree.score = torch.full(rank.shape, float("-inf"), dtype=torch.float64, device=device)
    num_ranks = min(int(rank.max()) + 1, logits.shape[-1]) if rank.numel() else 0
    # 2 Begin at the root: the first level's parents stand at place 0 of the frontier.
    slot = torch.zeros_like(rank)  # per node, where its parent stands in the frontier
    reached = torch.zeros(rows, 1, dtype=torch.float64, device=device)
    for level in range(int(depth.max()) if depth.numel() else 0):
        log_probs = branch_scores(view, logits, start + level, history, ids=ids)
        tokens = likeliest(log_probs.flatten(0, 1), num_ranks).view(*log_probs.shape[:2], num_ranks)
        values = reached.unsqueeze(-1) + log_probs.gather(2, tokens).double()
        tokens = tokens if ids is None else ids[tokens]
        # 3 Fill the level: a node takes the token of its rank from its parent's list.
        at = slot * num_ranks + rank.clamp(max=num_ranks - 1)
        is_child = (depth == level + 1) & (rank < num_ranks)
        tree.tokens = torch.where(is_child, tokens.flatten(1).gather(1, at), tree.tokens)
        tree.score = torch.where(is_child, values.flatten(1).gather(1, at), tree.score)
        # 4 Only nodes that have children in the shape are asked what follows; the root's -1 may stand for node 0
        # here, because no child of the root is two levels down.
        above = tree.parent.clamp(min=0)
        has_child = torch.zeros_like(above).scatter_add_(1, above, (depth == level + 2).long()) > 0
        frontier, _ = kept_order(has_child)
        if frontier.shape[1] == 0:
            break
        slot = (has_child.cumsum(-1) - 1).clamp_(min=0).gather(1, above)
        is_real = has_child.gather(1, frontier)
        reached = tree.score.gather(1, frontier).masked_fill(~is_real, float("-inf"))
        logits, ids = columns(drafter, view, drafter.nodes(tree, frontier, is_real))
    # 5 Leave out what could not be drafted: ranks beyond the vocabulary, and tokens that cannot be picked.
    is_drafted = tree.score > float("-inf")
    order, _ = kept_order(is_drafted)
    return tree.keep(is_drafted), rank.gather(1, order)
