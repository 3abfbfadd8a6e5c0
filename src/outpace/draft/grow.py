"""Drafting a tree with a model, one level per forward.

`draft_best` chooses the nodes by their scores, under a budget; `draft_shape` fills a tree whose shape is given. Both
are deterministic given the noise, so sample and match keeps them exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from outpace.draft.likeliest import likeliest
from outpace.draft.reading import SPREAD, Drafter, Limits, branch_scores, columns
from outpace.run.tree import TokenTree, ancestors, kept_order
from outpace.types import View

__all__ = ["draft_best", "draft_shape"]

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def draft_best(
    drafter: Drafter,
    view: View,
    levels: Sequence[int],
    budget: int,
    *,
    width: int = 0,
    by_slot: bool = False,
    floor: float | Sequence[float] = 0.0,
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
        floor: nodes ranked below this probability are not drafted; or one probability for the likeliest node of a row,
            one for the next, and so on, `budget` of them, none below the one before it.
        min_gain: a row stops growing after a level that raised its expected number of accepted drafts by no more.
        spread: as in `branch_scores`.
    """
    floors = (float(floor),) * budget if isinstance(floor, int | float) else tuple(floor)
    at_once = drafter.best(view, levels, width, by_slot, Limits(floors, min_gain, spread))
    if at_once is not None:
        return at_once
    # 1 Begin at the final text: a frontier of one node, the root, whose reach is certain where a row may draft.
    # Penalties see the final text alone: drafts differ by branch, and a wrong penalty costs acceptance only.
    history = view.sampler.history(view.texts, view.prompts, drafter.vocab_size)
    logits, ids = columns(drafter, view, drafter.texts(view, levels).unsqueeze(1))
    limit, device = np.array(levels, dtype=np.int64), logits.device
    start = torch.tensor(view.lengths, device=device).unsqueeze(1)
    tree = _Nodes.none(len(limit))
    frontier = np.full((len(limit), 1), -1)
    base = np.where(limit > 0, 0.0, -np.inf)[:, None]  # log-probability of reaching the frontier
    for level in range(max(levels, default=0)):
        # 2 Give every frontier node its likeliest children. More than the budget could never all be kept.
        log_probs = branch_scores(view, logits, start + level, history, spread, ids)
        found = _children(log_probs, ids, base, frontier, budget, by_slot).best(width or budget)
        # 3 Keep the best of old and new together: a new child may push an older node out, and nothing can hang on
        # that one, since no key rises from parent to child. Order is kept, so parents still precede children.
        size, before = tree.key.shape[1], tree.reached()
        tree, is_new = tree.joined(found).kept(floors, size)
        # 4 Choose what grows on: nodes of this level that were kept and can still have a child among the best.
        is_growing = (tree.reached() - before > min_gain) & (level + 1 < limit)
        # Where the budget is spent, a first child gets in only if its parent's score beats the last of the best.
        last = tree.key.min(-1, initial=np.inf) if tree.key.shape[1] == budget else np.full(len(limit), -np.inf)
        is_open = is_new & is_growing[:, None] & (tree.score > last[:, None])
        frontier = _order(is_open)
        if level + 1 == max(levels) or frontier.shape[1] == 0:
            break
        # 5 Ask the drafter what follows them, in one forward for all rows.
        is_real = np.take_along_axis(is_open, frontier, 1)
        base = np.where(is_real, np.take_along_axis(tree.score, frontier, 1), -np.inf)
        asked, mask = (torch.from_numpy(values).to(device) for values in (frontier, is_real))
        logits, ids = columns(drafter, view, drafter.nodes(tree.on(device), asked, mask))
    return tree.on(device)


@dataclass(slots=True)
class _Nodes:
    """Nodes of every row, on the host: there are few, and an operation on tensors costs more than it does.

    Attributes:
        tokens, parent: [B, N] int64.
        score, key: [B, N] log-probability of the path, and what nodes are ranked by; -inf = padding.
    """

    tokens: Ids
    parent: Ids
    score: Floats
    key: Floats

    @staticmethod
    def none(rows: int) -> _Nodes:
        """Return no nodes."""
        ids, numbers = np.zeros((rows, 0), np.int64), np.zeros((rows, 0))
        return _Nodes(ids, ids, numbers, numbers)

    def reached(self) -> Floats:
        """Return how many nodes the walk is expected to come to, per row."""
        found: Floats = np.exp(self.score).sum(-1)
        return found

    def at(self, index: Ids) -> _Nodes:
        """Return the nodes at [B, M] places; parents are named as before."""
        tokens, parent = (np.take_along_axis(values, index, 1) for values in (self.tokens, self.parent))
        score, key = (np.take_along_axis(values, index, 1) for values in (self.score, self.key))
        return _Nodes(tokens, parent, score, key)

    def best(self, count: int) -> _Nodes:
        """Return the `count` best, the best first; of equals the earlier."""
        return self.at(np.argsort(-self.key, axis=1, kind="stable")[:, :count])

    def joined(self, other: _Nodes) -> _Nodes:
        """Return these, and others behind them, whose parents are among these."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("tokens", "parent", "score", "key"))
        return _Nodes(*(np.concatenate(pair, 1) for pair in pairs))

    def kept(self, floors: Sequence[float], size: int) -> tuple[_Nodes, Flags]:
        """Return the best above their floors in their order, and which of them stood at `size` or behind it.

        Being stable, this keeps the parent of every node that it keeps if keys never rise from parent to child.
        """
        best = np.argsort(-self.key, axis=1, kind="stable")[:, : len(floors)]
        keys = np.take_along_axis(self.key, best, 1)
        is_kept = np.zeros(self.key.shape, dtype=bool)
        np.put_along_axis(is_kept, best, (keys > -np.inf) & (np.exp(keys) >= floors[: best.shape[1]]), 1)
        order = _order(is_kept)
        place = np.pad(is_kept.cumsum(-1) - 1, ((0, 0), (1, 0)), constant_values=-1)  # where they went; the root first
        nodes, is_node = self.at(order), np.take_along_axis(is_kept, order, 1)
        nodes.parent = np.where(is_node, np.take_along_axis(place, nodes.parent + 1, 1), -1)
        nodes.score, nodes.key = np.where(is_node, nodes.score, -np.inf), np.where(is_node, nodes.key, -np.inf)
        return nodes, (order >= size) & is_node

    def on(self, device: torch.device) -> TokenTree:
        """Return the tree as tensors."""
        length = (self.key > -np.inf).sum(-1).tolist()
        tokens, parent, score = (torch.from_numpy(v).to(device) for v in (self.tokens, self.parent, self.score))
        return TokenTree(tokens, parent, length, score)


def _order(is_kept: Flags) -> Ids:
    """Return [B, N] places of the true entries of each row, in order, padded with others."""
    return np.argsort(~is_kept, axis=1, kind="stable")[:, : int(is_kept.sum(-1).max(initial=0))]


def _children(log_probs: Tensor, ids: Tensor | None, base: Floats, frontier: Ids, budget: int, by_slot: bool) -> _Nodes:
    """Return the likeliest children of the frontier's nodes as [B, F * K] nodes."""
    count = min(budget, log_probs.shape[-1])
    columns = likeliest(log_probs.flatten(0, 1), count).view(*log_probs.shape[:2], count)
    values = log_probs.gather(2, columns).double().cpu().numpy()
    tokens = (columns if ids is None else ids[columns]).cpu().numpy()
    key = score = base[..., None] + values
    if by_slot:
        share = np.exp(values)
        with np.errstate(divide="ignore"):
            slot = base[..., None] + np.log(np.maximum(1 - (share.cumsum(-1) - share), 0))
        # Not below the score, which rounding could bring about, and not for a token that cannot be picked.
        key = np.where(values == -np.inf, -np.inf, np.maximum(slot, score))
    parent = np.broadcast_to(frontier[..., None], tokens.shape)
    key = np.where(np.isnan(key), -np.inf, key)
    rows = len(tokens)
    return _Nodes(*(v.reshape(rows, -1) for v in (tokens, parent, score, key)))  # type: ignore[arg-type]


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
