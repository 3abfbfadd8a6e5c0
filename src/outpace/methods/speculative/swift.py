"""The target drafts with layers left out, and finds out while it writes which ones it can do without.

Paper: Xia et al. (2024), arXiv 2410.06916, SWIFT.
Guarantee: exact (sample and match).
Cost: at most 1 full target forward per emitted token; one partial forward per drafted token; while it searches, one
    more partial forward of `context` tokens per step. In a batch, one such forward per set of layers in use.
Differences: attention and MLP of a layer are left out together; a set is scored on the latest tokens, with the noise
    that they were drawn with, as acceptance will be; sets are not tried twice; every row searches for itself, or goes
    on from the caller's `LayerMemory`; chains are drafted unless `branches` asks for the paper's tree.
Longer than most: a search runs beside the drafting, and has settings of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.draft.layers import LayerMemory, LayerSearch, SearchPlan, SelfDrafter, draft_combs
from outpace.draft.memory import claim
from outpace.errors import CapabilityError
from outpace.methods.base import Method, Paper, chain, nothing, trees
from outpace.setting import setting
from outpace.types import Context, Needs, Proposal, View

__all__ = ["Swift", "SwiftState"]


@dataclass
class SwiftState:
    """The target as the drafter, each row's search, and what the caller keeps."""

    drafter: SelfDrafter
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

    fraction: float = setting(0.45, above=0, below=1)
    draft_len: int = setting(10, least=1)
    min_confidence: float = setting(0.5, least=0, most=1)
    branches: int = setting(1, least=1)
    context: int = setting(32, least=1)
    bayes_interval: int = setting(25, least=1)
    max_score: float = 0.95
    patience: int = setting(300, least=1)
    search_steps: int = setting(1000, least=1)

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
        return SwiftState(SelfDrafter.begin(context), [begun.copy() for _ in context.texts], memory)

    @property
    def plan(self) -> SearchPlan:
        """How rows search."""
        return SearchPlan(self.context, self.bayes_interval, self.max_score, self.patience, self.search_steps)

    def propose(self, view: View, state: SwiftState) -> Proposal:
        """Try one more set of layers where the search goes on, then draft with the best."""
        lengths = state.drafter.reach(view, [self.draft_len] * len(view.texts))
        if max(lengths) == 0:
            return nothing(view)
        self.plan.advance(state.drafter, view, state.searches, state.memory)
        rows = draft_combs(
            state.drafter, view, lengths, state.searches, min_confidence=self.min_confidence, branches=self.branches
        )
        tokens = [[token for token, _ in row] for row in rows]
        if self.branches == 1:
            return chain(view, tokens, self.name)
        return trees(view, list(zip(tokens, [[parent for _, parent in row] for row in rows], strict=True)), self.name)
