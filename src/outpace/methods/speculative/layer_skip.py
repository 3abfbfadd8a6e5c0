"""The target drafts for itself with some of its layers left out.

Paper: Zhang et al. (2023), arXiv 2309.08168, Draft & Verify; Elhoushi et al. (2024), arXiv 2404.16710, LayerSkip.
Guarantee: exact (sample and match).
Cost: at most 1 full target forward per emitted token; one partial forward per drafted token; no extra memory, since the
    drafts use the scratch slots of the target's own cache.
Differences: which layers are skipped is a setting; the method swift searches for them, and early-exit leaves out the
    last ones, which LayerSkip trains a model for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.draft.layers import spread_layers
from outpace.errors import ConfigError
from outpace.methods.base import Paper
from outpace.methods.speculative.partial import PartialDraft
from outpace.setting import setting

__all__ = ["LayerSkip"]


@dataclass(frozen=True)
class LayerSkip(PartialDraft):
    """Self-speculative decoding by skipping layers.

    Attributes:
        skip: layers left out while drafting; empty with `fraction` 0 = none.
        fraction: share of layers left out when `skip` is empty, spread over the middle of the stack.

    Raises:
        ConfigError: a draft length below 1, or a fraction or confidence out of range.
    """

    draft_len: int = setting(4, least=1)
    skip: tuple[int, ...] = ()
    fraction: float = setting(0.34, least=0, below=1)

    name: ClassVar[str] = "layer-skip"
    family: ClassVar[str] = "self-speculative"
    summary: ClassVar[str] = "The target drafts with some of its own layers skipped."
    paper: ClassVar[Paper] = Paper(
        "Draft & Verify: Lossless Large Language Model Acceleration via Self-Speculative Decoding",
        "Zhang et al.",
        2023,
        "2309.08168",
        None,
        "The search for the best layers.",
    )

    def left_out(self, layers: int) -> tuple[int, ...]:
        """Return the layers that are named, or a share of them.

        Raises:
            ConfigError: the model has no such layer.
        """
        if any(not 0 <= layer < layers for layer in self.skip):
            raise ConfigError(f"skip names layers outside 0 to {layers - 1}.", "Name layers that the model has.")
        return self.skip or spread_layers(layers, round(layers * self.fraction))
