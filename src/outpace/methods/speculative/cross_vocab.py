"""A drafter with another tokenizer: drafts meet the target as text, or as tokens that both write alike.

Paper: Timor et al. (2025), arXiv 2502.05202, algorithms 2 (slem), 3 (slrs) and 4 (tli).
Guarantee: exact for mode=slem and wherever accept_rule=match; distribution for slrs and tli with the paper's rule.
Cost: at most 1 target forward per emitted token; one drafter forward per drafter token (slem, tli), or per byte or so
    of every drafted token, in a tree of `paths` branches (slrs); the drafter's weights and cache.
Differences: slem drafts greedily, which sample and match accepts most of, and aligns texts by bytes; slrs follows the
    likeliest sequences only, drafts a chain of tokens instead of one, and applies temperature and cuts to psi, as tli
    does to the shared tokens, instead of to the drafter's own law; end tokens can be drafted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.accept import rejection, sample_and_match
from outpace.draft.foreign import ForeignDrafter, SharedTokens, StringTokens
from outpace.draft.model import draft_chain
from outpace.draft.strings import Lexicon, Respelling, lexicon
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.base import Method, Paper, chain, nothing
from outpace.schedule import next_length
from outpace.types import Context, Decision, Guarantee, Needs, Outcome, Proposal, Scores, View

__all__ = ["CrossVocab", "CrossVocabState"]

_MODES = ("slem", "slrs", "tli")
_RULES = ("auto", "match", "rejection")


@dataclass
class CrossVocabState:
    """The drafter with each row's text in its ids, and each row's draft length."""

    drafter: ForeignDrafter
    length: list[int]


@dataclass(frozen=True)
class CrossVocab(Method):
    """Speculative decoding across vocabularies.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        mode: "slem" (string-level exact match), "slrs" (string-level rejection) or "tli" (token-level intersection).
        draft_len: most tokens of the target drafted per step.
        is_adaptive: let the length follow acceptance.
        min_confidence: stop drafting where no token is this likely (0 = never).
        accept_rule: "match", "rejection", or "auto": the mode's own, match for slem and rejection for the others.
        paths: sequences of drafter tokens that slrs follows at once.
        max_vocab: largest vocabulary, the target's or the drafter's, that slrs will sum over.

    Raises:
        ConfigError: an unknown mode or rule, slem with rejection, or a number out of range.
    """

    draft: str = "auto"
    mode: str = "slem"
    draft_len: int = 8
    is_adaptive: bool = True
    min_confidence: float = 0.0
    accept_rule: str = "auto"
    paths: int = 4
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
        "The sum over all of a drafter's sequences in slrs (the likeliest are followed, any other stops early), and"
        " encoder-decoder models.",
    )

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ConfigError(f"mode is {self.mode!r}.", "Use 'slem', 'slrs' or 'tli'.")
        if self.accept_rule not in _RULES:
            raise ConfigError(f"accept_rule is {self.accept_rule!r}.", "Use 'auto', 'match' or 'rejection'.")
        if self.mode == "slem" and self.accept_rule == "rejection":
            raise ConfigError("The rejection rule needs a law, which mode=slem has none of.", "Use mode=slrs or tli.")
        if self.draft_len < 1 or self.paths < 1:
            raise ConfigError(f"draft_len is {self.draft_len} and paths {self.paths}.", "Both must be 1 or more.")
        if not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"min_confidence is {self.min_confidence}.", "min_confidence must be from 0 to 1.")

    @property
    def _is_matched(self) -> bool:
        return self.accept_rule == "match" or (self.accept_rule == "auto" and self.mode == "slem")

    @property
    def needs(self) -> Needs:
        """A causal target, a drafter, and the tokenizers of both."""
        return Needs(has_rollback=True, width=self.draft_len, models=("draft",), has_text=True)

    @property
    def guarantee(self) -> Guarantee:
        """Exact by sample and match; the rejection rule keeps the law only."""
        return Guarantee.EXACT if self._is_matched else Guarantee.DISTRIBUTION

    def start(self, context: Context) -> CrossVocabState:
        """Lay the vocabularies side by side, and give the drafter an empty cache for the joining rows.

        Raises:
            CapabilityError: the two cannot be brought together this way.
        """
        drafter = context.models["draft"]
        sizes = context.target.capabilities.vocab_size, drafter.capabilities.vocab_size
        words = lexicon(context.tokenizers["target"], context.tokenizers["draft"], *sizes)
        self._check(words, context)
        cache = drafter.new_cache(len(context.texts), context.capacity, context.counters["draft"])
        texts = [Respelling(words) for _ in context.texts]
        first = max(1, self.draft_len // 2) if self.is_adaptive else self.draft_len
        return CrossVocabState(ForeignDrafter(drafter, words, cache, texts), [first] * len(texts))

    def _check(self, words: Lexicon, context: Context) -> None:
        for role, speller in (("target", words.target), ("draft", words.draft)):
            if not speller.ids:
                raise CapabilityError(
                    f"The {role} model's tokenizer does more than join bytes when it decodes.",
                    "Name a drafter with a byte-level or sentencepiece tokenizer.",
                )
        offered = context.models["draft"].capabilities
        if offered.is_encoder_decoder or context.target.capabilities.is_encoder_decoder:
            raise CapabilityError("The method cross-vocab takes decoder-only models.", "Use draft-model.")
        if self.mode == "tli" and max(words.shared) < 0:
            raise CapabilityError("The two vocabularies share no token.", "Use mode=slem.")
        largest = max(words.target.size, words.draft.size)
        if self.mode == "slrs" and largest > self.max_vocab:
            raise CapabilityError(
                f"A vocabulary has {largest} tokens, but mode=slrs sums over at most {self.max_vocab}.",
                "Use mode=slem or tli, or raise max_vocab.",
            )
        if self.mode == "slrs" and not offered.has_tree:
            raise CapabilityError("mode=slrs needs a drafter with tree attention.", "Use mode=slem or tli.")

    def propose(self, view: View, state: CrossVocabState) -> Proposal:
        """Draft text, or tokens of the target by the drafter's law over them."""
        lengths = [max(0, min(n, room - 1)) for n, room in zip(state.length, view.room, strict=True)]
        drafter = state.drafter
        if max(lengths) == 0:
            return nothing(view)
        if self.mode == "slem":
            return chain(view, drafter.draft_text(view, lengths, self.min_confidence), self.name)
        lengths = drafter.read(view, lengths, is_text=False)
        if max(lengths) == 0:
            return nothing(view)
        is_tli = self.mode == "tli"
        tokens = SharedTokens(drafter, view) if is_tli else StringTokens(drafter, view, self.paths)
        return draft_chain(
            tokens,
            tokens.cache_for(view),
            view,
            lengths,
            origin=self.name,
            is_coupled=self._is_matched,
            min_confidence=self.min_confidence,
        )

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: CrossVocabState) -> Decision:
        """Apply the mode's rule."""
        del state
        rule = sample_and_match if self._is_matched else rejection
        return rule(proposal, scores, view)

    def observe(self, outcome: Outcome, view: View, state: CrossVocabState) -> CrossVocabState:
        """Let the length follow acceptance; the texts are taken in when the drafter is asked next."""
        del view
        if not self.is_adaptive or outcome.proposal is None or outcome.proposal.origin != self.name:
            return state
        steps = zip(state.length, outcome.proposal.length, outcome.accepted, strict=True)
        return replace(state, length=[next_length(n, some, kept, self.draft_len) for n, some, kept in steps])
