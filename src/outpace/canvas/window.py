"""From rows to one forward: every visible place that the cache does not hold, and whose laws are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from outpace.canvas.parts import Parts
from outpace.canvas.row import Bools, CanvasRow, Ids
from outpace.types import Proposal

__all__ = ["CanvasWindow", "lay_window", "places_asked", "propose_windows", "seen"]


@dataclass(frozen=True, slots=True)
class CanvasWindow:
    """One row's part of a forward.

    Attributes:
        tokens: [W] what is forwarded.
        places: [W] where.
        asked: [A] the undecided places whose laws are wanted.
        nodes: [A] the index of each in the window.
        visible: [W, W] node sees node, itself included; None = what the model's own attention shows. Side by side, rows
            have either all or none: beside a mask, None means that every node sees every other.
    """

    tokens: Ids
    places: Ids
    asked: Ids
    nodes: Ids
    visible: Bools | None = None


def seen(row: CanvasRow, parts: Parts) -> int:
    """Return the place up to which a forward holds the row."""
    canvas = parts.canvas
    stop = min(row.live(), canvas.border(row.base, row.prompt))
    # Under block attention the model's own block is all there is to see; `ahead` would cut into it.
    if canvas.ahead >= 0 and not canvas.block_size:
        stop = min(stop, parts.schedule.asked(row, canvas) + canvas.ahead)
    return stop


def places_asked(row: CanvasRow, parts: Parts) -> Ids:
    """Return the places whose laws the next forward is asked for: undecided, or of a correcting rule all not given."""
    canvas = parts.canvas
    # The schedule may reach further than the text goes, or than the model sees: nothing can be said there.
    stop = min(parts.schedule.asked(row, canvas), row.live(), canvas.border(row.base, row.prompt))
    if parts.rule.is_correcting:
        return row.base + np.flatnonzero(~row.given[row.base : stop])
    return row.undecided(canvas, row.base, stop)


def lay_window(row: CanvasRow, parts: Parts) -> CanvasWindow:
    """Return what is forwarded of a row."""
    asked, canvas = places_asked(row, parts), parts.canvas
    is_new = np.ones(seen(row, parts), dtype=np.bool_)
    # A policy may keep any places, not a prefix only: what is forwarded are the gaps between them.
    is_new[row.held] = False
    places = np.flatnonzero(is_new)
    # A model alone cannot know where the block in work begins, so causal text before it has to be said.
    visible = canvas.sight(places, row.base, row.prompt) if canvas.has_causal_text else None
    return CanvasWindow(row.tokens[places], places, asked, np.searchsorted(places, asked), visible)


def propose_windows(windows: Sequence[CanvasWindow], device: torch.device | str, origin: str) -> Proposal:
    """Lay the rows' windows side by side, padded to the widest."""
    rows, width = len(windows), max(len(window.tokens) for window in windows)
    count = max(len(window.asked) for window in windows)
    # Filled on the host and moved once: a step costs one transfer of each kind, however many rows there are.
    table = np.zeros((2, rows, width), dtype=np.int64)
    ask = np.zeros((rows, count), dtype=np.int64)
    for row, window in enumerate(windows):
        size = len(window.tokens)
        table[0, row, :size], table[1, row, :size] = window.tokens, window.places
        ask[row, : len(window.asked)] = window.nodes
    visible = None
    if any(window.visible is not None for window in windows):
        sight = np.zeros((rows, width, width), dtype=np.bool_)
        for row, window in enumerate(windows):
            size = len(window.tokens)
            sight[row, :size, :size] = True if window.visible is None else window.visible
            np.fill_diagonal(sight[row], True)  # padding sees itself, so that its softmax stays finite
        visible = torch.from_numpy(sight).to(device)
    tokens, places = torch.from_numpy(table).to(device)
    length = [len(window.tokens) for window in windows]
    asked = torch.from_numpy(ask).to(device)
    return Proposal(tokens, length, None, places, visible, origin=origin, ask=asked, is_whole=True)
