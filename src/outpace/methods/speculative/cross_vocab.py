"""A drafter with another tokenizer: drafts meet the target as text, or as tokens that both write alike.

Paper: Timor et al. (2025), arXiv 2502.05202, algorithms 2 (slem), 3 (slrs) and 4 (tli).
Guarantee: exact for mode=slem and wherever accept_rule=match; distribution for slrs and tli with the paper's rule.
Cost: at most 1 target forward per emitted token; one drafter forward per drafter token (slem, tli), or per byte or so
    of every drafted token, in a tree of `paths` branches (slrs); the drafter's weights and cache.
Differences: slem drafts greedily, which sample and match accepts most of, and aligns texts by bytes; slrs follows the
    likeliest sequences only, drafts a chain of tokens instead of one, and applies temperature and cuts to psi, as tli
    does to the shared tokens, instead of to the drafter's own law; end tokens can be drafted.
Longer than most: three modes that share their settings, and a rule that depends on the mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.draft.foreign import ForeignDrafter, SharedTokens, StringTokens
from outpace.draft.model import draft_chain
from outpace.draft.reading import Drafter
from outpace.errors import ConfigError
from outpace.methods.base import Paper, chain, nothing
from outpace.methods.speculative.drafted import RuledDraft
from outpace.setting import setting
from outpace.types import Context, Needs, Proposal, View

__all__ = ["CrossVocab"]


@dataclass(frozen=True)
class CrossVocab(RuledDraft):
    """Speculative decoding across vocabularies.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        mode: "slem" (string-level exact match), "slrs" (string-level rejection) or "tli" (token-level intersection).
        draft_len: most tokens of the target drafted per step.
        min_confidence: stop drafting where no token is this likely (0 = never).
        accept_rule: "match", "rejection", or "auto": the mode's own, match for slem and rejection for the others.
        paths: sequences of drafter tokens that slrs follows at once.
        max_vocab: largest vocabulary, the target's or the drafter's, that slrs will sum over.

    Raises:
        ConfigError: an unknown mode or rule, slem with rejection, or a number out of range.
    """

    draft: str = "auto"
    mode: str = setting("slem", among=("slem", "slrs", "tli"))
    accept_rule: str = setting("auto", among=("auto", "match", "rejection"))
    min_confidence: float = setting(0.0, least=0, most=1)
    paths: int = setting(4, least=1)
    max_vocab: int = 65536

    name: ClassVar[str] = "cross-vocab"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A small model with another tokenizer drafts; texts or shared tokens are compared."
    paper: ClassVar[Paper] = Paper(
        "Accelerating LLM Inference with Lossless Speculative Decoding Algorithms for Heterogeneous Vocabularies",
        "Timor et al.",
        2025,
        "2502.05202",
        331,
        "The sum over all of a drafter's sequences in slrs: the likeliest are followed, any other stops early.",
    )

    def __post_init__(self) -> None:
        """Hold the settings to their ranges, and the rule to what the mode gives it."""
        super().__post_init__()
        if self.mode == "slem" and self.accept_rule == "rejection":
            raise ConfigError("The rejection rule needs a law, which mode=slem has none of.", "Use mode=slrs or tli.")

    @property
    def is_matched(self) -> bool:
        """Whether drafts are matched; else the rejection rule tests them."""
        return self.accept_rule == "match" or (self.accept_rule == "auto" and self.mode == "slem")

    @property
    def needs(self) -> Needs:
        """A causal target, a drafter, and the tokenizers of both."""
        return Needs(has_rollback=True, width=self.draft_len, models=("draft",), has_text=True)

    def begin(self, context: Context) -> ForeignDrafter:
        """Lay the vocabularies side by side.

        Raises:
            CapabilityError: the two cannot be brought together this way.
        """
        max_vocab = self.max_vocab if self.mode == "slrs" else 0
        return ForeignDrafter.begin(context, is_shared=self.mode == "tli", max_vocab=max_vocab)

    def grow(self, view: View, drafter: ForeignDrafter, reach: list[int]) -> Proposal:
        """Draft text, or tokens of the target by the drafter's law over them."""
        if self.mode == "slem":
            return chain(view, drafter.draft_text(view, reach, self.min_confidence), self.name)
        reach = drafter.read(view, reach, is_text=False)
        if max(reach) == 0:
            return nothing(view)
        is_tli = self.mode == "tli"
        tokens = SharedTokens(drafter, view) if is_tli else StringTokens(drafter, view, self.paths)
        return draft_chain(
            Drafter(tokens, tokens.cache_for(view)),
            view,
            reach,
            origin=self.name,
            is_coupled=self.is_matched,
            min_confidence=self.min_confidence,
        )
