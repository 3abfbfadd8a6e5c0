"""A small model drafts phrase by phrase, and the target's own answers to earlier drafts are the phrases.

Paper: Zhao et al. (2024), Ouroboros, arXiv 2402.13720, section 3; the pool's rules as in the authors' code.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token; at most one draft forward per drafted token, of
    (window + guesses) * (ngram - 1) positions; the drafter's weights and cache; `guesses` phrases per token seen.
Differences: drafts are coupled to the target's noise, so that sampling works as greedy decoding does; phrases that
    begin alike share nodes; answers to an accepted draft's phrases are harvested too, not only those to a rejected one;
    the text itself gives phrases; phrases after the last final token compete with the draft from its start; the draft
    length follows acceptance.
Longer than most: drafts grow in two places (the chain's end, and beside it), and the answers to both are harvested.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.accept import sample_and_match
from outpace.draft.ahead import LookAhead
from outpace.draft.harvest import harvest
from outpace.draft.nested import NestedRun
from outpace.draft.phrases import PhrasePool
from outpace.draft.source import originals
from outpace.draft.window import first_paths, merged
from outpace.methods.base import Paper, as_device
from outpace.methods.speculative.drafted import AdaptiveDraft, Paced
from outpace.setting import setting
from outpace.types import Context, Needs, Outcome, Proposal, View

__all__ = ["Ouroboros"]

_LARGEST = 1024  # tokens that one forward of the drafter may guess
_MOST_PENDING = 16  # tokens that the drafter has not read yet and takes along with its next drafts


@dataclass(frozen=True, slots=True)
class _Drafted:
    """Which nodes of each row's proposal are the drafter's chain, in order; the others are phrases."""

    chain: list[list[int]]


@dataclass(frozen=True)
class Ouroboros(AdaptiveDraft):
    """Speculative decoding with phrases.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        draft_len: most tokens that the drafter writes per step.
        phrases: phrases that lengthen the draft, as branches of one tree (K).
        rivals: phrases after the last final token that compete with the draft from its start; 0 = as in the paper.
        window: columns of the window with which the drafter itself looks ahead; 0 = none.
        ngram: tokens of an n-gram, its key included; a phrase is one shorter.
        guesses: phrases kept per key, and checked per draft forward.
        has_history: put the n-grams of prompt and output into the pool too.

    Raises:
        ConfigError: a number is too small.
    """

    draft: str = "auto"
    phrases: int = setting(3, least=0)
    rivals: int = setting(3, least=0)
    window: int = setting(4, least=0, most=_LARGEST)
    ngram: int = setting(5, least=3, note="its first token is the key")
    guesses: int = setting(8, least=1)
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

    @property
    def needs(self) -> Needs:
        """A causal target with tree attention, and a draft model of the same vocabulary."""
        width = self.draft_len + (self.phrases + self.rivals) * (self.ngram - 1)
        return Needs(has_tree=True, has_rollback=True, width=width, models=("draft",))

    def begin(self, context: Context) -> NestedRun:
        """Begin a run of the drafter, which looks ahead itself and takes what it has not read along with its drafts."""
        method = LookAhead(self.window, self.ngram, self.guesses, sample_and_match)
        drafter = NestedRun.begin(context, method, tail=_MOST_PENDING)
        if self.has_history:
            drafter.state.hear(originals(context))
        return drafter

    def grow(self, view: View, drafter: NestedRun, reach: list[int]) -> Proposal:
        """Draft a chain per row and hang the phrases after its last token on its end."""
        pools: list[PhrasePool] = drafter.state.pool
        if self.has_history:
            drafter.state.read(view.texts)
        chains, paths = drafter.write(view, reach), []
        for text, drafts, room, pool in zip(view.texts, chains, view.room, pools, strict=True):
            tails = pool.find((drafts or text)[-1], self.phrases)
            found = [tuple(drafts), *((*drafts, *tail) for tail in tails), *pool.find(text[-1], self.rivals)]
            paths.append([path[: max(0, room - 1)] for path in found])
        tree = merged(paths)
        both = as_device(tree.tokens, view), as_device(tree.parent, view)
        return Proposal(both[0], tree.length, both[1], origin=self.name, carry=_Drafted(first_paths(tree, chains)))

    def observe(self, outcome: Outcome, view: View, state: Paced) -> Paced:
        """Harvest the target's answers, and let the draft length follow acceptance."""
        del view
        proposal, scores = outcome.proposal, outcome.scores
        if proposal is None or scores is None or proposal.parent is None or not isinstance(proposal.carry, _Drafted):
            return state
        chains = proposal.carry.chain
        matched = [[n for n in chain if n in path] for chain, path in zip(chains, outcome.path, strict=True)]
        answered, parents = scores.logits.argmax(-1).tolist(), proposal.parent.tolist()
        for row, count in enumerate(proposal.length):
            for run in harvest(answered[row], parents[row][:count], matched[row]):
                state.drafter.state.pool[row].add_all(run)
        lengths = state.lengths.after([len(chain) for chain in chains], [len(nodes) for nodes in matched])
        return replace(state, lengths=lengths)
