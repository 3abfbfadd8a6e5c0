"""The fastest exact decoding without choosing: drafters compete inside each request, and plain decoding is one of them.

Paper: none; a bandit over exact drafters whose exploration is paid from a budget of lost time.
Guarantee: exact (every drafter is checked by sample and match).
Cost: at most 1 target forward per emitted token; trials of drafters lose at most `explore` of the decoding time.
Differences: none. Which drafter runs follows the measured clock and running acceptance, so in half precision, where a
    forward of one token and one of several round differently, a near tie may fall either way from run to run; with
    compiled kernels or in batch-invariant mode the text does not depend on it.
Longer than most: every hook of a method is passed on to the arm at hand, and its time counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, TypeVar

from outpace.errors import ConfigError
from outpace.methods.base import Method, nothing
from outpace.methods.idle import Idle
from outpace.methods.misfit import misfits
from outpace.methods.mixed import Mixed
from outpace.methods.registry import load_method
from outpace.run.commit import fit
from outpace.schedule.bandit import ArmStats, Bandit, BanditArm, last_rows
from outpace.schedule.cost import CostCurve
from outpace.schedule.tune import head_share, load_curve, relative_size
from outpace.setting import setting
from outpace.types import Adapter, Capabilities, Context, Decision, Guarantee, Needs, Outcome, Proposal, Scores, View

__all__ = ["Auto", "AutoState"]

T = TypeVar("T")
_PLAIN = "plain"
_HOST_S, _MODEL_S = 1e-4, 1e-3  # what drafting takes at the least, from text (per row) and with a small model
_KNOWN_STEPS, _KNOWN_SHARE = 8.0, 0.6  # how far a trained drafter's record on texts like its training's is believed
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
    is_served: bool  # rows come and go: none is the last
    readers: frozenset[str] = frozenset()  # arms whose drafters read the target's states, in every step


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
            are left out. They are first tried in this order: what costs least is known before anything is risked.
            Beside `trained-drafter`, which drafts from the text too, those that draft from it alone are left out.
        draft: the drafter of arms that need one; "auto" = the one that is known for the target, if any. One that was
            trained to read the target drafts for `trained-drafter`, a model for the others.
        explore: share of the decoding time that trials of other drafters may lose.
        is_timed: False = choose by the stored cost curve instead of the clock.

    Raises:
        ConfigError: an arm that does not exist or is not exact, or a share outside [0, 1).
    """

    arms: str = "trained-drafter,suffix,token-recycling,opt-tree"
    draft: str = "auto"
    explore: float = setting(0.01, least=0, below=1)
    is_timed: bool = True

    name: ClassVar[str] = "auto"
    family: ClassVar[str] = "automatic"
    reads: ClassVar[frozenset[str]] = frozenset({"scores"})
    drafts_together: ClassVar[bool] = True  # one forward serves all rows, so they share its cost and the choice
    summary: ClassVar[str] = "Picks drafter and draft length as it goes; falls back to plain decoding where that wins."

    def __post_init__(self) -> None:
        """Hold the settings to their ranges, and the arms to exact drafters.

        Raises:
            ConfigError: a share outside [0, 1), or an arm that does not exist, is not exact or translates.
        """
        super().__post_init__()
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
            takes_heads=any(need.takes_heads for need in needs),
        )

    def fitted(self, offered: Capabilities) -> tuple[Method, str]:
        """Leave out the arms that the model does not allow, down to plain decoding; one pass needs no drafts."""
        if offered.is_one_pass:
            return load_method(offered.plain_method)(), "The method 'auto' takes this model's whole text at once."
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
        arms = tuple(arm for arm in _at_hand(_made(self.arms), context.models) if not misfits(arm, target.capabilities))
        facts = [BanditArm(0), *(self._facts(arm, context) for arm in arms)]
        bandit = Bandit(facts, self.curve(target), self.explore, self.is_timed)
        stats = [[ArmStats() for _ in facts] for _ in context.texts]
        is_packed = target.path == "compiled"
        # Rows of several laws share the choice; an arm that looks at the law has them apart.
        if not self.is_timed:
            arms = tuple(
                arm.from_settings({**arm.to_dict(), "is_timed": False}) if arm.is_sized else arm for arm in arms
            )
        named = {arm.name: Mixed(arm) if "law" in arm.reads else arm for arm in arms}
        readers = frozenset(arm.name for arm in arms if any(context.models[role].reads for role in arm.needs.models))
        idle, share = Idle(named, context, readers), 1 + head_share(target)
        return AutoState(arms, idle, stats, bandit, is_packed, share, context.is_served, readers)

    def _facts(self, arm: Method, context: Context) -> BanditArm:
        """Return what is thought of an arm before it was tried."""
        kind = "sized" if arm.is_sized else "tree" if arm.needs.has_tree else "chain"
        if not self.is_timed:
            return BanditArm(arm.needs.width, kind=kind)
        if not arm.needs.models:
            learn_s = arm.harvests * len(context.texts) * (_LEARN_S + _SORT_S * context.target.capabilities.vocab_size)
            draft_s = _HOST_S * (1 + len(context.texts) / 4) + learn_s
            return BanditArm(arm.needs.width, draft_s, _INDEX_S, kind=kind, watch_s=learn_s)
        model = context.models[arm.needs.models[0]]
        facts = BanditArm(arm.needs.width, _MODEL_S, lag_share=relative_size(model, context.target), kind=kind)
        if model.accepted and arm.is_sized:
            facts.prior_steps, facts.prior_tokens = _KNOWN_STEPS, 1 + _KNOWN_SHARE * model.accepted
            facts.last_tried = 0  # its record stands for a trial
        return facts

    def curve(self, target: Adapter) -> CostCurve | None:
        """Return what forwards of a target cost before any was timed; None = nothing is known."""
        return load_curve(target)

    def to_certify(self) -> Auto:
        """Try drafters often, by costs under which drafts pay in part of the steps: no choice changes the text."""
        return _Certified(arms=self.arms, draft=self.draft, explore=max(self.explore, 0.5), is_timed=False)

    def propose(self, view: View, state: AutoState) -> Proposal:
        """Let the chosen drafter propose, and cut what it drafts where more would cost more than it brings."""
        bandit = state.bandit
        rooms = [] if state.is_served else view.room
        if bandit.countdown <= 0 or bandit.num_rows != len(state.stats) + view.beside:
            began = time.perf_counter()
            lags = [0, *(state.drafters.lag(arm.name) for arm in state.arms)]
            bandit.choose(state.stats, lags, rooms, view.beside)
            bandit.choice_s = time.perf_counter() - began if self.is_timed else 0.0
        if bandit.current == 0:
            proposal = nothing(view)
            proposal.origin, proposal.note = _PLAIN, bandit.note
            return proposal
        name = state.arms[bandit.current - 1].name
        proposal = state.drafters.methods[name].propose(view, state.drafters.awake(name, view))
        return replace(self._cut(proposal, state, rooms), origin=name, note=bandit.note)

    def _cut(self, proposal: Proposal, state: AutoState, rooms: Sequence[int]) -> Proposal:
        bandit, facts = state.bandit, state.bandit.arms[state.bandit.current]
        if facts.kind == "sized":
            return proposal
        if proposal.visible is not None or proposal.carry is not None:
            facts.kind = "whole"
            return proposal
        if proposal.tokens.shape[1]:
            facts.kind = "chain" if proposal.parent is None else "tree"
        if facts.kind == "tree":
            length = bandit.tree_lengths(bandit.current, state.stats, proposal.length, rooms)
            return fit(replace(proposal, length=length), max(length), 0)
        facts.reached(_of_last(proposal.length, rooms))
        length = bandit.lengths(bandit.current, state.stats, proposal.length, rooms)
        return fit(replace(proposal, length=length), max(length), 0)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: AutoState) -> Decision:
        """Accept as the arm does; all arms are exact."""
        if state.bandit.current == 0:
            return super().accept(proposal, scores, view, state)
        name = state.arms[state.bandit.current - 1].name
        return state.drafters.methods[name].accept(proposal, scores, view, state.drafters.awake(name, view))

    def observe(self, outcome: Outcome, view: View, state: AutoState) -> AutoState:
        """Count the step, and tell the arm that made it."""
        proposal, bandit = outcome.proposal, state.bandit
        if proposal is None:
            if self.is_timed and outcome.chunk and "score" in outcome.seconds:  # a forward of its own
                sizes = [len(places) for places in outcome.chunk]
                tokens = sum(sizes) if state.is_packed else len(sizes) * max(sizes)
                bandit.cost.add_prompt(tokens, outcome.seconds["score"] * state.prompt_share)
            for name in state.readers:
                state.drafters.observe(name, outcome, view)
            return state
        seconds = outcome.seconds
        forward_s = seconds["score"] + seconds["accept"]
        for index, arm in enumerate(state.arms, 1):
            if index == bandit.current:
                continue
            is_reader = arm.name in state.readers
            if (
                bandit.may_follow(index, forward_s)
                if is_reader
                else arm.harvests and bandit.may_watch(index, forward_s)
            ):
                began = time.perf_counter()
                state.drafters.observe(arm.name, outcome, view)
                bandit.watched(index, time.perf_counter() - began)
        if bandit.current == 0:  # plain decoding may be as fast as a tenth of a millisecond: touch little
            # Of a forward that served more the level cannot be told, unless nothing better is known.
            is_known = bandit.cost.knows(bandit.num_rows)
            bandit.observe_plain(None if outcome.read or (outcome.beside[1] and is_known) else forward_s)
            return state
        began = time.perf_counter()
        state.drafters.observe(state.arms[bandit.current - 1].name, outcome, view)
        draft_s = seconds["draft"] + time.perf_counter() - began  # learning from a step is a part of its price
        facts, sizes = bandit.arms[bandit.current], proposal.length
        _count(state.stats, bandit.current, outcome, sizes, facts)
        width, rows, (beside, others) = proposal.tokens.shape[1], len(sizes), outcome.beside
        written = [len(tokens) for tokens in outcome.emitted]
        rooms = [] if state.is_served else [room + n for room, n in zip(view.room, written, strict=True)]
        if facts.kind == "tree" and max(sizes):
            facts.cut.add(_of_last(sizes, rooms), _of_last(outcome.path, rooms))
        tokens = rows + sum(sizes) if state.is_packed else rows * (1 + width)
        progress = max(rooms) - max(view.room) if rooms else sum(written) / rows
        bandit.observe(tokens + beside, draft_s, forward_s, progress, others + outcome.read)
        return state


@dataclass(frozen=True)
class _Certified(Auto):
    """`Auto` that sees the same costs on every model: by the clock nothing pays on the fastest, so nothing was seen."""

    def curve(self, target: Adapter) -> CostCurve:
        """Return costs by which a draft pays where about one in six is kept, and many drafts where most are."""
        del target
        return CostCurve((1, 65), (1.0, 2.0))


def _at_hand(arms: Sequence[Method], models: Mapping[str, Adapter]) -> list[Method]:
    """Return the arms whose models are there; with one drafter for several arms, those that make the most of it.

    One that reads the target drafts for the arm that sizes its trees itself, a model for the others, where there are
    such arms.
    """
    found = [arm for arm in arms if all(role in models for role in arm.needs.models) and _is_kind(arm, models)]
    drafting = [arm for arm in found if arm.needs.models]
    is_reader = any(model.reads for model in models.values())
    fit = [arm for arm in drafting if arm.is_sized == is_reader] or drafting
    kept = [arm for arm in found if arm in fit or not arm.needs.models]
    covered = frozenset(name for arm in kept for name in arm.covers)
    return [arm for arm in kept if arm.name not in covered]


def _is_kind(arm: Method, models: Mapping[str, Adapter]) -> bool:
    kind = arm.needs.head
    return not kind or all(getattr(models[role], "kind", "") == kind for role in arm.needs.models)


def _of_last(values: Sequence[T], rooms: Sequence[int]) -> Sequence[T]:
    """Return the values of the rows that decide how long the batch lasts; without rooms of all."""
    return [value for value, is_last in zip(values, last_rows(rooms), strict=True) if is_last] if rooms else values


def _count(stats: list[list[ArmStats]], arm: int, outcome: Outcome, proposed: Sequence[int], facts: BanditArm) -> None:
    rows = zip(stats, outcome.emitted, outcome.accepted, proposed, strict=True)
    for row, tokens, accepted, length in rows:
        if not length and max(proposed):
            row[arm].rest()
            continue
        hoped = sum(facts.cut.chance[:length]) if facts.kind == "tree" else 0.0
        row[arm].add(len(tokens), accepted, accepted < length and len(tokens) > accepted, hoped)
