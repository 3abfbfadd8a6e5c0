"""Draft what followed the same words before, and beside it what the target had expected there.

Paper: Wang et al. (2025), arXiv 2505.13204: alignment sampling and conditional verification.
Guarantee: approximate with the paper's flexible verification (default), which keeps likely drafts that the target would
    not have written; exact with threshold=1, strict matching (sample and match).
Cost: at most 1 target forward per emitted token; logits at every prompt position; 96 bytes per token of the text and an
    index of about 100 bytes per n-gram.
Differences: expectations at written tokens are kept too, not only at those of the prompt; samples share the noise of
    the place they are drafted for; the 8 likeliest tokens of each law are kept; the defaults of threshold and slack are
    ours.
Longer than most: what the target expected is kept from the prompt's chunks and from steps alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.accept import sample_and_match
from outpace.accept.conditional import conditional_verification
from outpace.draft.alignment import AlignmentLaws
from outpace.draft.harvest import scored_text
from outpace.draft.ngram import NgramIndex
from outpace.methods.base import Method, Paper, chain, trees
from outpace.setting import ordered, setting
from outpace.types import Context, Decision, Guarantee, Needs, Outcome, Proposal, Scores, View

__all__ = ["Alignment", "AlignmentState"]

_KEPT = 8  # tokens kept of each law


@dataclass
class AlignmentState:
    """Of each row: where its n-grams ended, and what the target expected after each token."""

    index: list[NgramIndex]
    laws: list[AlignmentLaws]


@dataclass(frozen=True)
class Alignment(Method):
    """Alignment sampling.

    Attributes:
        draft_len: most tokens retrieved per step.
        samples: most tokens drawn beside a retrieved one that the target did not expect; 0 = a chain.
        threshold: probability that lets a draft stay where the target is sure; 1 = strict matching, exact.
        slack: how much less suffices per nat of the target's entropy.
        max_ngram: longest ending of the text that is looked up.
        min_ngram: shortest.

    Raises:
        ConfigError: a length or number out of range.
    """

    draft_len: int = setting(8, least=1)
    samples: int = setting(2, least=0, below=_KEPT)
    threshold: float = setting(0.3, above=0, most=1)
    slack: float = setting(0.05, least=0, most=1)
    max_ngram: int = setting(4, least=1)
    min_ngram: int = setting(1, least=1)

    name: ClassVar[str] = "alignment"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "Drafts copied text, and beside it what the target expected there; keeps what is likely."
    paper: ClassVar[Paper] = Paper(
        "Alignment-Augmented Speculative Decoding with Alignment Sampling and Conditional Verification",
        "Wang et al.",
        2025,
        "2505.13204",
        114,
        "Several retrieved continuations in one tree.",
    )

    def __post_init__(self) -> None:
        """Hold the settings to their ranges and order."""
        super().__post_init__()
        ordered(self, "min_ngram", "max_ngram")

    @property
    def needs(self) -> Needs:
        """A causal target that can drop staged entries, its logits at prompt positions, and trees for samples."""
        width = self.draft_len * (1 + self.samples)
        return Needs(has_tree=self.samples > 0, has_rollback=True, width=width, has_prefill_logits=True)

    @property
    def guarantee(self) -> Guarantee:
        """Exact by strict matching; flexible verification keeps drafts that the target would not have written."""
        return Guarantee.EXACT if self.threshold == 1 else Guarantee.APPROXIMATE

    def start(self, context: Context) -> AlignmentState:
        """Return an empty index, and no expectations, per row."""
        index = [NgramIndex(self.min_ngram, self.max_ngram) for _ in context.texts]
        return AlignmentState(index, [AlignmentLaws(_KEPT) for _ in context.texts])

    def propose(self, view: View, state: AlignmentState) -> Proposal:
        """Draft the retrieved tokens as a chain, and samples as leaves beside those that were not expected."""
        drafts = [self._tree(row, view, state) for row in range(len(view.texts))]
        if not self.samples:
            return chain(view, [tokens for tokens, _ in drafts], self.name)
        return trees(view, drafts, self.name)

    def _tree(self, row: int, view: View, state: AlignmentState) -> tuple[list[int], list[int]]:
        """Return one row's tokens and parents, the retrieved chain first."""
        text, index = view.texts[row], state.index[row]
        index.extend(text)
        at = index.lookup(text)
        if at is None:
            return [], []
        copied = text[at : at + max(0, min(self.draft_len, view.room[row] - 1))]
        return state.laws[row].beside(copied, at - 1, len(text), view.sampler.rows([row]), self.samples)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: AlignmentState) -> Decision:
        """Match strictly, or keep what is likely enough."""
        del state
        if self.threshold == 1:
            return sample_and_match(proposal, scores, view)
        return conditional_verification(proposal, scores, view, self.threshold, self.slack)

    def observe(self, outcome: Outcome, view: View, state: AlignmentState) -> AlignmentState:
        """Keep what the target expected after each token of the text: the prompt's and those written."""
        if outcome.scores is None:
            return state
        for row, (text, laws) in enumerate(zip(view.texts, state.laws, strict=True)):
            first, entries = scored_text(outcome, row, text)
            if entries and outcome.scores.logits.shape[1]:
                laws.save(first, outcome.scores.logits[row, entries])
        return state
