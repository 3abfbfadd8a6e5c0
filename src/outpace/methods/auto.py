"""The fastest exact decoding without choosing: drafters compete inside each request, and plain decoding is one of them.

Paper: none; a bandit over exact drafters whose exploration is paid from a budget of lost time.
Guarantee: exact (every drafter is checked by sample and match).
Cost: at most 1 target forward per emitted token; trials of drafters lose at most `explore` of the decoding time.
Differences: none. Which drafter runs follows the measured clock and running acceptance, so in half precision, where a
    forward of one token and one of several round differently, a near tie may fall either way from run to run; with
    compiled kernels or in batch-invariant mode the text does not depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from outpace.commit import fit
from outpace.errors import ConfigError
from outpace.fit import misfits
from outpace.methods.base import Method, nothing
from outpace.registry import load_method
from outpace.schedule.bandit import ArmStats, Bandit, best_length
from outpace.tune import load_curve
from outpace.types import Context, Decision, Guarantee, Needs, Outcome, Proposal, Scores, View

__all__ = ["Auto", "AutoState"]

_PLAIN = "plain"
_HOST_S, _MODEL_S = 1e-4, 1e-3  # what drafting takes at the least, from text and with a small model


@dataclass
class AutoState:
    """The arms (without plain decoding), their states, what each row saw of each arm, and the choice."""

    arms: tuple[Method, ...]
    states: dict[str, Any]
    stats: list[list[ArmStats]]
    bandit: Bandit
    harvesters: tuple[tuple[int, Method], ...] = ()


@dataclass(frozen=True)
class Auto(Method):
    """Automatic choice among exact drafters.

    Attributes:
        arms: names of exact methods, parted by commas; those that the target or the models at hand do not allow
            are left out.
        draft: the drafter of arms that need one; "auto" = the one that the target's card names, if any.
        explore: share of the decoding time that trials of other drafters may lose.
        is_timed: False = choose by the stored cost curve instead of the clock.

    Raises:
        ConfigError: an arm that does not exist or is not exact, or a share outside [0, 1).
    """

    arms: str = "suffix,token-recycling,opt-tree"
    draft: str = "auto"
    explore: float = 0.01
    is_timed: bool = True

    name: ClassVar[str] = "auto"
    family: ClassVar[str] = "automatic"
    drafts_together: ClassVar[bool] = True  # one forward serves all rows, so they share its cost and the choice
    summary: ClassVar[str] = "Picks drafter and draft length as it goes; falls back to plain decoding where that wins."

    def __post_init__(self) -> None:
        if not 0 <= self.explore < 1:
            raise ConfigError(f"explore is {self.explore}.", "explore must be from 0 to below 1.")
        for arm in self._arms():
            if arm.guarantee is not Guarantee.EXACT or arm.needs.attention != "causal":
                raise ConfigError(f"The method {arm.name!r} is not an exact drafter.", "Name exact methods only.")
            if arm.needs.has_text:  # arms share one drafter, and the others need it to have the target's vocabulary
                raise ConfigError(
                    f"The method {arm.name!r} translates between vocabularies, so it cannot be an arm.",
                    "Run it by itself.",
                )

    def _arms(self) -> list[Method]:
        names = [name.strip() for name in self.arms.split(",") if name.strip()]
        if self.name in names:
            raise ConfigError("auto cannot be an arm of itself.", "Name other methods.")
        return [load_method(name)() for name in names]

    @property
    def needs(self) -> Needs:
        """What the arms need together; other models only where one is known."""
        # Asked once per run: arms are made anew each time.
        needs = [arm.needs for arm in self._arms()]
        return Needs(
            has_tree=any(need.has_tree for need in needs),
            has_rollback=True,
            has_skip=any(need.has_skip for need in needs),
            width=max((need.width for need in needs), default=0),
            optional_models=tuple(dict.fromkeys(role for need in needs for role in need.models)),
        )

    def start(self, context: Context) -> AutoState:
        """Start every arm that fits."""
        offered = context.target.capabilities
        arms = tuple(
            arm
            for arm in self._arms()
            if not misfits(arm, offered) and all(role in context.models for role in arm.needs.models)
        )
        widths = [0, *(arm.needs.width for arm in arms)]
        guessed = [0.0, *(_MODEL_S if arm.needs.models else _HOST_S for arm in arms)] if self.is_timed else ()
        bandit = Bandit(widths, load_curve(context.target), self.explore, self.is_timed, guessed)
        stats = [[ArmStats() for _ in widths] for _ in context.texts]
        harvesters = tuple((index, arm) for index, arm in enumerate(arms, 1) if arm.harvests)
        return AutoState(arms, {arm.name: arm.start(context) for arm in arms}, stats, bandit, harvesters)

    def to_certify(self) -> Auto:
        """Try drafters often, also where plain decoding wins: what is tried never changes the text."""
        return replace(self, explore=max(self.explore, 0.5))

    def propose(self, view: View, state: AutoState) -> Proposal:
        """Let the chosen drafter propose, and cut its chain where more drafts would cost more than they bring."""
        bandit = state.bandit
        if bandit.countdown <= 0:
            bandit.choose(state.stats)
        if bandit.current == 0:
            proposal = nothing(view)
            proposal.origin, proposal.note = _PLAIN, bandit.note
            return proposal
        arm = state.arms[bandit.current - 1]
        proposal = arm.propose(view, state.states[arm.name])
        if proposal.visible is None and proposal.carry is None:
            proposal = fit(proposal, self._length(proposal, state), 0)
        return replace(proposal, origin=arm.name, note=bandit.note)

    def _length(self, proposal: Proposal, state: AutoState) -> int:
        most, bandit = proposal.tokens.shape[1], state.bandit
        if proposal.parent is not None:
            return bandit.cuts[bandit.current].best(most, bandit.draft_s[bandit.current], bandit.cost)
        accepted = sum(row[bandit.current].accepted for row in state.stats) + 1.5
        rejected = sum(row[bandit.current].rejected for row in state.stats) + 0.5
        seconds = [bandit.cost(n) for n in range(most + 1)]
        # At least one draft: else an arm that was unlucky could never show that it got better.
        chance = accepted / (accepted + rejected)
        return max(1, best_length(chance, most, bandit.draft_s[bandit.current], seconds))

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: AutoState) -> Decision:
        """Accept as the arm does; all arms are exact."""
        if state.bandit.current == 0:
            return super().accept(proposal, scores, view, state)
        arm = state.arms[state.bandit.current - 1]
        return arm.accept(proposal, scores, view, state.states[arm.name])

    def observe(self, outcome: Outcome, view: View, state: AutoState) -> AutoState:
        """Count the step, and tell the arm that made it."""
        proposal, bandit = outcome.proposal, state.bandit
        if proposal is None:
            return state
        seconds = outcome.seconds
        forward_s = seconds["score"] + seconds["accept"]
        for index, arm in state.harvesters:
            if index != bandit.current and bandit.may_watch(index, forward_s):
                began = time.perf_counter()
                state.states[arm.name] = arm.observe(outcome, view, state.states[arm.name])
                bandit.watched(index, time.perf_counter() - began)
        if bandit.current == 0:  # plain decoding may be as fast as a tenth of a millisecond: touch little
            bandit.observe_plain(forward_s)
            return state
        arm = state.arms[bandit.current - 1]
        state.states[arm.name] = arm.observe(outcome, view, state.states[arm.name])
        _count(state.stats, bandit.current, outcome, proposal.length)
        if proposal.parent is not None:
            bandit.cuts[bandit.current].add(proposal.tokens.shape[1], outcome.path)
        tokens = sum(len(tokens) for tokens in outcome.emitted) / len(outcome.emitted)
        bandit.observe(proposal.tokens.shape[1], seconds["draft"], forward_s, tokens)
        return state


def _count(stats: list[list[ArmStats]], arm: int, outcome: Outcome, proposed: Sequence[int]) -> None:
    rows = zip(stats, outcome.emitted, outcome.accepted, proposed, strict=True)
    for row, tokens, accepted, length in rows:
        row[arm].add(len(tokens), accepted, accepted < length and len(tokens) > accepted)
