"""Cache policies: which places keep their keys and values from one step to the next.

A policy answers one question, after each step: what stays. The next forward then holds every visible place that the
cache does not. So a policy never touches a sampler, and a sampler never a cache. Under block attention the entries of
finished blocks are exact and stay under every policy but `none`; what a policy adds concerns the block in work.

Sources: prefix and dual, Wu et al. (2025), Fast-dLLM, arXiv 2505.22618, section 3.2; delayed and greedy, Ma et al.
(2025), dKV-Cache, arXiv 2505.15781, sections 3.2 and 3.3; free, Hu et al. (2025), FlashDLM, arXiv 2505.21467.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from outpace.canvas.row import Bools, Canvas, CanvasRow, Ids
from outpace.errors import ConfigError, nearest

__all__ = ["CACHES", "POLICIES", "Policy", "Step", "make_policy"]


@dataclass(frozen=True, slots=True)
class Step:
    """What a policy knows.

    Attributes:
        before: the row as it was forwarded.
        after: the row with this step's tokens written; its `held` is still that of `before`.
        canvas: the run's.
    """

    before: CanvasRow
    after: CanvasRow
    canvas: Canvas

    @property
    def is_block_done(self) -> bool:
        """Whether this step finished a block."""
        return self.after.base > self.before.base

    def first(self, count: int) -> Bools:
        """Return [P] the first `count` places."""
        return np.arange(len(self.after.tokens)) < count

    def decided(self) -> Bools:
        """Return [P] the places that held a token, not a mask, when they were forwarded."""
        is_token: Bools = self.before.tokens != self.canvas.mask_id
        return is_token

    def settled(self) -> Bools:
        """Return [P] the places that were forwarded as the token they still hold."""
        same: Bools = self.before.tokens == self.after.tokens
        return self.decided() & same

    def written(self) -> Ids:
        """Return the places whose token this step wrote, changed or masked again."""
        return np.flatnonzero(self.before.tokens != self.after.tokens)

    def near(self, places: Ids, radius: int) -> Bools:
        """Return [P] the places at most `radius` away from one of `places`."""
        marks = np.zeros(len(self.after.tokens) + 1, dtype=np.int64)
        np.add.at(marks, np.maximum(places - radius, 0), 1)
        np.add.at(marks, np.minimum(places + radius + 1, len(marks) - 1), -1)
        return marks.cumsum()[:-1] > 0

    def exact(self) -> Bools:
        """Return [P] the places whose entries no later token changes."""
        return self.first(self.canvas.floor(self.before.base, self.before.prompt))


@dataclass(frozen=True, slots=True)
class Policy:
    """A named policy.

    Attributes:
        name: as users write it.
        refresh: steps after which everything is computed anew (1 = always, so nothing approximate is ever read);
            0 = only where the policy says so, at the ends of blocks.
        radius: how far around the last written and the undecided places `greedy` computes anew, and how far behind the
            first undecided one `free` does.
    """

    name: str
    refresh: int = 0
    radius: int = 4

    def stay(self, step: Step) -> Bools:
        """Return [P] the places whose entries stay; what is asked next never does (see `outpace.canvas.advance`)."""
        if self.name == "none":  # not even what is exact: the baseline of every other policy
            return np.zeros(len(step.after.tokens), dtype=np.bool_)
        exact = step.exact()
        # Staleness is bounded by age, whatever the policy would keep. The next step counts: it would read the entries.
        if self.name == "block" or (self.refresh and step.before.age + 1 >= self.refresh):
            return exact
        return exact | POLICIES[self.name](self, step)


def _prefix(policy: Policy, step: Step) -> Bools:
    """All before the block stays while it is written; a new block computes everything anew."""
    del policy
    # The step that ends a block saw its last masks, so not even the prefix is kept then: the next step, which sees
    # the block as it is, computes all, and what it leaves is what the block in work reads.
    return step.first(0 if step.is_block_done else step.before.base)


def _dual(policy: Policy, step: Step) -> Bools:
    """All before and behind the block stays while it is written."""
    del policy
    if step.is_block_done:
        return step.first(0)
    # Masks behind the block keep their entries as well: they hardly say anything, and there are many.
    place = np.arange(len(step.after.tokens))
    return (place < step.before.base) | (place >= step.after.end)


def _delayed(policy: Policy, step: Step) -> Bools:
    """A token's entry stays from the step after it was written, when it was first forwarded as itself."""
    del policy
    # In the step that writes a token it is forwarded as a mask, and that entry is of no use to anyone.
    return step.settled()


def _greedy(policy: Policy, step: Step) -> Bools:
    """All stays, masks included, but for windows around what was written last and what is still to be written.

    The lifespan is one block: where one is finished, everything is computed anew. Under block attention that needs no
    saying, for the next block has no entries yet.
    """
    if step.is_block_done:
        return step.first(0)
    # Entries age most near a change, and matter most near the places that are still to be decided.
    row = step.after
    todo = row.undecided(step.canvas, row.base, row.end)
    return ~step.near(np.concatenate([step.written(), todo]), policy.radius)


def _free(policy: Policy, step: Step) -> Bools:
    """The prompt and the decided text behind it freeze for good, `radius` places behind the first mask."""
    # As it was forwarded: a token written in this step has the entry of a mask so far.
    masked = step.before.undecided(step.canvas, 0, len(step.before.tokens))
    clean = int(masked[0]) if len(masked) else len(step.before.tokens)
    return step.first(clean - policy.radius)


POLICIES: dict[str, Callable[[Policy, Step], Bools]] = {
    "prefix": _prefix,
    "dual": _dual,
    "delayed": _delayed,
    "greedy": _greedy,
    "free": _free,
}
CACHES = ("auto", "none", "block", *POLICIES)
"""By the names that users write; "auto" is what a method makes of it, and "none" and "block" are exact."""


def make_policy(name: str, refresh: int = 0, radius: int = 4) -> Policy:
    """Return a policy by name.

    Raises:
        ConfigError: no such policy, or a negative number.
    """
    if name not in CACHES:
        raise ConfigError(f"There is no cache policy {name!r}.", nearest(name, CACHES, "cache"))
    if refresh < 0 or radius < 0:
        raise ConfigError(f"refresh is {refresh} and radius {radius}.", "Both must be 0 or more.")
    return Policy(name, refresh, radius)
