"""A chain with branches: the drafter's own tokens, and beside each the next likeliest ones as leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from outpace.accept import sample_and_match
from outpace.draft.backoff import BackoffTable
from outpace.draft.reading import branch_scores
from outpace.run.tree import TokenTree
from outpace.types import Context, Decision, Needs, Outcome, Proposal, Scores, View

__all__ = ["TableGuesses", "Trunks", "comb"]


@dataclass
class Trunks:
    """What a nested run has drafted: per row and place the likeliest tokens [N, K], and their scores.

    Attributes:
        table: guesses what the drafter will say.
        found: per row, pieces of [n, 2, K]: tokens and scores, in float64, of the places that were drafted.
    """

    table: BackoffTable
    found: list[list[Tensor]] = field(default_factory=list)

    def take(self, levels: int) -> Tensor:
        """Return what was found, [B, levels, 2, K], zeros where nothing was drafted, and forget it."""
        rows = [torch.cat(pieces)[:levels] if pieces else None for pieces in self.found]
        self.found = [[] for _ in rows]
        like = next(row for row in rows if row is not None)
        table = like.new_zeros(len(rows), levels, *like.shape[1:])
        for place, row in enumerate(rows):
            if row is not None:
                table[place, : len(row)] = row
        return table


@dataclass(frozen=True, slots=True)
class TableGuesses:
    """How a drafting model is decoded with an n-gram table's guesses: the method of a nested run.

    Attributes:
        most: tokens that the table guesses per forward; 0 = none.
        branches: likeliest tokens that are noted beside each that is written; 0 = none.
    """

    most: int
    branches: int

    needs = Needs()

    def start(self, context: Context) -> Trunks:
        """Return empty trunks; the table is the run's memory."""
        return Trunks(context.memory, [[] for _ in context.texts])

    def propose(self, view: View, state: Trunks) -> Proposal:
        """Guess from the table."""
        rows = zip(view.texts, view.room, strict=True)
        guesses = [state.table.guess(text, min(self.most, room - 1)) for text, room in rows]
        width = max(map(len, guesses))
        padded = [guess + [0] * (width - len(guess)) for guess in guesses]
        tokens = torch.tensor(padded, dtype=torch.int64, device=view.device).view(len(padded), width)
        return Proposal(tokens, [len(guess) for guess in guesses])

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Trunks) -> Decision:
        """Match the guesses, and look what stands beside."""
        del state
        decision = sample_and_match(proposal, scores, view)
        if self.branches:
            decision.carry = _ranked(proposal, scores.logits, view, 1 + self.branches)
        return decision

    def observe(self, outcome: Outcome, view: View, state: Trunks) -> Trunks:
        """Note what the drafter said, and what it said beside it."""
        if outcome.decision is None:
            return state
        for row, (text, tokens) in enumerate(zip(view.texts, outcome.emitted, strict=True)):
            state.table.learn(text, len(text) - len(tokens))
            if self.branches and tokens:
                state.found[row].append(outcome.decision.carry[row, : len(tokens)])
        return state


def _ranked(proposal: Proposal, logits: Tensor, view: View, count: int) -> Tensor:
    """Return the likeliest tokens after the root and every node of a chain, and their scores, [B, 1 + W, 2, count]."""
    steps = torch.arange(logits.shape[1], device=logits.device)
    place = torch.tensor(view.lengths, device=logits.device).unsqueeze(1) + steps
    history = view.sampler.history(view.texts, view.prompts, logits.shape[-1])
    if history is None:
        found = branch_scores(view, logits, place)
    else:  # the guesses before a place count as written, as they do where the drafter drafts token by token
        parts = []
        for step in range(logits.shape[1]):
            here = slice(step, step + 1)
            parts.append(branch_scores(view, logits[:, here], place[:, here], history))
            ahead = [row for row, length in enumerate(proposal.length) if step < length]
            if ahead:
                history.push(proposal.tokens[:, step].tolist(), ahead)
        found = torch.cat(parts, 1)
    scores, tokens = found.topk(min(count, found.shape[-1]), dim=-1)
    return torch.stack([tokens.double(), scores.double()], 2)


def comb(drafts: Sequence[Sequence[int]], found: Tensor, branches: int) -> TokenTree:
    """Return chains with branches: level by level the chain's token and then the others.

    Args:
        drafts: the chain of each row.
        found: [B, levels, 2, K] from `Trunks.take`.
        branches: most leaves beside a token.
    """
    rows, levels = found.shape[:2]
    device, (ranked, scores) = found.device, found.unbind(2)
    own = torch.tensor([[*tokens, *[0] * (levels - len(tokens))] for tokens in drafts], device=device)
    length = torch.tensor([len(tokens) for tokens in drafts], device=device).unsqueeze(1)
    is_drafted = torch.arange(levels, device=device) < length
    # The chain's own token is the first of them; wherever it stands, it moves behind the others and is cut off.
    order = (ranked == own.unsqueeze(-1)).to(torch.int8).sort(dim=-1, stable=True).indices[..., :branches]
    beside, finite = ranked.long().gather(2, order), scores.gather(2, order) > float("-inf")
    size = 1 + beside.shape[2]
    tokens = torch.cat([own.unsqueeze(-1), beside], 2).flatten(1)
    is_own = torch.ones_like(own, dtype=torch.bool).unsqueeze(-1)
    is_node = torch.cat([is_own, finite], 2) & is_drafted.unsqueeze(-1)
    above = torch.arange(levels, device=device).sub(1).mul(size).clamp(min=-1)
    parent = above.repeat_interleave(size).expand(rows, -1)
    return TokenTree(tokens, parent, []).keep(is_node.flatten(1))
