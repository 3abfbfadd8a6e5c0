"""Drafting with a masked model: of the likeliest tokens of every place, the path that reads best from left to right.

Source: Li et al. (2025), arXiv 2510.02358, DiffuSpec, causal-consistency path search: a beam search over the places'
candidates whose score mixes the masked model's law, which sees both sides, and an n-gram's, which sees the path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from outpace.canvas.block_drafter import BlockDrafter, greatest
from outpace.draft.reading import branch_scores
from outpace.draft.trigram import TrigramMemory, TrigramTable
from outpace.types import Context, View

__all__ = ["PathDrafter", "best_path"]

_KNOWN = 64  # successors of two tokens that are told apart
Candidates = list[tuple[int, float]]  # tokens of a place and their log-probabilities


@dataclass
class PathDrafter(BlockDrafter):
    """A masked model, and per row the tri-grams of its text as the proxy of the target.

    Attributes:
        tables: per row, what followed each two tokens; with what a memory of other texts knows.
        beam: paths that are followed at once.
        most: candidates per place, at most;
        mass: and no more than hold this share of its law.
        proxy: weight of the tri-grams.
    """

    tables: list[TrigramTable] = field(default_factory=list)
    beam: int = 3
    most: int = 15
    mass: float = 0.8
    proxy: float = 0.5

    def read(self, context: Context, memory: TrigramMemory | None) -> PathDrafter:
        """Return itself, with the tri-grams of the joining rows' texts and of a memory."""
        self.tables = [TrigramTable(_KNOWN, len(text), memory) for text in context.texts]
        return self

    def _draw(
        self, view: View, lines: Sequence[object], asked: Sequence[list[int]], logits: Tensor
    ) -> tuple[list[list[int]], np.ndarray]:
        """Return the tokens [B, A] of each row's best path, and the greatest chances of its places.

        What the masked model says of a token is how likely the target's own noise picks it, so that drafts are coupled
        to it at any temperature; penalties see the text alone.
        """
        count, vocab = logits.shape[1:]
        place = torch.tensor([places + [0] * (count - len(places)) for places in asked], device=logits.device)
        history = view.sampler.history(view.texts, view.prompts, vocab)
        log_probs = branch_scores(view, logits, place, history)
        top = log_probs.topk(min(self.most, vocab), dim=-1)
        tokens, values = top.indices.tolist(), top.values.tolist()
        drawn = []
        for row, places in enumerate(asked):
            text, table = view.texts[row], self.tables[row]
            table.extend(text)
            drafted: list[int] = lines[row].drafts  # type: ignore[attr-defined]
            before = [*text, *drafted[: places[0] - len(text)]] if places else text
            lists = [_enough(tokens[row][i], values[row][i], self.mass) for i in range(len(places))]
            path = best_path(lists, before[-2:], table, self.beam, self.proxy)
            drawn.append(path + [0] * (count - len(path)))
        return drawn, greatest(view.sampler.process(logits, None) if history is None else log_probs)


def best_path(
    places: Sequence[Candidates], before: Sequence[int], table: TrigramTable, beam: int, proxy: float
) -> list[int]:
    """Return the tokens, one per place, whose sum of scores is the greatest that a beam search finds.

    A token has (1 - proxy) log p + proxy log n, with the masked model's p and the tri-gram law's n, 1/10 of which
    is spread over the candidates; where the two tokens before were never seen, p stands for n as well.

    Args:
        places: candidates, likeliest first.
        before: the two tokens before the first place, or fewer.
        table: the tri-grams.
        beam: paths that are followed at once.
        proxy: weight of the tri-grams.
    """
    paths: list[tuple[float, list[int]]] = [(0.0, list(before))]
    for candidates in places:
        grown = []
        for score, path in paths:
            law = dict(table.law(path[-2], path[-1])) if proxy and len(path) > 1 else {}
            for token, log_p in candidates:
                log_n = math.log(0.9 * law.get(token, 0.0) + 0.1 / len(candidates)) if law else log_p
                grown.append((score + (1 - proxy) * log_p + proxy * log_n, [*path, token]))
        paths = sorted(grown, key=lambda item: -item[0])[:beam]  # stable: of equals the drafter's likelier one
    return paths[0][1][len(before) :]


def _enough(tokens: Sequence[int], values: Sequence[float], mass: float) -> Candidates:
    """Return the first tokens that together hold the mass, and no impossible one but the first."""
    found: Candidates = []
    held = 0.0
    for token, value in zip(tokens, values, strict=True):
        if found and (held >= mass or value == -math.inf):
            break
        found.append((token, value))
        held += math.exp(value)
    return found
