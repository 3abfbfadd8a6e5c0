"""Which drafter next: rates from what was seen, exploration on a budget of lost time.

An arm's rate is the tokens that a step of it writes, over what such a step costs. Tokens come from a discounted mean,
costs from the forward's measured curve and the drafter's own measured time, so that a noisy neighbour on the machine
moves all arms alike. The arm of the best rate runs. Another one is tried only when the time that trials have lost so
far is below a set share of the time decoded: trying costs at most that share, however many arms there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from outpace.schedule.cost import CostCurve

__all__ = ["ArmStats", "Bandit", "StepCost", "TreeCut", "best_length"]

_DISCOUNT = 0.92  # per step of the arm
_PRIOR_STEPS, _PRIOR_TOKENS = 1.0, 1.4  # an untried arm: as if it had once written 1.4 tokens in one step
_GUESSED_SLOPE = 0.03  # of T(k) / T(1) per token, until something better is known
_SMOOTH = 0.1
_HYSTERESIS = 1.03
_CREDIT = 0.5  # plain steps that trials may lose from the start
_WATCH = 0.01  # of a plain step, that learning from it may take
_PLAIN_STEPS, _MOST_PLAIN = 12, 64  # between two choices while plain decoding wins
_REST = 16  # steps before an arm is tried again


@dataclass(slots=True)
class ArmStats:
    """What one row saw of one arm, discounted.

    Attributes:
        steps: steps of the arm.
        tokens: tokens written in them.
        accepted, rejected: drafts that matched, and first mismatches.
    """

    steps: float = 0.0
    tokens: float = 0.0
    accepted: float = 0.0
    rejected: float = 0.0

    def add(self, tokens: int, accepted: int, is_rejected: bool) -> None:
        """Count one step."""
        self.steps = self.steps * _DISCOUNT + 1
        self.tokens = self.tokens * _DISCOUNT + tokens
        self.accepted = self.accepted * _DISCOUNT + accepted
        self.rejected = self.rejected * _DISCOUNT + is_rejected

    def copy(self) -> ArmStats:
        """Return an independent copy (a forked row)."""
        return replace(self)


def best_length(chance: float, most: int, base_s: float, seconds: Sequence[float]) -> int:
    """Return the chain length n <= most with the best tokens per second, (1 + c + ... + c^n) / (base_s + seconds[n]).

    Args:
        chance: probability that a draft matches, given that the ones before it did.
        most: drafts at hand.
        base_s: what drafting them cost.
        seconds: of a forward with n drafts, by n.
    """
    best, length, tokens, power = 0.0, 0, 1.0, 1.0
    for n in range(most + 1):
        if n:
            power *= chance
            tokens += power
        rate = tokens / (base_s + seconds[n])
        if rate > best:
            best, length = rate, n
    return length


class TreeCut:
    """How many nodes of an arm's trees are worth their scoring, from which nodes were kept.

    Parents precede children, so the first n nodes of a tree are a tree, and of a kept path those among them would have
    been kept.

    Args:
        width: most nodes.
    """

    def __init__(self, width: int) -> None:
        self.chance = [0.3 / (1 + node) for node in range(width)]  # of each node to be kept

    def add(self, width: int, paths: Sequence[Sequence[int]]) -> None:
        """Count a step with trees of `width` nodes; what was not proposed keeps its old estimate."""
        share = _SMOOTH / max(1, len(paths))
        for node in range(min(width, len(self.chance))):
            self.chance[node] *= 1 - _SMOOTH
        for path in paths:
            for node in path:
                if 0 <= node < len(self.chance):
                    self.chance[node] += share

    def best(self, most: int, base_s: float, cost: Callable[[int], float]) -> int:
        """Return the n <= most, a power of two or `most`, with the best expected tokens per second."""
        best, chosen, tokens, done = 0.0, 1, 1.0, 0
        for n in sorted({min(most, 2**power) for power in range(1, most.bit_length() + 1)}):
            tokens += sum(self.chance[done:n])
            done = n
            rate = tokens / (base_s + cost(n))
            if rate > best:
                best, chosen = rate, n
        return chosen


@dataclass
class StepCost:
    """Seconds of a target forward by its width, learned as the run goes.

    Attributes:
        curve: the stored curve, or None.
        unit: measured over predicted time, smoothed (the machine's present speed); seconds of T(1) without a curve.
    """

    curve: CostCurve | None = None
    unit: float = 0.0
    _seen: dict[int, float] = field(default_factory=dict)  # without a curve: T(k) / T(1) by k

    def add(self, width: int, seconds: float) -> None:
        """Count a measured forward of 1 + width tokens."""
        measured = seconds / self._shape(width)
        self.unit = measured if self.unit == 0 else self.unit + _SMOOTH * (min(measured, 4 * self.unit) - self.unit)
        if self.curve is None and width > 0:
            ratio = max(1.0, seconds / self.unit)
            old = self._seen.get(width, ratio)
            self._seen[width] = old + 0.3 * (min(ratio, 2 * old) - old)

    def __call__(self, width: int) -> float:
        """Return the expected seconds of a forward of 1 + width tokens."""
        return (self.unit or 1.0) * self._shape(width)

    def _shape(self, width: int) -> float:
        if self.curve is not None:
            return self.curve.ratio(1 + width)
        if width in self._seen:
            return self._seen[width]
        below = max((known for known in self._seen if known < width), default=0)
        return self._seen.get(below, 1.0) + _GUESSED_SLOPE * (width - below)


class Bandit:
    """Chooses among arms for one run; arm 0 is plain decoding.

    Args:
        widths: the widest window of each arm, 0 for plain decoding.
        curve: cost of forwards, when it was measured.
        explore: share of the decoding time that trials may lose.
        is_timed: False = costs follow the curve alone, so that equal histories give equal choices.
        draft_s: what drafting may take per step of each arm, until it is measured; so that a trial on a very fast
            target is not begun in the belief that drafting is free.
    """

    def __init__(
        self,
        widths: Sequence[int],
        curve: CostCurve | None,
        explore: float,
        is_timed: bool = True,
        draft_s: Sequence[float] = (),
    ) -> None:
        self.widths, self.explore, self.is_timed = list(widths), explore, is_timed
        self.cost = StepCost(curve, 0.0 if is_timed else 1.0)
        self.draft_s = list(draft_s) or [0.0] * len(self.widths)  # smoothed, per step of the arm
        self.watch_s = [0.0] * len(self.widths)  # of learning from a step of another arm
        self.cuts = [TreeCut(width) for width in self.widths]
        self.mean_width = [0.0] + [min(4.0, width) for width in self.widths[1:]]
        self.last_tried = [-1] * len(self.widths)
        self.current, self.countdown, self.num_steps = 0, 1, 0
        self._plain: list[float] = []  # seconds of steps that are not worked in yet
        self.account = 0.0  # seconds that trials may still lose
        self.is_trial = False
        self.note = "plain until something is known"

    def rows(self, index: Sequence[int]) -> Bandit:
        """Return itself: one choice for the whole batch, whichever rows stay."""
        del index
        return self

    def join(self, others: Sequence[Bandit]) -> Bandit:
        """Return itself: the run that rows join goes on learning."""
        del others
        return self

    def observe(self, width: int, draft_s: float, forward_s: float, tokens: float) -> None:
        """Count a step of the current arm: its widest window, its times, and the tokens it wrote per row."""
        arm = self.current
        is_first = self.last_tried[arm] < 0
        self.num_steps += 1
        self.last_tried[arm] = self.num_steps
        if self.is_timed:
            self.cost.add(width, forward_s)
            if arm:
                old = self.draft_s[arm]
                self.draft_s[arm] = draft_s if is_first else old + 0.2 * (min(draft_s, 4 * old) - old)
        if arm:
            self.mean_width[arm] += 0.2 * (width - self.mean_width[arm])
        spent = self.draft_s[arm] + self.cost(width)
        self.account += self.explore * spent
        if self.is_trial:
            self.account -= max(0.0, spent - tokens * self.cost(0))
        self.countdown -= 1

    def observe_plain(self, forward_s: float) -> None:
        """Count a step of plain decoding; what it tells is worked in with the next choice."""
        self._plain.append(forward_s)
        self.countdown -= 1

    def may_watch(self, arm: int, forward_s: float) -> bool:
        """Return whether the arm may look at a step that another one made: only where that costs next to nothing."""
        if self.watch_s[arm] <= _WATCH * forward_s:
            return True
        self.watch_s[arm] *= 0.995  # so that one bad measurement is forgotten
        return False

    def watched(self, arm: int, seconds: float) -> None:
        """Count what looking took."""
        self.watch_s[arm] += 0.3 * (seconds - self.watch_s[arm]) if self.watch_s[arm] else seconds

    def _work_in(self) -> None:
        count = len(self._plain)
        if not count:
            return
        if self.is_timed:
            self.cost.add(0, sorted(self._plain)[count // 2])
        if self.num_steps == 0:  # where drafts are cheap to score, they are tried at once
            self.account = _CREDIT * self.cost(0)
        self.num_steps += count
        self.last_tried[0] = self.num_steps
        self.account += self.explore * count * self.cost(0)
        self._plain.clear()

    def step_seconds(self, arm: int) -> float:
        """Return what a step of an arm is expected to take."""
        return self.draft_s[arm] + self.cost(round(self.mean_width[arm]))

    def rate(self, arm: int, stats: Sequence[Sequence[ArmStats]]) -> float:
        """Return an arm's expected tokens per second and row; `stats[row][arm]`."""
        return self.tokens(arm, stats) / self.step_seconds(arm)

    def tokens(self, arm: int, stats: Sequence[Sequence[ArmStats]]) -> float:
        """Return an arm's expected tokens per step and row."""
        if arm == 0:
            return 1.0
        steps, tokens = _PRIOR_STEPS, _PRIOR_TOKENS
        for row in stats:
            steps, tokens = steps + row[arm].steps, tokens + row[arm].tokens
        return tokens / steps

    def choose(self, stats: Sequence[Sequence[ArmStats]]) -> int:
        """Return the arm of the next steps; `countdown` says for how many."""
        self._work_in()
        rates = [self.rate(arm, stats) for arm in range(len(self.widths))]
        tried = [arm for arm in range(len(rates)) if arm == 0 or self.last_tried[arm] >= 0]
        best = max(tried, key=lambda arm: rates[arm])
        if not self.is_trial and best != self.current and rates[best] < _HYSTERESIS * rates[self.current]:
            best = self.current
        trial, missing = self._trial(best, rates)
        self.is_trial = trial is not None
        if trial is not None:
            self.current, self.countdown = trial, 2
            self.note = f"trial: {self.account * 1e3:.2f} ms may still be lost to trials"
        else:
            # While plain decoding runs nothing is learned, so the next choice can wait until a trial can be paid.
            earned = self.explore * self.cost(0)
            wait = _MOST_PLAIN if missing >= _MOST_PLAIN * earned else max(_PLAIN_STEPS, int(missing / earned))
            self.current, self.countdown = best, wait if best == 0 else 4
            self.note = f"best rate: {rates[best]:.0f} tokens/s expected, {rates[0]:.0f} plainly"
        return self.current

    def _trial(self, best: int, rates: Sequence[float]) -> tuple[int | None, float]:
        """Return the arm longest untried that could win at all, or None and the seconds that the account lacks."""
        if self.is_timed and self.cost.unit == 0:
            return None, 0.0
        missing = float("inf")
        for arm in sorted(range(1, len(rates)), key=lambda arm: self.last_tried[arm]):
            if arm == best or 0 <= self.last_tried[arm] > self.num_steps - _REST:
                continue
            # A trial that writes nothing more than plain decoding would is the worst case.
            worst = 2 * (self.step_seconds(arm) - self.cost(0))
            is_hopeless = (1 + self.widths[arm]) / (self.draft_s[arm] + self.cost(self.widths[arm])) <= rates[best]
            if is_hopeless:
                continue
            if worst <= self.account:
                return arm, 0.0
            missing = min(missing, worst - self.account)
        return None, missing
