"""A small model with mask tokens drafts all places in one forward; the target checks.

Paper: An et al. (2025), arXiv 2504.18583, PARD (parallel draft models).
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward and 1 draft forward per step, the latter over what is new of the text and `draft_len - 1`
    masks; the drafter's weights and cache.
Differences: drafts are coupled to the target's noise; a tree of the likeliest paths can be drafted from the same laws.
    The drafter is an ordinary causal model of the target's vocabulary, whose config.json names a `pard_token`, and
    serves every target of that vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.draft.pard import ParallelDrafter
from outpace.errors import ConfigError
from outpace.methods.base import Paper
from outpace.methods.speculative.headed import Headed
from outpace.setting import setting
from outpace.types import Context, Needs

__all__ = ["Pard"]


@dataclass(frozen=True)
class Pard(Headed):
    """Parallel drafting with a small model; settings as of `Headed`.

    Attributes:
        draft: a causal model with a mask: a zoo name, directory or hub id.
        mask: its mask token; -1 = the one that its files name.
    """

    draft_len: int = setting(8, least=1)
    mask: int = setting(-1, least=-1)

    name: ClassVar[str] = "pard"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "A small model with mask tokens drafts all places in one forward; the target checks."
    paper: ClassVar[Paper] = Paper(
        "PARD: Accelerating LLM Inference with Low-Cost PARallel Draft Model Adaptation",
        "An et al.",
        2025,
        "2504.18583",
        182,
    )

    @property
    def needs(self) -> Needs:
        """A causal target, and an ordinary causal model."""
        return replace(super().needs, head="")

    def begin(self, context: Context) -> ParallelDrafter:
        """Give the drafter an empty cache for the joining rows.

        Raises:
            ConfigError: it has no mask, or one outside its vocabulary.
        """
        model = context.models["draft"]
        mask = model.mask_token if self.mask < 0 else self.mask
        if mask is None:
            raise ConfigError(
                "The drafter names no mask token: its config.json has no pard_token.",
                "Name a model that was trained for parallel drafting, or its mask with -o mask=ID.",
            )
        if not 0 <= mask < model.capabilities.vocab_size:
            raise ConfigError(
                f"The mask token {mask} is outside the drafter's vocabulary.",
                f"Ids go from 0 to {model.capabilities.vocab_size - 1}.",
            )
        return ParallelDrafter(model, context.cache_for("draft"), mask)
