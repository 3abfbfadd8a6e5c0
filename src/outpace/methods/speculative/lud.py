"""Masks predict several tokens, and as many as the model is sure of are written unchecked.

Paper: Sun et al. (2024), arXiv 2405.15208, Lexical Unit Decoding.
Guarantee: approximate: what is drafted with enough confidence is written though the target might write otherwise. With
    a threshold above 1 nothing is, which is plain decoding.
Cost: at most 1 target forward per emitted token, over the unit and the masks behind it; an embedding of weights.
Differences: a unit is written in the step that reads it, which is the step after the one that predicted it: the same
    forwards, and what it writes stays in the cache. Any drafter of mask tokens serves; the paper tunes the target
    (the kind `space`, with its adapter).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from outpace.draft.model import draft_chain
from outpace.errors import ConfigError
from outpace.heads.model import HeadModel
from outpace.heads.probe import ProbeNet, drafts_only
from outpace.methods.base import Paper
from outpace.methods.speculative.drafted import Paced
from outpace.methods.speculative.probed import Probed
from outpace.setting import setting
from outpace.types import Adapter, Decision, Guarantee, Proposal, Scores, View

__all__ = ["Lud"]


@dataclass(frozen=True)
class Lud(Probed):
    """Lexical unit decoding; settings as of `Probed`.

    Attributes:
        threshold: a place is written unchecked where its likeliest token is at least this likely, and so are all places
            before it; above 1 = never.

    Raises:
        ConfigError: a tree is asked for, or the rejection rule.
    """

    is_linear: bool = True
    threshold: float = setting(0.9, above=0)

    name: ClassVar[str] = "lud"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "Masks predict ahead, and the tokens that the model is sure of are written unchecked."
    paper: ClassVar[Paper] = Paper(
        "Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs",
        "Sun et al.",
        2024,
        "2405.15208",
        221,
    )

    def __post_init__(self) -> None:
        """Hold the settings to their ranges, and to a chain.

        Raises:
            ConfigError: a tree is asked for, the rejection rule, or another confidence.
        """
        super().__post_init__()
        if self.is_tree or not self.is_matched or self.min_confidence:
            raise ConfigError("A lexical unit is a chain that nothing checks.", "Set threshold and draft_len alone.")

    @property
    def kind(self) -> str:
        """The kind that the paper trains; other drafters of mask tokens serve too."""
        return "space"

    @property
    def guarantee(self) -> Guarantee:
        """Approximate: nothing checks what is written with confidence."""
        return Guarantee.APPROXIMATE if self.threshold <= 1 else Guarantee.EXACT

    def check_kind(self, model: Adapter) -> None:
        """Take any drafter of soft tokens.

        Raises:
            ConfigError: it is none.
        """
        if not isinstance(model, HeadModel) or not isinstance(model.net, ProbeNet):
            super().check_kind(model)

    def grow(self, view: View, drafter: Any, reach: list[int]) -> Proposal:
        """Draft a chain up to the first place that the model is not sure of."""
        return draft_chain(drafter, view, reach, origin=self.name, min_confidence=self.threshold)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Paced) -> Decision:
        """Write every draft, and what the target says after the last one."""
        del state
        drafts, told = drafts_only(proposal, scores)
        counts = torch.tensor(drafts.length, device=told.logits.device)
        rows = torch.arange(len(drafts.length), device=counts.device)
        logits = told.logits[rows, counts]
        texts = [
            [*text, *tokens[:count]]
            for text, tokens, count in zip(view.texts, drafts.tokens.tolist(), drafts.length, strict=True)
        ]
        history = view.sampler.history(texts, view.prompts, logits.shape[-1])
        place = torch.tensor(view.lengths, device=counts.device) + counts
        drawn = view.sampler.pick(view.sampler.process(logits, history), place)
        tokens = torch.nn.functional.pad(drafts.tokens, (0, 1))
        tokens[rows, counts] = drawn
        order = torch.arange(tokens.shape[1], device=counts.device)
        path = torch.where(order < counts.unsqueeze(1), order, -1)
        return Decision(tokens, counts + 1, path, is_recovered=torch.zeros_like(counts, dtype=torch.bool))
