"""Cosines and sines of rotary positions, made as texts grow, once for each way in which a text may turn."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.models.spec import Spec, rope_tables

__all__ = ["Rotation", "Tables", "turn"]

FIRST_POSITIONS = 512
MOST_PHASES = 8  # kept; under dynamic scaling each long prompt has its own

Tables = list[tuple[Tensor, Tensor]]  # per frequency set, cos and sin


class Rotation:
    """The tables of one decoder.

    Args:
        spec: its shape.
        dtype, device: of the tables.
        is_half: leave out the lower half of the dimensions, which repeats the upper one but for the sine's sign.
    """

    def __init__(self, spec: Spec, dtype: torch.dtype, device: torch.device | str, is_half: bool = False) -> None:
        self.spec, self.dtype, self.device, self.is_half = spec, dtype, device, is_half
        self._known: dict[int, Tables] = {}
        self._lock = threading.Lock()

    def tables(self, positions: int, phase: int = 0) -> Tables:
        """Return cos and sin per frequency set, [positions or more, head_dim] (half of it where `is_half`)."""
        found = self._known.get(phase)
        if found is None or (found and len(found[0][0]) < positions):
            with self._lock:
                found = self._make(positions, phase)
                self._known.pop(phase, None)
                while len(self._known) >= MOST_PHASES:
                    self._known.pop(next(iter(self._known)))
                self._known[phase] = found
        return found

    def _make(self, positions: int, phase: int) -> Tables:
        spec = self.spec
        length = max(positions, min(spec.max_positions, max(FIRST_POSITIONS, 1 << (positions - 1).bit_length())))
        tables = [rope_tables(spec, rope, self.dtype, self.device, length, phase) for rope in spec.ropes]
        if not self.is_half:
            return tables
        half = spec.head_dim // 2
        return [(cos[:, half:].contiguous(), sin[:, half:].contiguous()) for cos, sin in tables]


def turn(spec: Spec, position: Tensor, cache: Cache) -> None:
    """Set the phase of rows whose whole text comes in this forward; `run.prefill` does it for texts in chunks."""
    if spec.turns_at and 0 in cache.lengths:
        held = zip(position.amax(1).tolist(), cache.lengths, cache.phases, strict=True)
        cache.phases = [
            (1 if spec.turns_anew else last + 1) if last >= spec.turns_at and not length and not phase else phase
            for last, length, phase in held
        ]
