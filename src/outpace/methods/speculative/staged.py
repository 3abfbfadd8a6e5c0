"""A small model drafts a tree, and is itself decoded speculatively, with drafts from an n-gram table.

Paper: Spector, Re (2023), arXiv 2308.04623.
Guarantee: exact (sample and match, on both stages: the drafter's drafts are what it would draft alone).
Cost: at most 1 target forward per emitted token; at most one draft forward per level of the tree, fewer where the table
    guesses right; the drafter's weights and cache, and the table (about 100 bytes per context).
Differences: the table holds what the drafter said last after each few tokens, and the text, and is filled as the run
    goes (and kept, where the caller gives a `BackoffTable` as memory), where the paper samples 120 million tokens of
    the drafter beforehand; the tree is the drafter's chain with the
    next likeliest tokens beside each of its tokens, where the paper's tree branches by probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from outpace.accept import sample_and_match
from outpace.draft.backoff import BackoffTable
from outpace.draft.memory import claim
from outpace.draft.reading import Drafter, branch_scores
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, chain, nothing
from outpace.run.layout import lay_out
from outpace.run.prefill import catch_up
from outpace.run.tree import TokenTree
from outpace.types import Context, Needs, Outcome, Proposal, View

__all__ = ["Staged", "StagedState"]

_LARGEST = 1024  # tokens that one forward of the drafter may guess


@dataclass
class StagedState:
    """The drafter, its table, and how much of each row's text the table has seen."""

    drafter: Drafter
    table: BackoffTable
    num_seen: list[int]


@dataclass
class _Trunk:
    """The drafter's chains as they grow.

    Attributes:
        tokens: per row.
        ranked: [B, D, K] the likeliest tokens at each place, from the forward that drafted it, and their scores.
    """

    tokens: list[list[int]]
    ranked: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Staged(Method):
    """Staged speculative decoding.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        draft_len: levels of the tree.
        branches: further tokens tried at each level, beside the drafter's own.
        ngram_len: most tokens per draft forward that the table guesses; 0 = the drafter drafts token by token.
        order: tokens of the table's longest context.

    Raises:
        ConfigError: a draft length or order below 1, or another number below 0.
    """

    draft: str = "auto"
    draft_len: int = 5
    branches: int = 2
    ngram_len: int = 4
    order: int = 3

    name: ClassVar[str] = "staged"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A small model, itself sped up by an n-gram table, drafts a tree that the target checks."
    paper: ClassVar[Paper] = Paper(
        "Accelerating LLM Inference with Staged Speculative Decoding",
        "Spector, Re",
        2023,
        "2308.04623",
        334,
        "Sampling the n-gram model from the drafter beforehand.",
    )

    def __post_init__(self) -> None:
        if self.draft_len < 1 or self.order < 1:
            raise ConfigError(f"draft_len is {self.draft_len} and order {self.order}.", "Both must be 1 or more.")
        if self.branches < 0 or not 0 <= self.ngram_len <= _LARGEST:
            raise ConfigError(
                f"branches is {self.branches} and ngram_len {self.ngram_len}.",
                f"Both must be 0 or more, and ngram_len at most {_LARGEST}.",
            )

    @property
    def needs(self) -> Needs:
        """A causal target that scores trees, and a draft model of the same vocabulary."""
        width = self.draft_len * (1 + self.branches)
        return Needs(has_tree=self.branches > 0, has_rollback=True, width=width, models=("draft",))

    def start(self, context: Context) -> StagedState:
        """Give the drafter an empty cache for the joining rows, and a table: the caller's, or an empty one."""
        drafter = Drafter(context.models["draft"], context.cache_for("draft"))
        table = claim(context, self.name, BackoffTable) or BackoffTable(self.order)
        return StagedState(drafter, table, [0] * len(context.texts))

    def propose(self, view: View, state: StagedState) -> Proposal:
        """Draft the trunk in as few forwards as the table allows, and put branches beside it."""
        reach = state.drafter.reach(view, self.draft_len)
        if max(reach) == 0:
            return nothing(view)
        for row, (text, seen) in enumerate(zip(view.texts, state.num_seen, strict=True)):
            state.table.learn(text, seen)
            state.num_seen[row] = len(text)
        trunk = self._draft(view, state, reach)
        if self.branches == 0:
            return chain(view, trunk.tokens, self.name)
        return self._tree(trunk, max(reach)).proposal(self.name)

    def _draft(self, view: View, state: StagedState, reach: Sequence[int]) -> _Trunk:
        """Decode the drafter speculatively: each forward checks what the table guessed, and adds the drafter's own."""
        adapter, cache, rows = state.drafter.adapter, state.drafter.cache, len(reach)
        texts = [
            list(text) if n else text[:held] for text, n, held in zip(view.texts, reach, cache.lengths, strict=True)
        ]
        for _ in catch_up(adapter, cache, texts):
            pass
        device, size = cache.device, 1 + min(self.branches, adapter.capabilities.vocab_size - 1)
        ranked = torch.zeros(rows, max(reach) + self.ngram_len + 1, size, dtype=torch.int64, device=device)
        trunk = _Trunk([[] for _ in texts], ranked, torch.zeros_like(ranked, dtype=torch.float64))
        while any(len(tokens) < n for tokens, n in zip(trunk.tokens, reach, strict=True)):
            self._advance(view, state, reach, texts, trunk)
        return trunk

    def _advance(
        self, view: View, state: StagedState, reach: Sequence[int], texts: list[list[int]], trunk: _Trunk
    ) -> None:
        """Run one forward of the drafter: at each unfinished row, `texts` and the trunk grow by one token or more."""
        adapter, cache = state.drafter.adapter, state.drafter.cache
        left = [n - len(tokens) for tokens, n in zip(trunk.tokens, reach, strict=True)]
        guesses = [
            state.table.guess(text, min(self.ngram_len, n - 1)) if n else []
            for text, n in zip(texts, left, strict=True)
        ]
        width = max(len(guess) for guess in guesses)
        table = [guess + [0] * (width - len(guess)) for guess in guesses]
        lengths = [len(guess) for guess in guesses]
        tokens = torch.tensor(table, dtype=torch.int64, device=trunk.ranked.device).view(len(table), width)
        proposal = Proposal(tokens, lengths)
        # A finished row waits: nothing of it is forwarded.
        pending = [text[held:] if n else [] for text, held, n in zip(texts, cache.lengths, left, strict=True)]
        layout = lay_out(pending, cache.lengths, proposal)
        scores = adapter.score(layout.tokens, layout.position, layout.visible, cache, layout.ask)
        inner = View(texts, view.prompts, left, view.step, cache, view.sampler)
        decision = sample_and_match(proposal, scores, inner)
        if self.branches:
            self._rank(inner, proposal, scores.logits, trunk)
        counts, drawn = decision.num.tolist(), decision.tokens.clamp(min=0).tolist()
        kept = []
        for row, n in enumerate(left):
            said = drawn[row][: counts[row]] if n else []
            kept.append(range(len(pending[row]) + len(said) - 1) if n else range(0))
            texts[row] += said
            trunk.tokens[row] += said
            state.table.learn(texts[row], len(texts[row]) - len(said))
        cache.keep(kept)

    def _rank(self, inner: View, proposal: Proposal, logits: Tensor, trunk: _Trunk) -> None:
        """Note the likeliest tokens at the places that a forward may draft; wrong guesses are overwritten later."""
        device = logits.device
        offset = torch.arange(logits.shape[1], device=device)
        place = torch.tensor(inner.lengths, device=device).unsqueeze(1) + offset
        history = inner.sampler.history(inner.texts, inner.prompts, logits.shape[-1])
        if history is None:
            found = branch_scores(inner, logits, place)
        else:  # the guesses before a place count as written, as they do where the drafter drafts token by token
            parts = []
            for step in range(logits.shape[1]):
                here = slice(step, step + 1)
                parts.append(branch_scores(inner, logits[:, here], place[:, here], history))
                ahead = [row for row, length in enumerate(proposal.length) if step < length]
                if ahead:
                    history.push(proposal.tokens[:, step].tolist(), ahead)
            found = torch.cat(parts, 1)
        scores, ranked = found.topk(trunk.ranked.shape[2], dim=-1)
        drafted = torch.tensor([len(tokens) for tokens in trunk.tokens], device=device).unsqueeze(1)
        at = (drafted + offset).clamp_(max=trunk.ranked.shape[1] - 1).unsqueeze(-1).expand(ranked.shape)
        trunk.ranked.scatter_(1, at, ranked)
        trunk.scores.scatter_(1, at, scores.double())

    def _tree(self, trunk: _Trunk, levels: int) -> TokenTree:
        """Return the trunk with its branches: level by level, the drafter's token and then the others."""
        rows, device = len(trunk.tokens), trunk.ranked.device
        own = torch.tensor([tokens + [0] * (levels - len(tokens)) for tokens in trunk.tokens], device=device)
        length = torch.tensor([len(tokens) for tokens in trunk.tokens], device=device).unsqueeze(1)
        is_drafted = torch.arange(levels, device=device) < length
        ranked, scores = trunk.ranked[:, :levels], trunk.scores[:, :levels]
        # The drafter's own token is the first of them; wherever it stands, it moves behind the others and is cut off.
        order = (ranked == own.unsqueeze(-1)).to(torch.int8).sort(dim=-1, stable=True).indices[..., : self.branches]
        beside, finite = ranked.gather(2, order), scores.gather(2, order) > float("-inf")
        size = 1 + beside.shape[2]
        tokens = torch.cat([own.unsqueeze(-1), beside], 2).flatten(1)
        is_node = torch.cat([torch.ones_like(own, dtype=torch.bool).unsqueeze(-1), finite], 2) & is_drafted.unsqueeze(
            -1
        )
        above = torch.arange(levels, device=device).sub(1).mul(size).clamp(min=-1)
        parent = above.repeat_interleave(size).expand(rows, -1)
        return TokenTree(tokens, parent, []).keep(is_node.flatten(1))

    def observe(self, outcome: Outcome, view: View, state: StagedState) -> StagedState:
        """Forget drafted entries that did not become text."""
        if outcome.proposal is not None:
            state.drafter.forget(outcome, view)
        return state
