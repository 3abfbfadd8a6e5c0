"""A small model drafts phrase by phrase, and the target's own answers to earlier drafts are the phrases.

Paper: Zhao et al. (2024), Ouroboros, arXiv 2402.13720, section 3; the pool's rules as in the authors' code.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token; at most one draft forward per drafted token, of
    (window + guesses) * (ngram - 1) positions; the drafter's weights and cache; `guesses` phrases per token seen.
Differences: drafts are coupled to the target's noise, so that sampling works as greedy decoding does; phrases that
    begin alike share nodes; answers to an accepted draft's phrases are harvested too, not only those to a rejected one;
    the text itself gives phrases; phrases after the last final token compete with the draft from its start; the draft
    length follows acceptance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from outpace.accept import sample_and_match
from outpace.cache import Cache
from outpace.draft.ahead import draft_ahead
from outpace.draft.phrases import Phrase, PhrasePool
from outpace.draft.window import Window, first_windows
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, as_device, nothing
from outpace.run.tree import merge
from outpace.schedule import next_length
from outpace.types import Adapter, Context, Needs, Outcome, Proposal, View

__all__ = ["Ouroboros", "OuroborosState", "harvest"]

_LARGEST = 1024  # tokens that one forward of the drafter may guess


@dataclass
class OuroborosState:
    """The drafter and its cache, and each row's lookahead window, pool of phrases and draft length."""

    drafter: Adapter
    cache: Cache
    window: list[Window | None]
    pool: list[PhrasePool]
    length: list[int]


@dataclass(frozen=True, slots=True)
class _Drafted:
    """Which nodes of each row's proposal are the drafter's chain, in order; the others are phrases."""

    chain: list[list[int]]


@dataclass(frozen=True)
class Ouroboros(Method):
    """Speculative decoding with phrases.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        draft_len: most tokens that the drafter writes per step.
        phrases: phrases that lengthen the draft, as branches of one tree (K).
        rivals: phrases after the last final token that compete with the draft from its start; 0 = as in the paper.
        is_adaptive: let the draft length follow acceptance.
        window: columns of the window with which the drafter itself looks ahead; 0 = none.
        ngram: tokens of an n-gram, its key included; a phrase is one shorter.
        guesses: phrases kept per key, and checked per draft forward.
        has_history: put the n-grams of prompt and output into the pool too.

    Raises:
        ConfigError: a number is too small.
    """

    draft: str = "auto"
    draft_len: int = 8
    phrases: int = 3
    rivals: int = 3
    is_adaptive: bool = True
    window: int = 4
    ngram: int = 5
    guesses: int = 8
    has_history: bool = True

    name: ClassVar[str] = "ouroboros"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = (
        "A draft model helped by phrases from the target's own answers: longer drafts, fewer forwards."
    )
    paper: ClassVar[Paper] = Paper(
        "Ouroboros: Speculative Decoding with Large Model Enhanced Drafting",
        "Zhao et al.",
        2024,
        "2402.13720",
        18,
        "The warm start with phrases of earlier texts.",
    )

    def __post_init__(self) -> None:
        if min(self.draft_len, self.guesses) < 1:
            raise ConfigError(f"draft_len is {self.draft_len} and guesses {self.guesses}.", "Both must be 1 or more.")
        if min(self.phrases, self.rivals, self.window) < 0:
            raise ConfigError(
                f"phrases is {self.phrases}, rivals {self.rivals} and window {self.window}.", "None may be below 0."
            )
        if self.window > _LARGEST:
            raise ConfigError(f"window is {self.window}.", f"window must be at most {_LARGEST}.")
        if self.ngram < 3:
            raise ConfigError(f"ngram is {self.ngram}.", "ngram must be 3 or more, its first token being the key.")

    @property
    def needs(self) -> Needs:
        """A causal target with tree attention, and a draft model of the same vocabulary."""
        width = self.draft_len + (self.phrases + self.rivals) * (self.ngram - 1)
        return Needs(has_tree=True, has_rollback=True, width=width, models=("draft",))

    def start(self, context: Context) -> OuroborosState:
        """Give the joining rows an empty cache of the drafter, made-up windows and empty pools."""
        windows = first_windows(context.texts, context.sampler, self.window, self.ngram)
        pools = [PhrasePool(self.ngram - 1, self.guesses) for _ in windows]
        first = max(1, self.draft_len // 2) if self.is_adaptive else self.draft_len
        lengths = [first] * len(windows)
        return OuroborosState(context.models["draft"], context.cache_for("draft"), windows, pools, lengths)

    def propose(self, view: View, state: OuroborosState) -> Proposal:
        """Draft a chain per row and hang the phrases after its last token on its end."""
        most = min(state.drafter.capabilities.max_positions - max(view.lengths), max(view.room) - 1)
        lengths = [max(0, min(n, room - 1, most)) for n, room in zip(state.length, view.room, strict=True)]
        if max(lengths) == 0:
            return nothing(view)
        for text, pool in zip(view.texts, state.pool, strict=True):
            if self.has_history:
                pool.read(text)
        chains = draft_ahead(
            state.drafter,
            state.cache,
            view,
            lengths,
            pools=state.pool,
            windows=state.window,
            guesses=self.guesses,
            rule=sample_and_match,
        )
        paths = []
        for text, drafts, room, pool in zip(view.texts, chains, view.room, state.pool, strict=True):
            tails = pool.find((drafts or text)[-1], self.phrases)
            rivals = pool.find(text[-1], self.rivals)
            found = [tuple(drafts), *((*drafts, *tail) for tail in tails), *rivals]
            paths.append([path[: max(0, room - 1)] for path in found])
        return _tree(chains, paths, view, self.name)

    def observe(self, outcome: Outcome, view: View, state: OuroborosState) -> OuroborosState:
        """Forget drafted entries that did not become text, and harvest the target's answers."""
        proposal, scores = outcome.proposal, outcome.scores
        if proposal is None:
            return state
        is_own = isinstance(proposal.carry, _Drafted)
        chains: list[list[int]] = proposal.carry.chain if is_own else [[] for _ in view.texts]
        matched = [[node for node in chain if node in path] for chain, path in zip(chains, outcome.path, strict=True)]
        emitted = zip(view.lengths, outcome.emitted, matched, strict=True)
        state.cache.truncate([length - len(tokens) + len(nodes) for length, tokens, nodes in emitted])
        if not is_own or scores is None or proposal.parent is None:
            return state
        answered, parents = scores.logits.argmax(-1).tolist(), proposal.parent.tolist()
        for row, count in enumerate(proposal.length):
            for run in harvest(answered[row], parents[row][:count], matched[row]):
                state.pool[row].add_all(run)
        if not self.is_adaptive:
            return state
        steps = zip(state.length, chains, matched, strict=True)
        lengths = [next_length(n, len(chain), len(nodes), self.draft_len) for n, chain, nodes in steps]
        return replace(state, length=lengths)


def harvest(answered: Sequence[int], parents: Sequence[int], accepted: Sequence[int]) -> Iterator[list[int]]:
    """Yield runs of the target's answers, whose n-grams are phrases: one per leaf of the tree that was scored.

    A run begins with the token that followed the last accepted draft, and goes on with the answers to the rejected
    drafts and phrases behind it.

    Args:
        answered: likeliest tokens after the root and after every node.
        parents: of the nodes.
        accepted: nodes of the drafter's chain that were accepted.
    """
    inner = set(parents)
    for leaf in range(len(parents)):
        if leaf not in inner:
            run, node = [], leaf
            while node >= 0 and node not in accepted:
                run.append(answered[1 + node])
                node = parents[node]
            yield [answered[1 + node], *reversed(run)]


def _tree(chains: Sequence[Sequence[int]], paths: Sequence[Sequence[Phrase]], view: View, origin: str) -> Proposal:
    """Return one tree of paths per row, the first of which is the drafter's chain."""
    most, longest = max(map(len, paths)), max(len(path) for row in paths for path in row)
    table = torch.full((len(paths), most, longest), -1, dtype=torch.int64)
    for row, found in enumerate(paths):
        for index, path in enumerate(found):
            table[row, index, : len(path)] = torch.tensor(path, dtype=torch.int64)
    tree = merge(table)
    drafted = []
    for chain, parents in zip(chains, tree.parent.tolist(), strict=True):
        nodes = [-1]
        for _ in chain:  # at each depth the nodes of the first path come first
            nodes.append(parents.index(nodes[-1]))
        drafted.append(nodes[1:])
    both = as_device(tree.tokens, view), as_device(tree.parent, view)
    return Proposal(both[0], tree.length, both[1], origin=origin, carry=_Drafted(drafted))
