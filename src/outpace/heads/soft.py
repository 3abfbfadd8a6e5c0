"""Soft tokens of a frozen target, and of one that was tuned with them.

Papers: Chen et al. (2024), arXiv 2405.18628, PPD: prompt tokens of their own per place ahead, several per place whose
laws are averaged (ensemble prompt tokens). Lin et al. (2024), arXiv 2401.12522, BiTA: prompt tokens before the masks.
Yi et al. (2024), arXiv 2402.11809, SPACE: one mask, which the target was tuned to fill.
"""

from __future__ import annotations

from typing import Any, ClassVar

from outpace.heads.net import HeadConfig
from outpace.heads.probe import ProbeNet

__all__ = ["BitaNet", "PpdNet"]


class PpdNet(ProbeNet):
    """A soft token per place ahead (settings: depth, ensemble)."""

    kind: ClassVar[str] = "ppd"


class BitaNet(ProbeNet):
    """Prompt tokens, then a mask per place ahead (settings: depth, prompts, ensemble)."""

    kind: ClassVar[str] = "bita"

    @classmethod
    def made_for(
        cls, hidden_size: int, vocab_size: int, num_layers: int, target: str = "", **settings: Any
    ) -> HeadConfig:
        """Return the configuration; 2 prompt tokens unless said otherwise."""
        return super().made_for(hidden_size, vocab_size, num_layers, target, **{"prompts": 2, **settings})
