"""Token trees as tensors, built and cut without Python per node."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from outpace.types import Proposal

__all__ = ["TokenTree", "ancestors", "depth", "kept_order", "largest", "merge", "sight_lines"]

_FEW = 1 << 10  # pairs of nodes that are looked at one by one on the host


@dataclass(slots=True)
class TokenTree:
    """Candidate continuations of every row, as trees that share a width.

    Attributes:
        tokens: [B, W] int64; nodes beyond `length[b]` are padding.
        parent: [B, W] int64, -1 = the last final token; parents precede children.
        length: nodes per row.
        score: [B, W] estimated log-probability that the walk reaches each node (never rises along a path), or None.
    """

    tokens: Tensor
    parent: Tensor
    length: list[int]
    score: Tensor | None = None

    def proposal(self, origin: str) -> Proposal:
        """Return the tree as a deterministic proposal."""
        return Proposal(self.tokens, list(self.length), self.parent, origin=origin)

    def paths(self, nodes: Tensor) -> list[list[list[int]]]:
        """Return per row and node [B, F] the tokens from the root to it, its own last; none for -1, the root itself."""
        found = []
        table = zip(nodes.tolist(), self.tokens.tolist(), self.parent.tolist(), strict=True)
        for asked, tokens, parent in table:
            paths = []
            for node in asked:
                path: list[int] = []
                while node >= 0:
                    path.append(tokens[node])
                    node = parent[node]
                paths.append(path[::-1])
            found.append(paths)
        return found

    def keep(self, is_kept: Tensor) -> TokenTree:
        """Return the tree of some nodes, in their order; the parent of a kept node must be kept too.

        Args:
            is_kept: [B, W] bool; padding is never kept.
        """
        order, length = kept_order(is_kept)
        # Where the kept nodes went, with a place in front for the root.
        place = torch.nn.functional.pad(is_kept.cumsum(-1) - 1, (1, 0), value=-1)
        is_node = is_kept.gather(1, order)
        return TokenTree(
            self.tokens.gather(1, order),
            place.gather(1, self.parent.gather(1, order) + 1).masked_fill(~is_node, -1),
            length,
            None if self.score is None else self.score.gather(1, order),
        )

    def best(self, budget: int) -> TokenTree:
        """Return the `budget` likeliest nodes of each row, which form a tree since scores never rise along a path.

        Source: Wang et al. (2024), arXiv 2406.17276: the sum of the path probabilities of the nodes is the
        expected number of accepted drafts, so the likeliest nodes are the best tree of their number.
        """
        width = self.tokens.shape[1]
        if self.score is None or budget >= width:
            return self
        lengths = torch.tensor(self.length, device=self.tokens.device).unsqueeze(1)
        order = torch.arange(width, device=self.tokens.device)
        return self.keep(largest(self.score.masked_fill(order >= lengths, float("-inf")), budget))


def largest(key: Tensor, count: int) -> Tensor:
    """Return [B, W] bool, true at the `count` largest entries of each row; of equals the earlier; never at -inf or NaN.

    Being stable, it keeps the parent of every node that it keeps if keys never rise from parent to child.
    """
    key = key.masked_fill(key.isnan(), float("-inf"))
    best = key.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    is_best = torch.zeros(key.shape, dtype=torch.bool, device=key.device).scatter_(1, best, True)
    return is_best & (key > float("-inf"))


def kept_order(is_kept: Tensor) -> tuple[Tensor, list[int]]:
    """Return [B, N] indices of the true entries of each row, in order, padded with others; and how many there are."""
    length = is_kept.sum(-1).tolist()
    return (~is_kept).to(torch.int8).sort(dim=-1, stable=True).indices[:, : max(length, default=0)], length


def merge(paths: Tensor, score: Tensor | None = None) -> TokenTree:
    """Return the tree (trie) of several continuations per row; shared beginnings become one node.

    Nodes are ordered by depth, and at one depth by the first path that holds them.

    Args:
        paths: [B, N, D] int64 tokens; -1 from the end of a path on.
        score: [B, N, D] estimated log-probability of each path up to each token; a node gets that of its first path.
    """
    rows, count, longest = paths.shape
    number = torch.full((rows, count), -1, dtype=torch.int64, device=paths.device)  # of the node each path stands at
    alive = torch.ones(rows, count, dtype=torch.bool, device=paths.device)
    total = torch.zeros(rows, 1, dtype=torch.int64, device=paths.device)
    tokens, parents, scores, fresh = [], [], [], []
    for level in range(longest):
        token = paths[:, :, level]
        alive = alive & (token >= 0)
        same = (token.unsqueeze(1) == token.unsqueeze(2)) & (number.unsqueeze(1) == number.unsqueeze(2))
        first = (same & alive.unsqueeze(1) & alive.unsqueeze(2)).to(torch.int8).argmax(-1)  # first path at the node
        is_new = alive & (first == torch.arange(count, device=paths.device))
        own = total + is_new.cumsum(-1) - 1
        tokens.append(token)
        parents.append(number)
        fresh.append(is_new)
        if score is not None:
            scores.append(score[:, :, level])
        number = torch.where(alive, own.gather(1, first), number)
        total = total + is_new.sum(-1, keepdim=True)
    if not tokens:
        return TokenTree(paths.new_zeros(rows, 0), paths.new_zeros(rows, 0), [0] * rows)
    is_new = torch.cat(fresh, 1)
    length = [int(n) for n in total.flatten().tolist()]
    order = (~is_new).to(torch.int8).sort(dim=-1, stable=True).indices[:, : max(length)]
    picked = [None if not parts else torch.cat(parts, 1).gather(1, order) for parts in (tokens, parents, scores)]
    assert picked[0] is not None and picked[1] is not None  # there is a level
    return TokenTree(picked[0].clamp(min=0), picked[1], length, picked[2])


def ancestors(parent: Tensor) -> Tensor:
    """Return [B, W, W] bool: node (row) sees node (column) if it is an ancestor or itself.

    Args:
        parent: [B, W] int64, -1 = last final token; parents precede children.
    """
    width = parent.shape[1]
    if parent.device.type == "cpu" and 0 < parent.numel() * width <= _FEW:
        return torch.tensor([sight_lines(own) for own in parent.tolist()])
    # Column 0 stands for the root, so that -1 needs no special case.
    step = torch.nn.functional.one_hot(parent + 1, width + 1)[:, :, 1:].to(torch.float32)
    reach = step + torch.eye(width, device=parent.device)
    length = 1
    while length < width:  # squaring doubles the length of the paths covered
        reach = (reach @ reach).clamp_(max=1)
        length *= 2
    return reach > 0


def sight_lines(parents: list[int]) -> list[list[bool]]:
    """Return what each node of a tree sees: after a forward, a few lists take less time than one call of torch."""
    lines: list[list[bool]] = []
    for node, parent in enumerate(parents):
        line = lines[parent].copy() if 0 <= parent < node else [False] * len(parents)
        line[node] = True
        lines.append(line)
    return lines


def depth(visible: Tensor) -> Tensor:
    """Return [B, W] int64: 1 for children of the root, from `ancestors`."""
    return visible.sum(-1)
