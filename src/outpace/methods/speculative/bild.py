"""A small model writes, and asks the large one only where it is unsure: Big Little Decoder.

Paper: Kim et al. (2023), arXiv 2302.07863, algorithm 1: the fallback and the rollback policy.
Guarantee: approximate. fallback=1 or rollback=0 gives the large model's own text; fallback=0 with rollback=inf the
    small one's.
Cost: one forward of the large model per hand-over, which also checks what the small one wrote since the last; one draft
    forward per token; the drafter's weights and cache. At most 1 target forward per emitted token.
Differences: the large model also looks whenever the small one has written `draft_len` + 1 tokens by itself, and after
    the last one: a check, not a hand-over. The paper leaves the end of a text unchecked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from outpace.accept.lenient import lenient
from outpace.draft.model import draft_chain
from outpace.draft.reading import Drafter
from outpace.methods.base import Paper, nothing
from outpace.methods.speculative.drafted import Drafted
from outpace.setting import setting
from outpace.types import Decision, Guarantee, Proposal, Scores, View

__all__ = ["Bild"]


@dataclass(frozen=True, slots=True)
class _Drafts:
    """What the small model wrote: tokens [B, D], and how many per row."""

    tokens: Tensor
    counts: list[int]


@dataclass(frozen=True)
class Bild(Drafted):
    """Big Little Decoder.

    Attributes:
        draft: the small model: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        fallback: the large model writes the next token where the small one gives none this probability; 0 = never,
            1 = always.
        rollback: a token of the small model is taken back where its cross-entropy under the large one, in nats, is
            above this; 0 = unless the large one writes it too, inf = never.
        draft_len: tokens of the small model that one forward of the large one reads.

    Raises:
        ConfigError: a threshold out of range, or draft_len below 1.
    """

    fallback: float = setting(0.6, least=0, most=1)
    rollback: float = setting(3.0, least=0, note="inf = never")
    draft_len: int = setting(10, least=1)

    name: ClassVar[str] = "bild"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A small model writes, a large one steps in where it is unsure or wrong; changes the text."
    paper: ClassVar[Paper] = Paper(
        "Speculative Decoding with Big Little Decoder",
        "Kim et al.",
        2023,
        "2302.07863",
        24,
        "Prediction alignment (training the small model on the large one's texts).",
    )

    @property
    def width(self) -> int:
        """The longest chain."""
        return self.draft_len

    @property
    def is_tree(self) -> bool:
        """Chains only."""
        return False

    @property
    def guarantee(self) -> Guarantee:
        """Tokens that the large model would not have written may stay."""
        return Guarantee.APPROXIMATE

    def propose(self, view: View, state: Drafter) -> Proposal:
        """Let the small model write until it is unsure; its last token, if it was sure of it, needs no node."""
        wanted = [0] * len(view.texts) if self.fallback >= 1 else self._wanted(view, state)
        if max(wanted) == 0:
            return replace(nothing(view), carry=_Drafts(nothing(view).tokens, wanted))
        chain = draft_chain(state, view, wanted, origin=self.name, min_confidence=self.fallback)
        # Logits behind a node judge the token after it, so a row that was never unsure leaves its last token out.
        sure = zip(chain.length, wanted, strict=True)
        length = [count - (0 < most == count) for count, most in sure]
        nodes = chain.tokens[:, : max(length)]
        return Proposal(nodes, length, origin=self.name, carry=_Drafts(chain.tokens, chain.length))

    def _wanted(self, view: View, state: Drafter) -> list[int]:
        """Return how many tokens each row's small model may write: one more than `Drafter.reach` counts."""
        context = state.adapter.capabilities.max_positions
        most = self.draft_len + 1
        return [max(0, min(most, room, context - length)) for room, length in zip(view.room, view.lengths, strict=True)]

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Drafter) -> Decision:
        """Apply the rollback policy; the large model writes where it takes a token back or was asked."""
        del state
        drafts: _Drafts = proposal.carry
        return lenient(proposal, scores, view, self.rollback, drafts.tokens, drafts.counts)
