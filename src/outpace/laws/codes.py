"""Codes of a codebook model that are forced, so that its text turns to what they stand for.

Paper: Tamkin, Taufeeque, Goodman (2023), "Codebook Features: Sparse and Discrete Interpretability for Neural Networks",
    arXiv 2310.17230.
Guarantee: the changed model's law exactly; drafts are judged by it. With no codes forced, the text is the model's own,
    token for token.
Cost: none.
Differences: forced codes take the places of the farthest chosen ones, at every place, the prompt's too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.errors import CapabilityError, ConfigError
from outpace.laws.base import Control, Site
from outpace.models.codebooks import CodedTransformer
from outpace.papers import Paper
from outpace.setting import setting
from outpace.types import Adapter

__all__ = ["Codes"]

PAPERS = (
    Paper(
        "Codebook Features: Sparse and Discrete Interpretability for Neural Networks",
        "Tamkin, Taufeeque, Goodman",
        2023,
        "2310.17230",
        234,
        "Codebooks behind attention, and the finite state machines.",
        "outpace train stories-codes",
    ),
)


@dataclass(frozen=True)
class Codes(Control):
    """Codes named LAYER.CODE, parted by "+"."""

    name: ClassVar[str] = "codes"
    summary: ClassVar[str] = "codes of a codebook model, forced at every place"
    is_model: ClassVar[bool] = True
    force: str = setting("", note="such as 0.17+1.203")

    def chosen(self) -> dict[int, list[int]]:
        """Return the codes by layer.

        Raises:
            ConfigError: a name of another form.
        """
        found: dict[int, list[int]] = {}
        for name in self.force.split("+") if self.force else ():
            layer, dot, code = name.strip().partition(".")
            if not (dot and layer.isdecimal() and code.isdecimal()):
                raise ConfigError(f"{name!r} names no code.", "Name a layer and a code: 1.203.")
            found.setdefault(int(layer), []).append(int(code))
        return found

    def target(self, site: Site) -> Adapter:
        """Return the model with its codes forced."""
        chosen = self.chosen()
        if not chosen:
            return site.target
        if not isinstance(site.target, CodedTransformer):
            raise CapabilityError(f"{site.name} has no codebooks.", "Train one: outpace train stories-codes.")
        return site.target.forcing(chosen)
