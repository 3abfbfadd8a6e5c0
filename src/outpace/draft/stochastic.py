"""Sampled trees: drafts drawn from the drafter's law, with the law attached, one level per forward.

Sources: Sun et al. (2023), SpecTr, arXiv 2310.15141 (independent chains); Yang et al. (2024), arXiv 2401.06706
(candidates with and without replacement); Jeon et al. (2024), Recursive Speculative Decoding, arXiv 2402.14160
(constant branching by Gumbel-top-k, RSD-C; stochastic beam search, RSD-S, from Kool et al. 2019, arXiv 1903.06059).

All noise is of the `draft` stream and new in every step. At temperature 0 the law has one token and draws are no
choice; then siblings are the likeliest tokens, deterministic, and carry no law.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor

from outpace.draft.reading import Drafter, columns
from outpace.run.tree import TokenTree
from outpace.sampling import gumbel, place_in_step
from outpace.types import Proposal, Sampled, Stream, View

__all__ = ["Growth", "draft_sampled"]


@dataclass(frozen=True, slots=True)
class Growth:
    """How a sampled tree grows.

    Attributes:
        branches: children per node, level by level.
        has_replacement: siblings are independent draws; False = they are drawn without replacement, in their order.
        beam: nodes kept per level by stochastic beam search, whatever `branches` says besides the depth; 0 = all.
    """

    branches: tuple[int, ...]
    has_replacement: bool = True
    beam: int = 0

    @property
    def levels(self) -> int:
        """Depth."""
        return len(self.branches)

    @property
    def width(self) -> int:
        """Most nodes."""
        return self.beam * self.levels if self.beam else sum(accumulate(self.branches, mul))

    def levels_within(self, slots: int) -> int:
        """Return how many levels can be drafted with so many cache slots behind the text; the last needs none."""
        sizes = [self.beam] * self.levels if self.beam else list(accumulate(self.branches, mul))
        return 1 + len([total for total in accumulate(sizes[:-1]) if total <= slots])

    @property
    def is_chain(self) -> bool:
        """Whether no node can have a sibling."""
        return self.beam == 1 if self.beam else max(self.branches) == 1


@dataclass(slots=True)
class _Level:
    """The nodes of one level, and what a stochastic beam knows of them.

    Attributes:
        nodes: [B, F] index of each, -1 = the last final token.
        logits: [B, F, K] the drafter's, processed.
        law: [B, F, K] what children are drawn from.
        tokens: [K] of the columns.
        reached: [B, F] log-probability of the path.
        value: [B, F] perturbed log-probability: the Gumbel value of the best path through the node.
    """

    nodes: Tensor
    logits: Tensor
    law: Tensor
    tokens: Tensor
    reached: Tensor
    value: Tensor


def draft_sampled(drafter: Drafter, view: View, reach: Sequence[int], shape: Growth, *, origin: str) -> Proposal:
    """Draft one sampled tree per row.

    Args:
        drafter: who is asked; its cache holds the texts when this returns, and no drafts.
        view: the run.
        reach: levels per row; 0 = this row drafts nothing.
        shape: how the tree grows.
        origin: who drafts.
    """
    logits, ids = columns(drafter, view, drafter.texts(view, reach).unsqueeze(1))
    rows, device, vocab = logits.shape[0], logits.device, drafter.vocab_size
    every = torch.arange(vocab, device=device)
    none = torch.zeros(rows, 0, dtype=torch.int64, device=device)
    tree = TokenTree(none, none, [0] * rows)
    limit = torch.tensor(list(reach), device=device)
    laws: list[Tensor] = []
    reached = value = torch.zeros(rows, 1, dtype=torch.float64, device=device)
    nodes = torch.full((rows, 1), -1, device=device)
    for depth in range(max(reach)):
        # 1 The law that this level's nodes are the roots of: processed as the target's own would be, on each path.
        logits = _processed(view, logits, tree, nodes)
        law = view.sampler.law(logits.flatten(0, 1)).probs().view(logits.shape)
        level = _Level(nodes, logits, law, every if ids is None else ids, reached, value)
        # 2 Draw the children; a child says by `column` which node of the level it hangs on.
        column, tokens, reached, value = _children(view, level, shape, depth, tree.tokens.shape[1])
        # 3 Note what each was drawn from: the acceptor divides by it, so it must be the law before any removal.
        drawn_from = law.gather(1, column.unsqueeze(-1).expand(-1, -1, law.shape[-1]))
        if ids is not None:
            drawn_from = drawn_from.new_zeros(*column.shape, vocab).index_copy_(-1, ids, drawn_from)
        laws.append(drawn_from)
        # 4 Hang them on. Rows of other reach share the width: their nodes beyond it count as padding.
        is_drafted = (limit > depth).tolist()
        size = tree.tokens.shape[1]
        tree = TokenTree(
            torch.cat([tree.tokens, tokens], 1),
            torch.cat([tree.parent, nodes.gather(1, column)], 1),
            [size + tokens.shape[1] if more else old for more, old in zip(is_drafted, tree.length, strict=True)],
        )
        nodes = torch.arange(size, size + tokens.shape[1], device=device).expand(rows, -1)
        if depth + 1 < max(reach):
            is_real = (limit > depth + 1).unsqueeze(1).expand(nodes.shape)
            logits, ids = columns(drafter, view, drafter.nodes(tree, nodes, is_real))
    is_sampled = not view.sampler.is_greedy
    sampled = Sampled(torch.cat(laws, 1), shape.has_replacement) if is_sampled else None
    return Proposal(tree.tokens, tree.length, None if shape.is_chain else tree.parent, law=sampled, origin=origin)


def _processed(view: View, logits: Tensor, tree: TokenTree, nodes: Tensor) -> Tensor:
    """Apply the sampler's processors to [B, F, V] logits; each node's history is its own path."""
    sampler = view.sampler
    if not sampler.settings.is_stateful:
        return sampler.process(logits, None)
    rows, texts = [], []
    for row, (ends, tokens, parent) in enumerate(
        zip(nodes.tolist(), tree.tokens.tolist(), tree.parent.tolist(), strict=True)
    ):
        for end in ends:
            path: list[int] = []
            while end >= 0:
                path, end = [tokens[end], *path], parent[end]
            rows.append(row)
            texts.append([*view.texts[row], *path])
    history = sampler.rows(rows).history(texts, [view.prompts[row] for row in rows], logits.shape[-1])
    return sampler.process(logits.flatten(0, 1), history).view(logits.shape)


def _children(view: View, level: _Level, shape: Growth, depth: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw the next level: per child the place of its parent in the level, its token, and the beam's two numbers.

    Args:
        view: the run.
        level: where it grows from.
        shape: how.
        depth: levels drawn so far.
        size: nodes drawn so far.
    """
    count, width = level.law.shape[1:]
    # A greedy sampler has nothing to draw: siblings are the likeliest tokens, by their own log-probability.
    scores = level.logits.double().log_softmax(-1)
    if not view.sampler.is_greedy:
        scores = level.law.log()
        if shape.has_replacement:
            return _independent(view, level, scores, shape.branches[depth], size)
        scores = scores + _noise(view, level.nodes + 1, level.tokens)
    # Without replacement = the largest of log-probability plus one Gumbel noise per token, in that order.
    if not shape.beam:
        tokens = level.tokens[scores.topk(min(shape.branches[depth], width), dim=-1).indices]
        column = torch.arange(count, device=tokens.device).unsqueeze(-1).expand(tokens.shape)
        return column.flatten(1), tokens.flatten(1), level.reached, level.value
    if view.sampler.is_greedy:
        total = level.value.unsqueeze(-1) + scores
    else:
        total = _bounded(scores + level.reached.unsqueeze(-1), level.value)
    # A stochastic beam takes the best of all nodes' children at once; the order of drawing is that of the values.
    value, best = total.flatten(1).topk(min(shape.beam, count * width), dim=-1)
    reached = (level.reached.unsqueeze(-1) + level.law.log()).flatten(1).gather(1, best)
    return best // width, level.tokens[best % width], reached, value


def _independent(
    view: View, level: _Level, log_law: Tensor, branches: int, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw each child from its parent's law with noise of its own."""
    rows, count, _ = log_law.shape
    own = torch.arange(size, size + count * branches, device=log_law.device).view(count, branches).expand(rows, -1, -1)
    tokens = level.tokens[(log_law.unsqueeze(2) + _noise(view, own, level.tokens)).argmax(-1)]
    column = torch.arange(count, device=tokens.device).unsqueeze(-1).expand(tokens.shape)
    return column.flatten(1), tokens.flatten(1), level.reached, level.value


def _noise(view: View, number: Tensor, tokens: Tensor) -> Tensor:
    """Return Gumbel noise [..., K] of tokens [K], for the step's draws with these numbers [B, ...]."""
    lengths = torch.tensor(view.lengths, device=number.device).view(-1, *[1] * (number.dim() - 1))
    key = view.sampler.noise(Stream.DRAFT, place_in_step(lengths, number))
    return gumbel(key, tokens)


def _bounded(perturbed: Tensor, most: Tensor) -> Tensor:
    """Return Gumbel values [B, F, V] shifted so that the largest of each node is `most` [B, F].

    Kool et al. (2019), appendix B.3: the children's values given their largest, which is their parent's.
    """
    limit = most.unsqueeze(-1)
    lift = limit - perturbed + (-torch.expm1(perturbed - perturbed.amax(-1, keepdim=True))).log()
    bounded = limit - lift.clamp(min=0) - torch.log1p((-lift.abs()).exp())
    return bounded.nan_to_num(nan=float("-inf"), neginf=float("-inf"))  # below a token that could not be drawn
