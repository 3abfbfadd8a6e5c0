"""What the target's forwards told of each token: hidden states that a trained drafter has not read yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from outpace.types import Outcome, Outputs, Scores, View

__all__ = ["Features", "joined_states"]


def joined_states(scores: Scores, outputs: Outputs) -> Tensor:
    """Return the states that were asked for side by side, [B, A, F]: the tapped layers in order, then the last one."""
    parts = [scores.taps[layer] for layer in outputs.layers]
    if outputs.has_last:
        assert scores.last is not None  # it was asked for
        parts.append(scores.last)
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


@dataclass
class Features:
    """Per row, the states of consecutive tokens of its text; those of the last token are never known.

    Where some were not seen (found in a cache, or written while nobody looked), those before the gap are dropped: a
    drafter never reads across it.

    Attributes:
        outputs: which states.
        starts: per row, the place in the text of the first token held.
        held: per row [n, F] states, from there on.
        whole: how many places before `starts` the drafter has taken in; 0 after a gap.
    """

    outputs: Outputs
    starts: list[int]
    held: list[Tensor]
    whole: list[int] = field(default_factory=list)

    @staticmethod
    def begin(outputs: Outputs, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Features:
        """Return those of rows of which nothing is known."""
        none = torch.zeros(0, width, dtype=dtype, device=device)
        return Features(outputs, [0] * rows, [none] * rows, [0] * rows)

    def ends(self) -> list[int]:
        """Return per row the place behind the last token whose states are known."""
        return [start + len(held) for start, held in zip(self.starts, self.held, strict=True)]

    def observe(self, outcome: Outcome, view: View) -> None:
        """Take in what a step, or a piece of the prompts, told of tokens that are text now."""
        if outcome.scores is None:
            return
        states = joined_states(outcome.scores, self.outputs)
        if outcome.proposal is None:
            for row, places in enumerate(outcome.chunk):
                self._add(row, places.start, states[row, : len(places)])
            return
        ask = outcome.proposal.ask
        for row, (text, emitted, path) in enumerate(zip(view.texts, outcome.emitted, outcome.path, strict=True)):
            if not emitted:
                continue
            nodes = [-1]
            for node in path:  # what follows a token that was not drafted has no place in this forward
                if node < 0:
                    break
                nodes.append(node)
            index = [node + 1 for node in nodes]
            if ask is not None:
                asked = ask[row].tolist()
                index = [asked.index(node) for node in nodes if node in asked][: len(nodes)]
            # Most steps keep the first nodes of all: a slice takes a tenth of the time that picking does.
            is_first = index[-1] == len(index) - 1 if index else False
            place = len(text) - len(emitted) - 1
            self._add(row, place, states[row, : len(index)] if is_first else states[row, index])

    def _add(self, row: int, place: int, states: Tensor) -> None:
        end = self.starts[row] + len(self.held[row])
        if place != end:  # a gap, or a text that was begun anew
            self.starts[row], self.held[row], self.whole[row] = place, states.clone(), 0
        elif len(states):
            self.held[row] = torch.cat([self.held[row], states]) if len(self.held[row]) else states.clone()

    def take(self, index: Sequence[int]) -> list[Tensor]:
        """Return the states held of some rows, which count as read from now on; of other rows nothing."""
        taken = [self.held[row][:0] for row in range(len(self.held))]
        for row in index:
            taken[row], self.held[row] = self.held[row], self.held[row][:0]
            self.starts[row] += len(taken[row])
            self.whole[row] += len(taken[row])
        return taken

    def rows(self, index: Sequence[int]) -> Features:
        """Return those of some rows, in that order."""
        picked = [[values[i] for i in index] for values in (self.starts, self.held, self.whole)]
        return Features(self.outputs, *picked)  # type: ignore[arg-type]

    def join(self, others: Sequence[Features]) -> Features:
        """Return those of the rows of all."""
        starts, held, whole = ([x for one in others for x in getattr(one, n)] for n in ("starts", "held", "whole"))
        return Features(self.outputs, starts, held, whole)
