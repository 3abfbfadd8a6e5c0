"""Which drafter next: rates from what was seen, exploration on a budget of lost time.

An arm's rate is the tokens that its best window is expected to write, over what that step costs: the forward by the
rows and nodes in it, the drafter by its own measured time. The arm of the best rate runs, with the window of that rate;
plain decoding is one of them. Another one is tried only when the time that trials have lost so far is below a set share
of the time decoded, and with no more nodes than that pays for: trying costs at most that share, however many arms and
rows there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from outpace.schedule.cost import CostCurve, StepCost

__all__ = ["ArmStats", "Bandit", "BanditArm", "TreeCut", "WindowPlan", "last_rows"]

_DISCOUNT = 0.92  # per step of the arm
_PRIOR_KEPT, _PRIOR_LOST = 1.5, 0.5  # drafts of an untried chain
_PRIOR_GAIN = 0.6  # tokens by which an untried arm is believed
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # of windows that are weighed
_PRIOR_STEPS, _PRIOR_TOKENS = 1.0, 1.4  # an untried arm that cannot be cut: as if it had once written 1.4 tokens
_FADE = 0.97  # per step, of a stronger belief than that
_POOLED = 2.0  # drafts of all rows that a row's own chance leans on
_SMOOTH = 0.1
_HYSTERESIS = 1.03
_CREDIT = 0.5  # plain steps that trials may lose from the start
_LOAN = 0.5  # further plain steps that the arm that looks best may lose before plain decoding pays them back
_SIZED_LOAN = 8.0  # the same, of an arm that drafts nothing where nothing pays: what it loses it sees by itself
_SAVED = 1.0  # plain steps of what drafting won that the account keeps at most
_WATCH = 0.01  # of a plain step, that learning from it may take
_HOPE = 1.25  # an arm whose expected rate is this much below the best one's is not worth learning for
_PLAIN_STEPS, _MOST_PLAIN = 12, 64  # between two choices while plain decoding wins
_CHOICE = 0.005  # of the plain steps until the next one, that a choice may take where they are very short
_ARM_STEPS, _TRIAL_STEPS = 4, 2
_SLACK = 1  # tokens that a row may be ahead of the last one and still count as the last
_LEAD = 0.5  # what a token is worth to a row that is further ahead: a batch lasts as long as its last row
_CHECK = 64  # steps of drafting after which a plain step shows what one takes now
_REST, _LONGEST_REST = 16, 256  # steps before an arm is tried again; twice as many after each trial that was far off


@dataclass(slots=True)
class ArmStats:
    """What one row saw of one arm, discounted.

    Attributes:
        steps: steps of the arm.
        tokens: tokens written in them.
        accepted, rejected: drafts that matched, and first mismatches.
        hoped: of trees, drafts that would have matched had the row been like the others.
    """

    steps: float = 0.0
    tokens: float = 0.0
    accepted: float = 0.0
    rejected: float = 0.0
    hoped: float = 0.0

    def add(self, tokens: int, accepted: int, is_rejected: bool, hoped: float = 0.0) -> None:
        """Count one step."""
        self.rest()
        self.steps += 1
        self.tokens += tokens
        self.accepted += accepted
        self.rejected += is_rejected
        self.hoped += hoped

    def rest(self) -> None:
        """Count a step in which the row had no drafts: what is known of it grows old, so that it is tried again."""
        self.steps *= _DISCOUNT
        self.tokens *= _DISCOUNT
        self.accepted *= _DISCOUNT
        self.rejected *= _DISCOUNT
        self.hoped *= _DISCOUNT

    @property
    def share(self) -> float:
        """By how much more of the row's trees was kept than of others'."""
        return (self.accepted + _POOLED) / (self.hoped + _POOLED)

    def copy(self) -> ArmStats:
        """Return an independent copy (a forked row)."""
        return replace(self)


class TreeCut:
    """How many nodes of an arm's trees are worth their scoring, from which nodes were kept.

    Parents precede children, so the first n nodes of a tree are a tree, and of a kept path those among them would have
    been kept.

    Args:
        width: most nodes.
    """

    def __init__(self, width: int) -> None:
        self.chance = [0.3 / (1 + node) for node in range(width)]  # of each node to be kept

    def add(self, widths: Sequence[int], paths: Sequence[Sequence[int]]) -> None:
        """Count a step that scored so many nodes of each row; what lies beyond keeps its old estimate."""
        reached = [sum(width > node for width in widths) for node in range(min(max(widths), len(self.chance)))]
        for node in range(len(reached)):
            self.chance[node] *= 1 - _SMOOTH
        for path in paths:
            for node in path:
                if 0 <= node < len(reached):
                    self.chance[node] += _SMOOTH / reached[node]

    def blocks(self) -> list[tuple[int, float]]:
        """Return the nodes in order as blocks (nodes, drafts kept per node) of which each is worth less than the last.

        They are the upper hull of what the first n nodes bring: a node that brings little is taken with those behind
        it that bring more, or not at all.
        """
        found: list[tuple[int, float]] = []
        for chance in self.chance:
            size, gain = 1, chance
            while found and gain * found[-1][0] >= found[-1][1] * size:
                more, brought = found.pop()
                size, gain = size + more, gain + brought
            found.append((size, gain))
        return [(size, gain / size) for size, gain in found]


@dataclass(slots=True)
class WindowPlan:
    """A window for every row, and what is expected of it.

    Attributes:
        rate: tokens per second, all rows together.
        seconds: of the step.
        width: nodes per row, as far as a row has so many.
        gain: tokens per row beyond plain decoding's one.
    """

    rate: float
    seconds: float
    width: int
    gain: float = 0.0


@dataclass
class BanditArm:
    """What is known of one arm.

    Attributes:
        width: its widest window; 0 for plain decoding.
        draft_s: of drafting, per step, smoothed; a guess until it was measured.
        lag_s: per token that the drafter has to catch up with.
        lag_share: the same for a model, as a share of what a token costs the target.
        kind: "chain", "tree" (both can be cut), "whole", or "sized" (drafts as much as pays by itself).
        level_s: of a plain step when `draft_s` was measured: with fewer rows, drafting takes less.
        reach: of a chain, the share of rows that have a draft at each depth.
        cut: of a tree.
        mean_width: nodes per row and step of what cannot be cut.
        prior_steps, prior_tokens: as if it had made so many steps before the first, and written so much in each.
        gain, hoped: tokens that the last row won in steps of the arm, and what was expected, discounted.
        last_tried: step; -1 = never.
        rest: steps until it is tried again.
        watch_s: of learning from a step of another arm; a guess until it was measured (`is_watched`).
        is_open: it could win now, so that it may learn from others' steps.
    """

    width: int
    draft_s: float = 0.0
    lag_s: float = 0.0
    lag_share: float = 0.0
    kind: str = "chain"
    level_s: float = 0.0
    reach: list[float] = field(default_factory=list)
    cut: TreeCut = field(default_factory=lambda: TreeCut(0))
    mean_width: float = 0.0
    prior_steps: float = _PRIOR_STEPS
    prior_tokens: float = _PRIOR_TOKENS
    gain: float = _PRIOR_GAIN
    hoped: float = _PRIOR_GAIN
    last_tried: int = -1
    rest: int = _REST
    watch_s: float = 0.0
    is_watched: bool = False
    is_open: bool = True

    def __post_init__(self) -> None:
        self.reach = self.reach or [1.0] * self.width
        self.cut = TreeCut(self.width)
        self.mean_width = min(4.0, self.width)

    @property
    def trust(self) -> float:
        """What expected gains have proven to be worth."""
        return min(1.5, self.gain / self.hoped)

    def won(self, gain: float, hoped: float) -> None:
        """Count what a step won beyond plain decoding's token, and what it was expected to win."""
        self.gain = _DISCOUNT * self.gain + (1 - _DISCOUNT) * _PRIOR_GAIN + gain
        self.hoped = _DISCOUNT * self.hoped + (1 - _DISCOUNT) * _PRIOR_GAIN + hoped

    def reached(self, offered: Sequence[int]) -> None:
        """Count a step in which the rows had chains of such lengths."""
        for depth, share in enumerate(self.reach):
            self.reach[depth] += _SMOOTH * (sum(length > depth for length in offered) / len(offered) - share)


def last_rows(rooms: Sequence[int]) -> list[bool]:
    """Return which rows are about as far from their end as the last one."""
    most = max(rooms, default=0)
    return [room >= most - _SLACK for room in rooms]


def _worth(rooms: Sequence[int], rows: int) -> list[float]:
    """Return what a token is worth to each row: the last ones decide how long a batch lasts, if it ends at all."""
    return [1.0 if is_last else _LEAD for is_last in last_rows(rooms)] or [1.0] * rows


class Bandit:
    """Chooses among arms for one run; arm 0 is plain decoding.

    Args:
        arms: what is known of each, plain decoding first.
        curve: cost of forwards, when it was measured.
        explore: share of the decoding time that trials may lose.
        is_timed: False = costs follow the curve alone, so that equal histories give equal choices.
    """

    def __init__(
        self, arms: Sequence[BanditArm], curve: CostCurve | None, explore: float, is_timed: bool = True
    ) -> None:
        self.arms, self.explore, self.is_timed = list(arms), explore, is_timed
        self.cost = StepCost(curve)
        self.current, self.countdown, self.num_steps, self.num_drafted = 0, 0, 0, 0
        self.num_rows = 0  # in the forward; `num_beside` of them are others', who take part in its cost alone
        self.num_beside = 0
        self.plan = WindowPlan(0.0, 0.0, 0)
        self.hoped = 0.0  # tokens that the window at hand is expected to win for a row that is last
        self._plain: list[float] = []  # seconds of steps that are not worked in yet
        self.account = 0.0  # seconds that trials may still lose
        self.is_trial = self.is_fresh = False
        self._has_credit = False
        self.choice_s = 0.0  # that a choice takes; 0 = costs nothing
        self.note = "plain until something is known"

    def rows(self, index: Sequence[int]) -> Bandit:
        """Return itself: one choice for the whole batch, whichever rows stay."""
        del index
        return self

    def join(self, others: Sequence[Bandit]) -> Bandit:
        """Return itself: the run that rows join goes on learning."""
        del others
        return self

    # What a step showed

    def observe(self, tokens: int, draft_s: float, forward_s: float, progress: float, others: int = 0) -> None:
        """Count a step of the current arm.

        Args:
            tokens: in the forward, all rows together, others' drafts apart.
            draft_s: of proposing, and of learning from the outcome.
            forward_s: of scoring and accepting.
            progress: by how many tokens the row that will be last came nearer to its end; where rows come and go, how
                many tokens a row got.
            others: further tokens in the forward, which are not this bandit's doing.
        """
        # 1 What the step won, against what its window was expected to win: by so much the arm is trusted.
        arm, rows = self.arms[self.current], self.num_rows
        self.num_steps += 1
        self.num_drafted += 1
        arm.last_tried = self.num_steps
        arm.won(progress - 1, self.hoped if arm.kind in ("chain", "tree") else self.plan.gain)
        arm.prior_steps = max(_PRIOR_STEPS, _FADE * arm.prior_steps)
        arm.mean_width += 0.2 * (tokens / rows - 1 - arm.mean_width)
        # The first step after a rest brings the drafter up to date: a price of its own, not that of a step.
        # 2 What it cost. A drafter that got four times slower for one step met something else on the machine.
        spent = self._draft_s(arm)
        if self.is_timed:
            self.cost.add(rows, tokens + others, forward_s)
            spent = draft_s
            if not self.is_fresh:
                old = self._draft_s(arm) if arm.level_s else draft_s
                arm.draft_s, arm.level_s = old + 0.2 * (min(draft_s, 4 * old) - old), self.cost(rows, rows)
        self.is_fresh = False
        level = self.cost(rows, rows)
        spent += self.cost(rows, tokens)
        # A conservative bandit: what drafting lost against plain decoding is never more than credit, loan and share.
        # 3 Pay: the account gains a share of the time, and what the step won or lost against plain decoding.
        written = 1 + (progress - 1) * (rows - self.num_beside) / rows  # by every row, others' too
        account = self.account + self.explore * spent + written * level - spent
        self.account = min(account, max(self.account, _SAVED * level))
        self.countdown -= 1

    def observe_plain(self, forward_s: float | None) -> None:
        """Count a step of plain decoding; what it tells is worked in with the next choice.

        Args:
            forward_s: of scoring and accepting; None = its forward served more than that, so that it tells nothing.
        """
        if forward_s is not None:
            self._plain.append(forward_s)
        self.countdown -= 1

    def may_watch(self, index: int, forward_s: float) -> bool:
        """Return whether an arm may look at a step that another one made: where it could win, and that costs little."""
        arm = self.arms[index]
        if not arm.is_open or not self._has_credit:
            return False
        if not arm.is_watched:  # the first look, which also begins the arm, is paid for as a trial is
            return 2 * arm.watch_s <= self.account
        if arm.watch_s <= _WATCH * forward_s:
            return True
        arm.watch_s *= 0.995  # so that one bad measurement is forgotten
        return False

    def may_follow(self, index: int, forward_s: float) -> bool:
        """Return whether an arm goes on taking in every step, as it began: it could win, or that costs next to nothing.

        One that stopped has to begin anew where it is tried again, so this is not a trial that has to be paid for.
        """
        arm = self.arms[index]
        return not self.is_timed or arm.is_open or arm.last_tried < 0 or arm.watch_s <= _WATCH * forward_s

    def watched(self, index: int, seconds: float) -> None:
        """Count what looking took."""
        arm = self.arms[index]
        if arm.is_watched:
            arm.watch_s += 0.3 * (min(seconds, 4 * arm.watch_s) - arm.watch_s)
        else:
            arm.is_watched = True
            self.account -= seconds

    def _work_in(self) -> None:
        count, rows = len(self._plain), self.num_rows
        if count:
            # The median of a run of plain steps: one of them may have met another process.
            if self.is_timed:
                self.cost.add_plain(rows, sorted(self._plain)[count // 2])
            self.num_steps += count
            self.num_drafted = 0
            self.arms[0].last_tried = self.num_steps
            self.account += self.explore * count * self.cost(rows, rows)
            self._plain.clear()
        if not self._has_credit and (self.cost.knows(rows) or not self.is_timed):
            # Where drafts are cheap to score, they are tried at once.
            self.account, self._has_credit = _CREDIT * self.cost(rows, rows), True

    # What is expected

    def _draft_s(self, arm: BanditArm) -> float:
        scale = self.cost(self.num_rows, self.num_rows) / arm.level_s if arm.level_s else 1.0
        return arm.draft_s * min(1.0, scale)

    def _gains(self, index: int, stats: Sequence[Sequence[ArmStats]], *, is_hopeful: bool = False) -> list[float]:
        """Return the further tokens expected per row from each node of a window; hopeful = every draft is kept."""
        arm = self.arms[index]
        if arm.kind == "tree":
            return [1.0] * arm.width if is_hopeful else arm.cut.chance
        # A chain's n-th draft is kept if all before it were; it exists only in the rows that have so many.
        chance, chances = 1.0, []
        each = 1.0 if is_hopeful else self.chance(index, stats)
        for reach in arm.reach:
            chance *= each
            chances.append(chance if is_hopeful else chance * reach)
        return chances

    def chance(self, index: int, stats: Sequence[Sequence[ArmStats]]) -> float:
        """Return the probability that a draft of an arm matches, given that those before it did; `stats[row][arm]`."""
        kept = _PRIOR_KEPT + sum(row[index].accepted for row in stats)
        lost = _PRIOR_LOST + sum(row[index].rejected for row in stats)
        return kept / (kept + lost)

    def expect(self, index: int, stats: Sequence[Sequence[ArmStats]], *, is_hopeful: bool = False) -> WindowPlan:
        """Return the window of an arm with the best expected rate; at least one node of a drafter.

        Args:
            index: the arm.
            stats: of the rows that are drafted for, by arm; the others add to the cost alone.
            is_hopeful: as if every draft were kept.
        """
        arm, rows, drafted = self.arms[index], self.num_rows, len(stats)
        forward_s = self.cost.by_tokens(rows)
        if index == 0:
            seconds = forward_s(rows)
            return WindowPlan(rows / seconds, seconds, 0)
        base_s = self._draft_s(arm)
        if arm.kind in ("whole", "sized") and not is_hopeful:
            gain, seconds = self._tokens(index, stats) - 1, base_s + forward_s(round(rows * (1 + arm.mean_width)))
            trust = 1.0 if arm.kind == "sized" else arm.trust  # its own record is all that it is judged by
            return WindowPlan((rows + drafted * gain * trust) / seconds, seconds, arm.width, gain)
        # Weigh windows of growing size: the tokens that they are expected to write, over what they cost.
        gains = self._gains(index, stats, is_hopeful=is_hopeful)
        trust, is_chain = 1.0 if is_hopeful else arm.trust, arm.kind == "chain" and not is_hopeful
        best, gain, nodes, done = WindowPlan(0.0, 1.0, 1), 0.0, float(rows), 0
        for number in (size for size in _SIZES if size <= len(gains)):
            gain += sum(gains[done:number])
            nodes += drafted * (sum(arm.reach[done:number]) if is_chain else number - done)
            done = number
            seconds = base_s + forward_s(round(nodes))
            rate = (rows + drafted * gain * trust) / seconds
            if rate > best.rate:
                best = WindowPlan(rate, seconds, number, gain)
        return best

    def _tokens(self, index: int, stats: Sequence[Sequence[ArmStats]]) -> float:
        steps = self.arms[index].prior_steps
        tokens = steps * self.arms[index].prior_tokens
        for row in stats:
            steps, tokens = steps + row[index].steps, tokens + row[index].tokens
        return tokens / steps

    def lengths(
        self, index: int, stats: Sequence[Sequence[ArmStats]], offered: Sequence[int], rooms: Sequence[int] = ()
    ) -> list[int]:
        """Return how many drafts of each row's chain to score: those that raise the rate of the step.

        Args:
            index: the arm.
            stats: by row and arm.
            offered: drafts at hand per row.
            rooms: tokens that each row may still write; empty = none of the rows is the last.
        """
        pooled, worth = self.chance(index, stats), _worth(rooms, len(offered))
        # 1 Every draft's chance to be written: of the row's own record, leaning on all rows' where that is short.
        # Rows that will end before the others count less, since the batch lasts as long as its last row.
        nodes: list[tuple[float, int, int]] = []
        for row, (own, most) in enumerate(zip(stats, offered, strict=True)):
            seen, chance = own[index], worth[row]
            each = (seen.accepted + _POOLED * pooled) / (seen.accepted + seen.rejected + _POOLED)
            for _ in range(most):
                chance *= each
                nodes.append((chance, row, 1))
        # A row's chances fall with depth, so the likeliest nodes are the beginnings of chains.
        return self._divide(index, nodes, worth)

    def tree_lengths(
        self, index: int, stats: Sequence[Sequence[ArmStats]], offered: Sequence[int], rooms: Sequence[int] = ()
    ) -> list[int]:
        """Return how many nodes of each row's tree to score, as `lengths` does for chains; a row may get none.

        A node's chance is that of its place in all rows' trees, times how well the row's own were kept.
        """
        arm, worth = self.arms[index], _worth(rooms, len(offered))
        if self.is_trial:
            width = self.nodes()
            self.hoped = sum(arm.cut.chance[:width])
            return [min(width, most) for most in offered]
        blocks, nodes = arm.cut.blocks(), list[tuple[float, int, int]]()
        for row, (own, most) in enumerate(zip(stats, offered, strict=True)):
            scale, left = worth[row] * own[index].share, most
            for size, gain in blocks:
                if min(left, size) > 0:
                    nodes.append((scale * gain, row, min(left, size)))
                left -= size
        return self._divide(index, nodes, worth, min(1.0, arm.trust))

    def _divide(
        self, index: int, nodes: list[tuple[float, int, int]], worth: Sequence[float], trust: float = 1.0
    ) -> list[int]:
        """Take the best drafts of all rows as long as the step's rate rises; a trial at least one, and what it can pay.

        Args:
            index: the arm.
            nodes: (what each of them is worth, row, how many), worth less from one to the next of a row.
            worth: per row, of a token.
            trust: what a hoped token has proven to be worth.
        """
        nodes.sort(key=lambda node: -node[0])
        rows = len(worth) + self.num_beside
        base_s, level, written = self._draft_s(self.arms[index]), self.cost(rows, rows), sum(worth) + self.num_beside
        best, chosen, count = 0.0 if self.is_trial else written / (base_s + level), 0, 0
        for number, (value, _, size) in enumerate(nodes, 1):
            written += value * size * trust
            count += size
            seconds = self.cost(rows, rows + count)
            if number > 1 and self.is_trial and _TRIAL_STEPS * (seconds - level) > self.account:
                break
            if written / (base_s + seconds) > best:
                best, chosen = written / (base_s + seconds), number
        # Share them out; what the last row may hope for is what the step is judged by afterwards.
        lengths, self.hoped = [0] * len(worth), 0.0
        for value, row, size in nodes[:chosen]:
            lengths[row] += size
            self.hoped += value * size * (worth[row] == 1) / worth.count(1.0)
        return lengths

    def nodes(self) -> int:
        """Return how many nodes of a tree to score, per row; a trial takes what it can pay for."""
        rows, width = self.num_rows, max(1, self.plan.width)
        if self.is_trial:
            own, level = rows - self.num_beside, self.cost(rows, rows)
            while width > 1 and _TRIAL_STEPS * (self.cost(rows, rows + own * width) - level) > self.account:
                width -= 1
        return width

    # The choice

    def choose(
        self,
        stats: Sequence[Sequence[ArmStats]],
        lags: Sequence[int] = (),
        rooms: Sequence[int] = (),
        beside: int = 0,
    ) -> int:
        """Return the arm of the next steps; `countdown` says for how many.

        Args:
            stats: by row and arm.
            lags: tokens of all rows that each arm's drafter has not seen yet.
            rooms: tokens that each row may still write; empty = rows come and go, and none is the last.
            beside: rows of others in the same forward.
        """
        self._work_in()
        # 1 Know what a plain step takes now, with this many rows; otherwise no rate means anything.
        rows, self.num_rows, self.num_beside = self.num_rows, len(stats) + beside, beside
        lags = lags or [0] * len(self.arms)
        before, tried_now = (-1, self.current) if self.is_trial else (self.current, -1)
        self.is_trial = False
        is_stale = rows != self.num_rows and not self.cost.knows(self.num_rows)
        if self.is_timed and (is_stale or not self.cost.knows(self.num_rows) or self.num_drafted >= _CHECK):
            self.num_drafted = 0
            return self._take(0, 1, "a plain step, to see what one takes")
        # 2 Expect: the best window of every arm, for the rows that decide how long the batch lasts. An arm that was
        # never tried cannot win by its prior, and a small lead does not change the choice.
        last = last_rows(rooms) if rooms else [True] * len(stats)
        stats = [own for own, is_last in zip(stats, last, strict=True) if is_last]
        plans = [self.expect(index, stats) for index in range(len(self.arms))]
        tried = [index for index, arm in enumerate(self.arms) if index == 0 or arm.last_tried >= 0]
        best = max(tried, key=lambda index: plans[index].rate)
        if before in tried and best != before and plans[best].rate < _HYSTERESIS * plans[before].rate:
            best = before
        # 3 Arms far behind stop learning from others' steps, and rest longer where another one drafts well.
        for index, arm in enumerate(self.arms):
            arm.is_open = index == best or plans[index].rate * _HOPE >= plans[best].rate
            if index == best or arm.is_open or not best:
                arm.rest = _REST
            elif index == tried_now:
                arm.rest = min(_LONGEST_REST, 2 * arm.rest)
        # 4 Stop drafting where it has lost more than the loan; try another arm where that can be paid, but not at a
        # text's end, where nothing learned comes to use.
        earned = self.explore * plans[0].seconds
        best = self._lent(best, tried, plans[0].seconds)
        trial, missing = self._trial(best, plans, stats, lags) if max(rooms, default=_REST) >= _REST else (None, 0.0)
        if trial is not None:
            self.plan, self.is_trial = plans[trial], True
            return self._take(trial, _TRIAL_STEPS, f"trial: {self.account * 1e3:.2f} ms may still be lost to trials")
        self.plan = plans[best]
        told = f"best rate: {plans[best].rate:.0f} tokens/s expected, {plans[0].rate:.0f} plainly"
        if best:
            return self._take(best, _ARM_STEPS, told)
        # While plain decoding runs nothing is learned, so the next choice can wait until a trial can be paid.
        fewest = max(_PLAIN_STEPS, min(_MOST_PLAIN, self.choice_s / (_CHOICE * plans[0].seconds)))
        wait = _MOST_PLAIN if missing >= _MOST_PLAIN * earned else max(fewest, missing / earned)
        return self._take(0, int(wait), told)

    def _lent(self, best: int, tried: Sequence[int], plain_s: float) -> int:
        """Return the arm that may go on: plain decoding in place of one that has lost more than it is lent.

        One that sizes its drafts is not left for plain decoding before that: where it has nothing to draft it costs
        next to nothing, and it has to look at every step to see where it has something.
        """
        sized = next((index for index in tried if self.arms[index].kind == "sized"), 0)
        best = best or sized
        loan = _SIZED_LOAN if best == sized else _LOAN
        return best if self.account >= -loan * plain_s else 0

    def _take(self, index: int, steps: int, note: str) -> int:
        self.is_fresh = index != self.current
        self.current, self.countdown, self.note = index, steps, note
        return index

    def _trial(
        self, best: int, plans: Sequence[WindowPlan], stats: Sequence[Sequence[ArmStats]], lags: Sequence[int]
    ) -> tuple[int | None, float]:
        """Return the arm longest untried that could win at all, or None and the seconds that the account lacks."""
        missing, rows, level = float("inf"), self.num_rows, plans[0].seconds
        for index in sorted(range(1, len(plans)), key=lambda index: self.arms[index].last_tried):
            arm = self.arms[index]
            if index == best or 0 <= arm.last_tried > self.num_steps - arm.rest:
                continue
            # A trial that writes nothing more than plain decoding would is the worst case.
            whole = round(rows * arm.mean_width)
            least = {"chain": 1, "tree": len(stats), "sized": whole, "whole": whole}[arm.kind]
            each = self._draft_s(arm) + self.cost(rows, rows + least) - level
            worst = _TRIAL_STEPS * each + (arm.lag_s + arm.lag_share * self.cost.slope) * lags[index]
            if worst > self.account:
                missing = min(missing, worst - self.account)
            elif self.expect(index, stats, is_hopeful=True).rate > plans[best].rate:
                return index, 0.0
        return None, missing
