"""A small model drafts with a head that knows only the tokens that the target writes most.

Paper: Goel et al. (2025), arXiv 2506.22694.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection (the paper's rule).
Cost: at most 1 target forward per emitted token; one draft forward per drafted token, which reads `k` rows of the
    head instead of all; the drafter's weights and cache, and a second, smaller head.
Differences: which tokens stay is counted on the target's own texts, from a file, or as the caller's memory collects
    them; without counts the lowest ids stay. Drafts are coupled to the target's noise by default, which gives plain
    decoding's own text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.draft.memory import claim
from outpace.draft.model import draft_chain
from outpace.draft.vocabulary import TokenCounts, TrimmedDrafter
from outpace.methods.base import Paper
from outpace.methods.speculative.drafted import Paced, RuledDraft
from outpace.setting import setting
from outpace.types import Context, Needs, Outcome, Proposal, View

__all__ = ["VocabTrim"]


@dataclass(frozen=True)
class VocabTrim(RuledDraft):
    """VocabTrim.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        k: tokens that the drafter's head keeps.
        counts: file of token counts, as `TokenCounts.save` writes it; "" = a `TokenCounts` given as memory, which goes
            on counting, or else the lowest ids.

    Raises:
        ConfigError: a k or length below 1, or an unknown rule.
    """

    draft: str = "auto"
    k: int = setting(2048, least=1)
    counts: str = ""

    name: ClassVar[str] = "vocab-trim"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A small model drafts with a head cut to the tokens that the target writes most."
    paper: ClassVar[Paper] = Paper(
        "VOCABTRIM: Vocabulary Pruning for Efficient Speculative Decoding in LLMs",
        "Goel et al.",
        2025,
        "2506.22694",
        262,
        "Trees and EAGLE heads as drafters (ours drafts a chain with a model of its own).",
    )

    @property
    def needs(self) -> Needs:
        """A causal target, and a draft model of the same vocabulary."""
        return Needs(has_rollback=True, width=self.draft_len, models=("draft",))

    def begin(self, context: Context) -> TrimmedDrafter:
        """Cut the drafter's head, and give it an empty cache for the joining rows.

        Raises:
            ConfigError: the counts cannot be read, or are of another vocabulary.
        """
        return TrimmedDrafter.cut(context, claim(context, self.name, TokenCounts), self.counts, self.k)

    def grow(self, view: View, drafter: TrimmedDrafter, reach: list[int]) -> Proposal:
        """Draft a chain."""
        return draft_chain(drafter, view, reach, origin=self.name, is_coupled=self.is_matched)

    def observe(self, outcome: Outcome, view: View, state: Paced) -> Paced:
        """Forget drafted entries that did not become text; count what was written; let the length follow acceptance."""
        state.drafter.observe(outcome, view)
        return super().observe(outcome, view, state)
