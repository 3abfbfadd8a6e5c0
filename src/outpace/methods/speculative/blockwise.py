"""Heads behind the decoder propose a block, and the decoder keeps the longest part that it would write itself.

Paper: Stern, Shazeer, Uszkoreit (2018), arXiv 1811.03115: blockwise decoding with scoring and proposing in one forward
    (section 4), exact match (3), top-k selection (5.1), distance-based selection (5.2), minimum block size (5.3).
Guarantee: exact with accept_rule=match and min_block=1 (default), distribution with accept_rule=rejection, approximate
    otherwise: the text leans towards the heads.
Cost: at most 1 target forward per emitted token; per step one pass of the heads over one state; the heads' weights.
Differences: the model is frozen while its heads learn, as in the paper's first setting. A distance is that of ids,
    which means something where ids are numbers, as brightnesses are. Trees may be drafted under accept_rule=match.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from outpace.accept.lenient import judged
from outpace.errors import ConfigError
from outpace.methods.base import Paper
from outpace.methods.speculative.drafted import Paced
from outpace.methods.speculative.headed import Headed
from outpace.setting import setting
from outpace.types import Decision, Guarantee, Proposal, Scores, View

__all__ = ["Blockwise"]


@dataclass(frozen=True)
class Blockwise(Headed):
    """Blockwise parallel decoding; other settings as of `Headed`.

    Attributes:
        accept_rule: "match" (exact), "rejection" (keeps the law), "top-k" or "distance" (both approximate).
        top_k: under "top-k", a draft passes that is one of the decoder's so many likeliest tokens.
        distance: under "distance", a draft passes whose id is no further from that of the likeliest token.
        min_block: tokens that every step writes at least; above 1 the text is approximate.
    """

    accept_rule: str = setting("match", among=("match", "rejection", "top-k", "distance"))
    top_k: int = setting(2, least=1)
    distance: int = setting(2, least=0)
    min_block: int = setting(1, least=1)

    name: ClassVar[str] = "blockwise"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "Heads behind the decoder propose a block; the longest part that it confirms is kept."
    paper: ClassVar[Paper] = Paper(
        "Blockwise Parallel Decoding for Deep Autoregressive Models",
        "Stern, Shazeer, Uszkoreit",
        2018,
        "1811.03115",
        149,
        "Training the model with its heads.",
        'outpace generate "Ein Mann fährt Fahrrad." --model translate --method blockwise -o draft=DIRECTORY',
    )

    def __post_init__(self) -> None:
        """Hold the settings to their ranges, and trees to the rule that takes them.

        Raises:
            ConfigError: a setting outside its range, or a tree or a least block with a rule that does not go with it.
        """
        super().__post_init__()
        if self.is_tree and self.is_lenient:
            raise ConfigError("Approximate acceptance takes chains, not trees.", "Use accept_rule=match for trees.")
        if self.min_block > 1 and self.accept_rule == "rejection":
            raise ConfigError("The rejection rule has no least block.", "Use another accept_rule, or min_block=1.")

    @property
    def is_matched(self) -> bool:
        """Whether drafts are held to the decoder's own picks; else the rejection rule tests them."""
        return self.accept_rule != "rejection"

    @property
    def is_lenient(self) -> bool:
        """Whether drafts may pass that the decoder would not write."""
        return self.accept_rule in ("top-k", "distance") or self.min_block > 1

    @property
    def guarantee(self) -> Guarantee:
        """Exact by sample and match; the rejection rule keeps the law, the others neither."""
        return Guarantee.APPROXIMATE if self.is_lenient else super().guarantee

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Paced) -> Decision:
        """Apply the chosen rule."""
        if not self.is_lenient:
            return super().accept(proposal, scores, view, state)
        return judged(proposal, scores, view, self._passes(proposal.tokens, scores.logits[:, :-1]))

    def _passes(self, drafts: Tensor, logits: Tensor) -> Tensor:
        """Return which drafts [B, W] the rule lets through, bool [B, W]; logits [B, W, V] stand before each."""
        is_forced = torch.arange(drafts.shape[1], device=drafts.device) < self.min_block - 1
        if self.accept_rule == "top-k":
            own = logits.gather(-1, drafts.unsqueeze(-1))
            return is_forced | ((logits > own).sum(-1) < self.top_k)
        if self.accept_rule == "distance":
            return is_forced | ((logits.argmax(-1) - drafts).abs() <= self.distance)
        return is_forced.expand_as(drafts)
