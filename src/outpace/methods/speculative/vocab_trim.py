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

from outpace.accept import rejection, sample_and_match
from outpace.draft.memory import claim
from outpace.draft.model import draft_chain
from outpace.draft.reading import Drafter
from outpace.draft.vocabulary import TokenCounts, TrimmedHead
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, nothing
from outpace.schedule import next_length
from outpace.types import Context, Decision, Guarantee, Needs, Outcome, Proposal, Scores, View

__all__ = ["VocabTrim", "VocabTrimState"]


@dataclass
class VocabTrimState:
    """The trimmed drafter, each row's draft length, and the caller's counts, or None."""

    drafter: Drafter
    length: list[int]
    memory: TokenCounts | None


@dataclass(frozen=True)
class VocabTrim(Method):
    """VocabTrim.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        k: tokens that the drafter's head keeps.
        counts: file of token counts, as `TokenCounts.save` writes it; "" = a `TokenCounts` given as memory, which goes
            on counting, or else the lowest ids.
        draft_len: most tokens drafted per step.
        is_adaptive: let the length follow acceptance.
        accept_rule: "match" or "rejection".

    Raises:
        ConfigError: a k or length below 1, or an unknown rule.
    """

    draft: str = "auto"
    k: int = 2048
    counts: str = ""
    draft_len: int = 8
    is_adaptive: bool = True
    accept_rule: str = "match"

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

    def __post_init__(self) -> None:
        if self.k < 1 or self.draft_len < 1:
            raise ConfigError(f"k is {self.k} and draft_len {self.draft_len}.", "Both must be 1 or more.")
        if self.accept_rule not in ("match", "rejection"):
            raise ConfigError(f"accept_rule is {self.accept_rule!r}.", "Use 'match' or 'rejection'.")

    @property
    def needs(self) -> Needs:
        """A causal target, and a draft model of the same vocabulary."""
        return Needs(has_rollback=True, width=self.draft_len, models=("draft",))

    @property
    def guarantee(self) -> Guarantee:
        """Exact by sample and match; the rejection rule keeps the law only."""
        return Guarantee.EXACT if self.accept_rule == "match" else Guarantee.DISTRIBUTION

    def start(self, context: Context) -> VocabTrimState:
        """Cut the drafter's head, and give it an empty cache for the joining rows.

        Raises:
            ConfigError: the counts cannot be read, or are of another vocabulary.
        """
        memory = claim(context, self.name, TokenCounts)
        vocab_size = context.target.capabilities.vocab_size
        counts = memory or TokenCounts()
        if self.counts:
            counts = TokenCounts.read(self.counts)
            counts.bind(vocab_size)
        adapter = context.models["draft"]
        if self.k < vocab_size:
            adapter = TrimmedHead(adapter, counts.most_frequent(self.k, vocab_size))
        first = max(1, self.draft_len // 2) if self.is_adaptive else self.draft_len
        return VocabTrimState(Drafter(adapter, context.cache_for("draft")), [first] * len(context.texts), memory)

    def propose(self, view: View, state: VocabTrimState) -> Proposal:
        """Let the drafter catch up and draft a chain."""
        drafter, is_coupled = state.drafter, self.accept_rule == "match"
        reach = drafter.reach(view, state.length)
        if max(reach) == 0:
            return nothing(view)
        return draft_chain(drafter.adapter, drafter.cache, view, reach, origin=self.name, is_coupled=is_coupled)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: VocabTrimState) -> Decision:
        """Apply the chosen rule."""
        del state
        rule = sample_and_match if self.accept_rule == "match" else rejection
        return rule(proposal, scores, view)

    def observe(self, outcome: Outcome, view: View, state: VocabTrimState) -> VocabTrimState:
        """Forget drafted entries that did not become text; count what was written; let the length follow acceptance."""
        if outcome.proposal is None:
            return state
        state.drafter.forget(outcome, view)
        if state.memory is not None:
            for tokens in outcome.emitted:
                state.memory.add(tokens)
        if not self.is_adaptive or outcome.proposal.origin != self.name:
            return state
        steps = zip(state.length, outcome.proposal.length, outcome.accepted, strict=True)
        lengths = [next_length(length, proposed, accepted, self.draft_len) for length, proposed, accepted in steps]
        return VocabTrimState(state.drafter, lengths, state.memory)
