"""Samplers side by side, for rows whose settings differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from outpace.sampling.sampler import Sampler
from outpace.sampling.settings import Sampling

if TYPE_CHECKING:
    from outpace.constrain.protocol import ConstraintState

__all__ = ["Samplers", "join_samplers", "sampler_of"]


class Samplers(Sampler):
    """Of rows whose settings differ: knows what belongs to rows (keys, noise, ends); for laws there are `parts`.

    Rows of equal settings are drawn together. Nothing here answers for all rows what depends on their settings: whoever
    asks that has to take `parts`, or `rows` of equal settings, first.

    Args:
        settings: per row.
        keys, end_tokens, states, sources, limits: as of a `Sampler`.
    """

    def __init__(
        self,
        settings: Sequence[Sampling],
        keys: list[int],
        end_tokens: Sequence[Sequence[int]] = (),
        states: Sequence[ConstraintState | None] = (),
        sources: Sequence[Sequence[int]] = (),
        limits: Sequence[int] = (),
    ) -> None:
        super().__init__(settings[0], keys, end_tokens, states, sources, limits)
        del self.settings  # those of one row would answer for all
        self.each = list(settings)
        self.parts = [(index, self.rows(index)) for index in _alike(self.each)]

    def rows(self, index: Sequence[int]) -> Sampler:
        """Return a sampler for some of the rows, in that order; a plain one where their settings are equal."""
        values = (self.keys, self.end_tokens, self.states, self.sources, self.limits)
        per_row = ([value[i] for i in index] for value in values)
        return sampler_of([self.each[i] for i in index], *per_row)  # type: ignore[arg-type]


def sampler_of(
    settings: Sequence[Sampling],
    keys: list[int],
    end_tokens: Sequence[Sequence[int]] = (),
    states: Sequence[ConstraintState | None] = (),
    sources: Sequence[Sequence[int]] = (),
    limits: Sequence[int] = (),
) -> Sampler:
    """Return a sampler of rows with such settings, one at least: a plain one where all are equal."""
    given = (keys, end_tokens, states, sources, limits)
    if all(one is settings[0] or one == settings[0] for one in settings):
        return Sampler(settings[0], *given)
    return Samplers(settings, *given)


def join_samplers(samplers: Sequence[Sampler]) -> Sampler:
    """Return a sampler of the rows of several, one at least, one behind the other."""
    each: list[Sampling] = []
    for one in samplers:
        each += one.each if isinstance(one, Samplers) else [one.settings] * len(one.keys)
    names = ("keys", "end_tokens", "states", "sources", "limits")
    return sampler_of(each, *([value for one in samplers for value in getattr(one, name)] for name in names))


def _alike(settings: Sequence[Sampling]) -> list[list[int]]:
    """Return the rows of each distinct value."""
    found: list[tuple[Sampling, list[int]]] = []
    for row, own in enumerate(settings):
        index = next((index for known, index in found if known is own or known == own), None)
        if index is None:
            found.append((own, index := []))
        index.append(row)
    return [index for _, index in found]
