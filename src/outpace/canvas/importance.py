"""Choosing among whole candidate texts by how much likelier a second model makes them than the one that drew them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from outpace.canvas.copies import Copy
from outpace.canvas.reading import Reading, order_noise, reread
from outpace.canvas.row import Canvas, Floats, Ids

__all__ = ["another", "chances", "log_weight", "taken", "whole"]

_APART = 1 << 20  # visits between two candidates: more than any text has


def log_weight(own: Tensor, guide: Tensor, tokens: Ids, asked: Ids, ends: Sequence[int] = ()) -> float:
    """Return log p_guide(text) - log p_own(drawn tokens), up to a constant: minus the energy (EDLM, arXiv 2410.21357).

    Args:
        own: [A, V] laws, as logits, that the drawn tokens come from.
        guide: [N, V] the guide's logits at N consecutive places, each given all before it.
        tokens: [N'] the candidate there, N' >= N.
        asked: [A] which of those places were drawn.
        ends: tokens that end the text; nothing behind the first one counts.
    """
    is_end = np.flatnonzero(np.isin(tokens, tuple(ends)))
    size = min(len(guide), int(is_end[0]) + 1 if len(is_end) else len(tokens))
    counted = np.flatnonzero(asked < size)
    text = torch.from_numpy(tokens[:size]).to(guide.device)
    drawn = torch.from_numpy(tokens[asked[counted]]).to(own.device)
    theirs = guide[:size].double().log_softmax(-1).gather(-1, text.unsqueeze(-1)).sum()
    ours = own[torch.from_numpy(counted).to(own.device)].double().log_softmax(-1).gather(-1, drawn.unsqueeze(-1)).sum()
    return float(theirs) - float(ours)


def chances(weights: Sequence[float]) -> Floats:
    """Return with what probability each candidate is taken, from their `log_weight`; alike where none is possible."""
    logs = np.array(weights, dtype=np.float64)
    if not np.isfinite(logs.max()):
        return np.full(len(logs), 1 / len(logs))
    shares: Floats = np.exp(logs - logs.max())
    total: Floats = shares / shares.sum()
    return total


def another(reading: Reading, copy: Copy, number: int, canvas: Canvas) -> Reading:
    """Return a reading of the same laws with tokens of its own, candidate `number`; the order of writing stays."""
    row = replace(copy.row, visit=copy.row.visit + number * _APART)
    part = reread(reading, np.arange(len(reading.places)), row, canvas)
    part.visit = reading.visit
    return part


def whole(reading: Reading, copy: Copy) -> Reading:
    """Return the reading with the decided places between its own: the guide is asked about them too."""
    stop = int(reading.places[-1]) + 1 if len(reading.places) else copy.row.base
    places = np.arange(copy.row.base, stop)
    tokens = copy.row.tokens[places].copy()
    tokens[reading.places - copy.row.base] = np.maximum(reading.tokens, 0)
    return Reading(places, tokens, reading.logits, reading.sampler, reading.visit)


def taken(weights: list[float], reading: Reading) -> int:
    """Return which candidate is taken, drawn with noise of this step alone."""
    noise = order_noise(reading.sampler, np.arange(len(weights)), reading.visit + _APART)
    with np.errstate(divide="ignore"):
        return int(np.argmax(np.log(chances(weights)) - np.log(-np.log(noise))))
