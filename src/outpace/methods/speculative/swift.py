"""The target drafts with layers left out, and finds out while it writes which ones it can do without.

Paper: Xia et al. (2024), arXiv 2410.06916, SWIFT.
Guarantee: exact (sample and match).
Cost: at most 1 full target forward per emitted token; one partial forward per drafted token; while it searches, one
    more partial forward of `context` tokens per step. In a batch, one such forward per set of layers in use.
Differences: attention and MLP of a layer are left out together; a set is scored on the latest tokens, with the noise
    that they were drawn with, as acceptance will be; sets are not tried twice; every row searches for itself, or goes
    on from the caller's `LayerMemory`; chains are drafted unless `branches` asks for the paper's tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from outpace.draft.layers import LayerMemory, LayerSearch, draft_comb, match_rates, own_reach
from outpace.draft.memory import claim
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.base import Method, Paper, as_device, chain, nothing
from outpace.types import Adapter, Context, Counter, Needs, Proposal, View

__all__ = ["Swift", "SwiftState"]


@dataclass
class SwiftState:
    """The target, where drafting is counted, each row's search, and what the caller keeps."""

    target: Adapter
    counter: Counter
    searches: list[LayerSearch]
    memory: LayerMemory | None


@dataclass(frozen=True)
class Swift(Method):
    """Self-speculative decoding with layers chosen on the fly.

    Attributes:
        fraction: share of the layers between the first and the last that are left out.
        draft_len: most tokens drafted per step.
        min_confidence: stop drafting behind a token that is less likely to be picked than this.
        branches: most candidates for each drafted token; 1 = a chain.
        context: written tokens that a set of layers is scored on; the search begins when there are as many.
        bayes_interval: every so many sets, the most promising one is tried instead of a random one.
        max_score: the search ends when a set matches this share of the tokens.
        patience: or after so many sets without a better one.
        search_steps: or after so many sets.

    Raises:
        ConfigError: a number is outside its range.
    """

    fraction: float = 0.45
    draft_len: int = 10
    min_confidence: float = 0.5
    branches: int = 1
    context: int = 32
    bayes_interval: int = 25
    max_score: float = 0.95
    patience: int = 300
    search_steps: int = 1000

    name: ClassVar[str] = "swift"
    family: ClassVar[str] = "self-speculative"
    summary: ClassVar[str] = "The target drafts with layers skipped; which ones is searched for while it writes."
    paper: ClassVar[Paper] = Paper(
        "SWIFT: On-the-Fly Self-Speculative Decoding for LLM Inference Acceleration",
        "Xia et al.",
        2024,
        "2410.06916",
        225,
        "Skipping attention and MLP of a layer separately.",
    )

    def __post_init__(self) -> None:
        numbers = ("draft_len", "branches", "context", "bayes_interval", "patience", "search_steps")
        for name in numbers:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}.", f"{name} must be 1 or more.")
        if not 0 < self.fraction < 1:
            raise ConfigError(f"fraction is {self.fraction}.", "fraction must lie between 0 and 1.")
        if not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"min_confidence is {self.min_confidence}.", "min_confidence must be from 0 to 1.")

    @property
    def needs(self) -> Needs:
        """A causal target whose layers can be skipped, and tree attention for branches."""
        is_tree = self.branches > 1
        return Needs(has_tree=is_tree, has_rollback=True, has_skip=True, width=self.draft_len * self.branches)

    def start(self, context: Context) -> SwiftState:
        """Begin a search per row, or go on with the caller's.

        Raises:
            CapabilityError: no layer lies between the first and the last.
        """
        layers = context.target.capabilities.num_layers
        if layers < 3:
            raise CapabilityError(f"The model has {layers} layers, none to leave out.", "Use prompt-lookup or jacobi.")
        count = max(1, round((layers - 2) * self.fraction))
        memory = claim(context, self.name, LayerMemory)
        begun = LayerSearch(layers, count) if memory is None else memory.begin(layers, count)
        searches = [begun.copy() for _ in context.texts]
        return SwiftState(context.target, context.counters["draft"], searches, memory)

    def propose(self, view: View, state: SwiftState) -> Proposal:
        """Try one more set of layers where the search goes on, then draft with the best."""
        lengths = own_reach(state.target, view, [self.draft_len] * len(view.texts))
        if max(lengths) == 0:
            return nothing(view)
        self._search(view, state)
        nodes: list[list[tuple[int, int]]] = [[] for _ in lengths]
        drafting = zip(lengths, state.searches, strict=True)
        for skip in {search.best: None for length, search in drafting if length > 0}:
            own = [n if search.best == skip else 0 for n, search in zip(lengths, state.searches, strict=True)]
            found = draft_comb(
                state.target,
                view.cache.fork(state.counter),
                view,
                own,
                skip=skip,
                min_confidence=self.min_confidence,
                branches=self.branches,
            )
            nodes = [new or old for new, old in zip(found, nodes, strict=True)]
        proposal = chain(view, [[token for token, _ in row] for row in nodes], self.name)
        if self.branches > 1:
            parents = [[parent for _, parent in row] + [-1] * (proposal.tokens.shape[1] - len(row)) for row in nodes]
            proposal.parent = as_device(torch.tensor(parents, dtype=torch.int64).view(proposal.tokens.shape), view)
        return proposal

    def _search(self, view: View, state: SwiftState) -> None:
        due: dict[tuple[int, ...], list[int]] = {}
        for row, search in enumerate(state.searches):
            if view.lengths[row] - view.prompts[row] >= self.context and not self._is_over(search):
                is_bayes = (len(search.tried) + 1) % self.bayes_interval == 0
                due.setdefault(search.suggest(is_bayes), []).append(row)
        for skip, rows in due.items():
            rates = match_rates(state.target, state.counter, view, skip, self.context)
            for row in rows:
                state.searches[row].note(skip, rates[row])
                if state.memory is not None:
                    state.memory.learn(state.searches[row])

    def _is_over(self, search: LayerSearch) -> bool:
        return (
            search.best_score >= self.max_score
            or search.since_best >= self.patience
            or len(search.tried) >= self.search_steps
            or search.is_exhausted
        )
