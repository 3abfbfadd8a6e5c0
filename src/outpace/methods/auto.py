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
from functools import lru_cache
from typing import ClassVar

from outpace.errors import ConfigError
from outpace.methods.base import Method, nothing
from outpace.methods.fit import misfits
from outpace.methods.idle import Idle
from outpace.methods.registry import load_method
from outpace.run.commit import fit
from outpace.schedule.bandit import Arm, ArmStats, Bandit, last_rows
from outpace.schedule.tune import head_share, load_curve, relative_size
from outpace.types import Capabilities, Context, Decision, Guarantee, Needs, Outcome, Proposal, Scores, View

__all__ = ["Auto", "AutoState"]

_PLAIN = "plain"
_HOST_S, _MODEL_S = 1e-4, 1e-3  # what drafting takes at the least, from text (per row) and with a small model
_INDEX_S = 4e-6  # per token that a drafter from text has not seen
_LEARN_S, _SORT_S = 5e-5, 5e-9  # of learning from the scores of a row: at the least, and per entry of the vocabulary


@dataclass
class AutoState:
    """The arms (without plain decoding), their drafters, what each row saw of each arm, and the choice."""

    arms: tuple[Method, ...]
    drafters: Idle
    stats: list[list[ArmStats]]
    bandit: Bandit
    is_packed: bool  # padding costs nothing
    prompt_share: float  # of a prompt token's time, what asking for logits adds


@lru_cache(maxsize=8)
def _made(arms: str) -> tuple[Method, ...]:
    names = [name.strip() for name in arms.split(",") if name.strip()]
    if Auto.name in names:
        raise ConfigError("auto cannot be an arm of itself.", "Name other methods.")
    return tuple(load_method(name)() for name in names)


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
        for arm in _made(self.arms):
            if arm.guarantee is not Guarantee.EXACT or arm.needs.attention != "causal":
                raise ConfigError(f"The method {arm.name!r} is not an exact drafter.", "Name exact methods only.")
            if arm.needs.has_text:  # arms share one drafter, and the others need it to have the target's vocabulary
                raise ConfigError(
                    f"The method {arm.name!r} translates between vocabularies, so it cannot be an arm.",
                    "Run it by itself.",
                )

    @property
    def needs(self) -> Needs:
        """What the arms need together; other models only where one is known."""
        needs = [arm.needs for arm in _made(self.arms)]
        return Needs(
            has_tree=any(need.has_tree for need in needs),
            has_rollback=any(need.has_rollback for need in needs),
            has_skip=any(need.has_skip for need in needs),
            width=max((need.width for need in needs), default=0),
            optional_models=tuple(dict.fromkeys(role for need in needs for role in need.models)),
        )

    def fitted(self, offered: Capabilities) -> tuple[Method, str]:
        """Leave out the arms that the model does not allow, down to plain decoding."""
        arms = _made(self.arms)
        kept = [arm for arm in arms if not misfits(arm, offered) and arm.needs.width <= offered.max_positions]
        if len(kept) == len(arms):
            return self, ""
        left = ", ".join(arm.name for arm in arms if arm not in kept)
        what = f"{'tries ' + ', '.join(arm.name for arm in kept) if kept else 'decodes plainly'}"
        note = f"The method 'auto' {what} on this model, which does not allow {left}."
        return replace(self, arms=",".join(arm.name for arm in kept)), note

    def start(self, context: Context) -> AutoState:
        """Note which arms fit; a drafter begins when it is first asked."""
        target = context.target
        arms = tuple(
            arm
            for arm in _made(self.arms)
            if not misfits(arm, target.capabilities) and all(role in context.models for role in arm.needs.models)
        )
        facts = [Arm(0), *(self._facts(arm, context) for arm in arms)]
        bandit = Bandit(facts, load_curve(target), self.explore, self.is_timed)
        stats = [[ArmStats() for _ in facts] for _ in context.texts]
        is_packed = target.path == "compiled"
        return AutoState(arms, Idle(arms, context), stats, bandit, is_packed, 1 + head_share(target))

    def _facts(self, arm: Method, context: Context) -> Arm:
        """Return what is thought of an arm before it was tried."""
        kind = "tree" if arm.needs.has_tree else "chain"
        if not self.is_timed:
            return Arm(arm.needs.width, kind=kind)
        if not arm.needs.models:
            learn_s = arm.harvests * len(context.texts) * (_LEARN_S + _SORT_S * context.target.capabilities.vocab_size)
            draft_s = _HOST_S * (1 + len(context.texts) / 4) + learn_s
            return Arm(arm.needs.width, draft_s, _INDEX_S, kind=kind, watch_s=learn_s)
        share = relative_size(context.models[arm.needs.models[0]], context.target)
        return Arm(arm.needs.width, _MODEL_S, lag_share=share, kind=kind)

    def to_certify(self) -> Auto:
        """Try drafters often, also where plain decoding wins: what is tried never changes the text."""
        return replace(self, explore=max(self.explore, 0.5))

    def propose(self, view: View, state: AutoState) -> Proposal:
        """Let the chosen drafter propose, and cut what it drafts where more would cost more than it brings."""
        bandit = state.bandit
        if bandit.countdown <= 0 or bandit.num_rows != len(state.stats):
            bandit.choose(state.stats, [0, *(state.drafters.lag(arm.name) for arm in state.arms)], view.room)
        if bandit.current == 0:
            proposal = nothing(view)
            proposal.origin, proposal.note = _PLAIN, bandit.note
            return proposal
        arm = state.arms[bandit.current - 1]
        proposal = arm.propose(view, state.drafters.awake(arm.name, view))
        return replace(self._cut(proposal, state, view.room), origin=arm.name, note=bandit.note)

    def _cut(self, proposal: Proposal, state: AutoState, rooms: Sequence[int]) -> Proposal:
        bandit, facts = state.bandit, state.bandit.arms[state.bandit.current]
        if proposal.visible is not None or proposal.carry is not None:
            facts.kind = "whole"
            return proposal
        if proposal.tokens.shape[1]:
            facts.kind = "chain" if proposal.parent is None else "tree"
        if facts.kind == "tree":
            length = [size * is_worth for size, is_worth in zip(proposal.length, bandit.spread(rooms), strict=True)]
            return fit(replace(proposal, length=length), bandit.nodes() if max(length) else 0, 0)
        facts.reached([size for size, is_last in zip(proposal.length, last_rows(rooms), strict=True) if is_last])
        length = bandit.lengths(bandit.current, state.stats, proposal.length, rooms)
        return fit(replace(proposal, length=length), max(length), 0)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: AutoState) -> Decision:
        """Accept as the arm does; all arms are exact."""
        if state.bandit.current == 0:
            return super().accept(proposal, scores, view, state)
        arm = state.arms[state.bandit.current - 1]
        return arm.accept(proposal, scores, view, state.drafters.awake(arm.name, view))

    def observe(self, outcome: Outcome, view: View, state: AutoState) -> AutoState:
        """Count the step, and tell the arm that made it."""
        proposal, bandit = outcome.proposal, state.bandit
        if proposal is None:
            if self.is_timed and outcome.chunk:
                sizes = [len(places) for places in outcome.chunk]
                tokens = sum(sizes) if state.is_packed else len(sizes) * max(sizes)
                bandit.cost.add_prompt(tokens, outcome.seconds.get("score", 0.0) * state.prompt_share)
            return state
        seconds = outcome.seconds
        forward_s = seconds["score"] + seconds["accept"]
        for index, arm in enumerate(state.arms, 1):
            if arm.harvests and index != bandit.current and bandit.may_watch(index, forward_s):
                began = time.perf_counter()
                state.drafters.observe(arm.name, outcome, view)
                bandit.watched(index, time.perf_counter() - began)
        if bandit.current == 0:  # plain decoding may be as fast as a tenth of a millisecond: touch little
            bandit.observe_plain(forward_s)
            return state
        began = time.perf_counter()
        state.drafters.observe(state.arms[bandit.current - 1].name, outcome, view)
        draft_s = seconds["draft"] + time.perf_counter() - began  # learning from a step is a part of its price
        _count(state.stats, bandit.current, outcome, proposal.length)
        width, rows = proposal.tokens.shape[1], len(proposal.length)
        rooms = [room + len(tokens) for room, tokens in zip(view.room, outcome.emitted, strict=True)]
        if bandit.arms[bandit.current].kind == "tree":
            paths = [path for path, is_last in zip(outcome.path, last_rows(rooms), strict=True) if is_last]
            bandit.arms[bandit.current].cut.add(bandit.nodes(), paths)
        tokens = rows + sum(proposal.length) if state.is_packed else rows * (1 + width)
        bandit.observe(tokens, draft_s, forward_s, max(rooms) - max(view.room))
        return state


def _count(stats: list[list[ArmStats]], arm: int, outcome: Outcome, proposed: Sequence[int]) -> None:
    rows = zip(stats, outcome.emitted, outcome.accepted, proposed, strict=True)
    for row, tokens, accepted, length in rows:
        row[arm].add(len(tokens), accepted, accepted < length and len(tokens) > accepted)
