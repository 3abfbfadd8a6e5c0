"""Two models take turns in one text: the small one writes where texts are easy, the large one where entropy is high.

Paper: Simonds (2025), arXiv 2502.06833, Entropy Adaptive Decoding.
Guarantee: approximate. threshold=0 gives the large model's own text, threshold=inf the small one's.
Cost: one forward of the large model per token that it writes, which also reads what the small one wrote since; a draft
    forward per token of the small one. `num_accepted` of the usage counts the small model's tokens.
Differences: entropies are of the model that writes a token, in nats, and the mean over the last `window` tokens
    decides; the large model also reads whenever the small one has written `draft_len` tokens, without writing one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from outpace.accept.lenient import lenient
from outpace.draft.model import draft_chain
from outpace.draft.reading import Drafter
from outpace.methods.base import Paper, nothing
from outpace.methods.speculative.drafted import Drafted
from outpace.setting import setting
from outpace.types import Context, Decision, Guarantee, Outcome, Proposal, Scores, View

__all__ = ["EntropySwitch"]


@dataclass
class Turns:
    """Who writes each row, and the entropies of its last tokens."""

    drafter: Drafter
    recent: list[list[float]]
    is_large: list[bool]


@dataclass(frozen=True, slots=True)
class _Chain:
    """What the small model wrote: tokens [B, D], how many, how many it might have, and its entropies at each place."""

    tokens: Tensor
    counts: list[int]
    wanted: list[int]
    seen: list[list[float]]


@dataclass(frozen=True)
class EntropySwitch(Drafted):
    """Switching by entropy.

    Attributes:
        draft: the small model: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        threshold: mean entropy in nats above which the large model writes; 0 = always, inf = never.
        window: tokens that the mean is over.
        draft_len: tokens of the small model that one forward of the large one reads.

    Raises:
        ConfigError: a number out of range.
    """

    threshold: float = setting(1.5, least=0)
    window: int = setting(4, least=1)
    draft_len: int = setting(16, least=1)

    name: ClassVar[str] = "entropy-switch"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A small model writes where entropy is low, the large one elsewhere; changes the text."
    paper: ClassVar[Paper] = Paper(
        "Entropy Adaptive Decoding: Dynamic Model Switching for Efficient Inference", "Simonds", 2025, "2502.06833", 228
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
        """The small model's tokens stay."""
        return Guarantee.APPROXIMATE

    def start(self, context: Context) -> Turns:
        """Let the small model begin."""
        rows = len(context.texts)
        return Turns(Drafter.begin(context), [[] for _ in range(rows)], [self.threshold <= 0] * rows)

    def propose(self, view: View, state: Turns) -> Proposal:
        """Let the small model write where it is its turn, until its entropy is too high."""
        context = state.drafter.adapter.capabilities.max_positions
        rows = zip(view.room, view.lengths, state.is_large, strict=True)
        wanted = [0 if large else max(0, min(self.draft_len, room, context - n)) for room, n, large in rows]
        seen = [list(recent) for recent in state.recent]

        def goes_on(logits: Tensor) -> list[bool]:
            now = entropy(logits)
            found = [self._mean([*past, one]) <= self.threshold for past, one in zip(seen, now, strict=True)]
            for past, one in zip(seen, now, strict=True):
                past.append(one)
            return found

        drafts = nothing(view)
        if max(wanted):
            drafts = draft_chain(state.drafter, view, wanted, origin=self.name, goes_on=goes_on)
        # A text's last token needs no node: nothing is asked behind it.
        ends = zip(drafts.length, view.room, strict=True)
        nodes = [count - (0 < count == room) for count, room in ends]
        carry = _Chain(drafts.tokens, drafts.length, wanted, seen)
        return replace(drafts, tokens=drafts.tokens[:, : max(nodes)], length=nodes, carry=carry)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Turns) -> Decision:
        """Keep all that the small model wrote; the large one writes the next token where it is its turn."""
        chain: _Chain = proposal.carry
        decision = lenient(proposal, scores, view, float("inf"), chain.tokens, chain.counts)
        rows = list(zip(chain.counts, chain.wanted, proposal.length, strict=True))
        # Nodes may have been cut off: the text then goes on with what the small model wrote, to be read next time.
        asked = [nodes == count and not 0 < most == count for count, most, nodes in rows]
        small = [min(count, nodes + 1) for count, _, nodes in rows]
        num = [count + large for count, large in zip(small, asked, strict=True)]
        decision.num = torch.tensor(num, dtype=decision.num.dtype, device=decision.num.device)
        told = entropy(scores.logits[range(len(rows)), proposal.length])
        decision.carry = [(n, one if large else None) for n, one, large in zip(small, told, asked, strict=True)]
        return decision

    def observe(self, outcome: Outcome, view: View, state: Turns) -> Turns:
        """Note the entropies of what was written, and whose turn it is."""
        state.drafter.observe(outcome, view)
        if outcome.proposal is None or outcome.decision is None:
            return state
        recent, is_large = [], []
        rows = zip(state.recent, outcome.proposal.carry.seen, outcome.decision.carry, strict=True)
        for old, new, (count, large) in rows:
            one = [*new[: len(old) + count], *([] if large is None else [large])][-self.window :]
            recent.append(one)
            is_large.append(self.threshold <= 0 or (large is not None and self._mean(one) > self.threshold))
        return Turns(state.drafter, recent, is_large)

    def _mean(self, entropies: Sequence[float]) -> float:
        last = entropies[-self.window :]
        return sum(last) / len(last)


def entropy(logits: Tensor) -> list[float]:
    """Return the entropy in nats of each law, from logits [B, V]."""
    law = logits.double().log_softmax(-1).exp()
    found: list[float] = (-torch.special.xlogy(law, law).sum(-1)).tolist()
    return found
