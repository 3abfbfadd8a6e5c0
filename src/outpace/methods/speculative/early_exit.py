"""The target's first layers draft, and all of them check: for checkpoints that were trained to exit early.

Paper: Elhoushi et al. (2024), arXiv 2404.16710, LayerSkip (section 3.3, self-speculative decoding).
Guarantee: exact (sample and match).
Cost: at most 1 full target forward per emitted token; one forward of `exit_layer` layers per drafted token; no extra
    memory, since the drafts use the scratch slots of the target's own cache.
Differences: the check runs all layers again, where the paper keeps what the first ones have computed; drafts are
    coupled to the target's noise, and their number follows acceptance. LayerSkip checkpoints are ordinary Llama files
    and load as such; any other model works too, and is accepted as often as its early layers happen to be right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.errors import ConfigError
from outpace.methods.base import Paper
from outpace.methods.speculative.partial import PartialDraft
from outpace.setting import setting

__all__ = ["EarlyExit"]


@dataclass(frozen=True)
class EarlyExit(PartialDraft):
    """Self-speculative decoding with an early exit.

    Attributes:
        exit_layer: layers that draft, the final norm and the head behind them; 0 = half of them, rounded up.

    Raises:
        ConfigError: a draft length below 1, a confidence outside [0, 1], or a negative exit layer.
    """

    draft_len: int = setting(6, least=1)
    exit_layer: int = setting(0, least=0)

    name: ClassVar[str] = "early-exit"
    family: ClassVar[str] = "self-speculative"
    summary: ClassVar[str] = "The target's first layers draft; meant for checkpoints trained for early exit."
    paper: ClassVar[Paper] = Paper(
        "LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding",
        "Elhoushi et al.",
        2024,
        "2404.16710",
        None,
        "The training recipe, and keeping the first layers' results for the check.",
    )

    def left_out(self, layers: int) -> tuple[int, ...]:
        """Return the layers behind the exit.

        Raises:
            ConfigError: the model has no layer there.
        """
        if self.exit_layer >= layers:
            raise ConfigError(f"exit_layer is {self.exit_layer}, but the model has {layers} layers.", "Exit earlier.")
        return tuple(range(self.exit_layer or (layers + 1) // 2, layers))
