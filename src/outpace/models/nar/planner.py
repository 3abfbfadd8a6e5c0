"""A pointer network that picks, one after another, the tokens that a text is to hold: a table's, or a graph's.

Papers: of tables: Wang et al. (2021), arXiv 2105.14778 (SANA), section 3.1: the tokens that table and text share, in
the order of the text; of graphs: Zou et al. (2021), arXiv 2109.04084 (CG-nAR), section 3.1: concepts near those of what
was said before. Both are completed by networks that keep what was picked.
Differences: one small recurrent pointer serves both; edges of the graph are pointwise mutual information in training
pairs, not ConceptNet's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.papers import Paper

from .network import Pass
from .sketch import SPECIAL

if TYPE_CHECKING:
    from .sketched import Sketched

__all__ = ["PAPERS", "Planner", "shared_order"]

PAPERS = (
    Paper(
        "Thinking Clearly, Talking Fast: Concept-Guided Non-Autoregressive Generation for Open-Domain Dialogue Systems",
        "Zou et al.",
        2021,
        "2109.04084",
        17,
        "ConceptNet (edges are counted in the training pairs) and its graph attention.",
        "outpace train dialogue-concepts",
    ),
    Paper(
        "Sketch and Refine: Towards Faithful and Informative Table-to-Text Generation",
        "Wang et al.",
        2021,
        "2105.14778",
        65,
        "WikiPerson and WikiBio, and its copy mechanism.",
        "outpace train tables-skeleton",
    ),
)
_LEAST = 5  # pairs in which both tokens of an edge must occur
_MOST = 16_000  # pairs that are counted
_RARE = 3.0  # nats of importance from which on a token counts as a concept


class Planner(nn.Module):
    """A recurrent pointer over candidates.

    Args:
        config: sizes of the network that it belongs to.
    """

    graph: Tensor
    weights: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.begin, self.cell = nn.Linear(width, width), nn.GRUCell(width, width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.stop = nn.Parameter(torch.zeros(width))
        self.closeness = nn.Linear(1, width)
        shape = config.vocab_size, config.neighbours
        self.register_buffer("graph", torch.full(shape, -1, dtype=torch.int64))
        self.register_buffer("weights", torch.zeros(shape))

    def connect(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], starts: Tensor) -> None:
        """Make the graph: each token's neighbours are the tokens of other sides that it predicts best."""
        sources, targets = sources[:_MOST], targets[:_MOST]
        vocab, total = self.config.vocab_size, len(sources)
        seen = [torch.zeros(total, vocab, dtype=torch.bool) for _ in range(2)]
        for side, texts in zip(seen, (sources, targets), strict=True):
            for row, text in enumerate(texts):
                side[row, torch.as_tensor(text, dtype=torch.int64)] = True
        read, said = (side.float() for side in seen)
        both, alone = read.T @ said, torch.outer(read.sum(0), said.sum(0))
        rare = (total / said.sum(0).clamp(min=1)).log() > _RARE
        is_concept = rare & starts & (torch.arange(vocab) >= SPECIAL)
        fits = (both >= _LEAST) & is_concept & (read.sum(0) < total / 2)[:, None]
        closeness = (both * total / alone.clamp(min=1)).clamp(min=1).log().masked_fill(~fits, 0.0)
        weights, found = closeness.topk(self.config.neighbours, dim=1)
        self.graph.copy_(found.masked_fill(weights <= 0, -1))
        self.weights.copy_(weights)

    def candidates(self, net: Sketched, run: Pass) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is picked among: tokens [B, C], states [B, C, W], and which are real [B, C]."""
        if self.config.plan == "source":
            return run.sources, run.states, run.is_real & (run.sources >= SPECIAL)
        rows = []
        for source, is_real in zip(run.sources, run.is_real, strict=True):
            seen = source[is_real & (source >= SPECIAL)]
            near, weights = self.graph[seen].flatten(), self.weights[seen].flatten()
            total = weights.new_zeros(self.config.vocab_size).index_add(0, near.clamp(min=0), weights * (near >= 0))
            rows.append(total.topk(min(self.config.candidates, len(total))))
        closeness, tokens = torch.stack([row.values for row in rows]), torch.stack([row.indices for row in rows])
        states = net.embed_tokens(tokens) + self.closeness(closeness[:, :, None].to(run.states.dtype))
        return tokens, states, closeness > 0

    def plan(self, net: Sketched, run: Pass) -> list[list[list[int]]]:
        """Return per row the phrases that are picked: pieces of one word, or of the source, in a row are one phrase."""
        tokens, states, is_real = self.candidates(net, run)
        keys, state, is_free = self._keys(states), self._first(run), is_real.clone()
        picked = [list[int]() for _ in range(len(tokens))]
        is_done = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        for _ in range(min(self.config.longest_plan, tokens.shape[1])):
            scores = self._scores(state, keys, is_free)
            # Of many candidates none may be likelier than stopping although one of them should come.
            is_done = is_done | (scores.softmax(-1)[:, -1] >= 0.5)
            if bool(is_done.all()):
                break
            at = scores[:, :-1].argmax(-1)
            for row, place in enumerate(at.tolist()):
                picked[row] += [] if is_done[row] else [place]
            is_free = is_free.scatter(1, at[:, None], False)
            state = self.cell(self._at(states, at), state)
        return [self._phrases(net, *row) for row in zip(tokens.tolist(), picked, strict=True)]

    def gold(self, net: Sketched, run: Pass) -> list[list[list[int]]]:
        """Return what should be picked for the targets of a training batch; `extra` keeps the loss of picking it."""
        tokens, states, is_real = self.candidates(net, run)
        allowed = is_real if self.config.plan == "source" else is_real & (net.importance > _RARE)[tokens]
        known, lengths = tokens.masked_fill(~allowed, -1).tolist(), run.lengths.tolist()
        texts = [row[:count] for row, count in zip(run.targets.tolist(), lengths, strict=True)]
        orders = [shared_order(*row)[: self.config.longest_plan] for row in zip(known, texts, strict=True)]
        run.extra["plan_loss"] = self._loss(states, is_real, self._first(run), orders)
        return [self._phrases(net, *row) for row in zip(tokens.tolist(), orders, strict=True)]

    def _loss(self, states: Tensor, is_real: Tensor, state: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
        stop, most = states.shape[1], max(map(len, orders))
        wanted = torch.tensor([[*order, stop, *[-100] * (most - len(order))] for order in orders], device=states.device)
        keys, losses, is_free = self._keys(states), states.new_zeros(len(states)), is_real.clone()
        for step in range(most + 1):
            scores = self._scores(state, keys, is_free)
            losses = losses + F.cross_entropy(scores, wanted[:, step], reduction="none", ignore_index=-100)
            at = wanted[:, step].clamp(min=0, max=stop - 1)
            is_free = is_free.scatter(1, at[:, None], is_free.gather(1, at[:, None]) & (wanted[:, step, None] >= stop))
            state = self.cell(self._at(states, at), state)
        return losses

    def _phrases(self, net: Sketched, tokens: Sequence[int], picked: Sequence[int]) -> list[list[int]]:
        starts, found = net.starts, list[list[int]]()
        for before, place in zip([-2, *picked], picked, strict=False):
            if self.config.plan == "source" and place == before + 1 and not starts[tokens[place]]:
                found[-1].append(tokens[place])
            else:
                found.append([tokens[place]])
        return found

    def _first(self, run: Pass) -> Tensor:
        real = run.is_real[:, :, None].to(run.states.dtype)
        mean = (run.states * real).sum(1) / real.sum(1)
        return torch.tanh(self.begin(mean))

    def _keys(self, states: Tensor) -> Tensor:
        stop = self.stop.expand(len(states), 1, -1)
        return torch.cat([self.key(states), stop], 1)

    def _scores(self, state: Tensor, keys: Tensor, is_free: Tensor) -> Tensor:
        scores = (self.query(state)[:, None] @ keys.transpose(1, 2))[:, 0] * keys.shape[-1] ** -0.5
        masked: Tensor = scores.masked_fill(~F.pad(is_free, (0, 1), value=True), float("-inf"))
        return masked

    @staticmethod
    def _at(states: Tensor, at: Tensor) -> Tensor:
        return states[torch.arange(len(states), device=states.device), at]


def shared_order(candidates: Sequence[int], text: Sequence[int]) -> list[int]:
    """Return places of candidates in the order in which a text holds them, each at most once; -1 is no candidate.

    Of equal candidates the one behind that of the token before is taken, else the first that is left.
    """
    free: dict[int, list[int]] = {}
    for place, token in enumerate(candidates):
        if token >= 0:
            free.setdefault(token, []).append(place)
    found = list[int]()
    for token in text:
        left = free.get(token, [])
        if left:
            following = found[-1] + 1 if found else -1
            place = following if following in left else left[0]
            left.remove(place)
            found.append(place)
    return found
