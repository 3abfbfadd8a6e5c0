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
from typing import Any

import numpy as np

from outpace.canvas.row import Bools, Canvas, CanvasRow, Ids
from outpace.canvas.table import RowTable
from outpace.errors import ConfigError, nearest

__all__ = ["CACHES", "POLICIES", "Policy", "Step", "make_policy"]


@dataclass(frozen=True, slots=True)
class Step:
    """What a policy knows: of one row, arrays [P], or of all rows, [B, P].

    Attributes:
        before: the row as it was forwarded, or the rows.
        after: the same with this step's tokens written; what is held is still that of `before`.
        canvas: the run's.
    """

    before: CanvasRow | RowTable
    after: CanvasRow | RowTable
    canvas: Canvas

    @property
    def places(self) -> Ids:
        """[P] all places."""
        return np.arange(self.after.tokens.shape[-1])

    @property
    def is_block_done(self) -> Any:
        """Whether this step finished a block: of one row, or [B, 1]."""
        return self.after.base > self.before.base

    def goes_on(self) -> Bools:
        """Return [..., 1] whether this step finished no block."""
        found: Bools = np.logical_not(self.is_block_done)
        return found

    def first(self, count: int | Ids) -> Bools:
        """Return [..., P] the first `count` places."""
        found: Bools = self.places < count
        return found

    def decided(self) -> Bools:
        """Return [..., P] the places that held a token, not a mask, when they were forwarded."""
        is_token: Bools = self.before.tokens != self.canvas.mask_id
        return is_token

    def settled(self) -> Bools:
        """Return [..., P] the places that were forwarded as the token they still hold."""
        return self.decided() & ~self.written()

    def written(self) -> Bools:
        """Return [..., P] the places whose token this step wrote, changed or masked again."""
        other: Bools = self.before.tokens != self.after.tokens
        return other

    def todo(self) -> Bools:
        """Return [..., P] the undecided places of the block in work."""
        is_mask = self.after.tokens == self.canvas.mask_id
        found: Bools = is_mask & (self.places >= self.after.base) & (self.places < self.after.end)
        return found

    def near(self, marks: Bools, radius: int) -> Bools:
        """Return [..., P] the places at most `radius` away from a marked one."""
        size = marks.shape[-1]
        upto = np.concatenate([np.zeros_like(marks[..., :1], np.int64), marks.cumsum(-1)], -1)  # marks before a place
        far = np.minimum(self.places + radius + 1, size)
        found: Bools = upto[..., far] > upto[..., np.maximum(self.places - radius, 0)]
        return found

    def exact(self) -> Bools:
        """Return [..., P] the places whose entries no later token changes."""
        before: Any = self.before  # both of its numbers, or both arrays
        return self.first(self.canvas.floor(before.base, before.prompt))


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
        """Return [..., P] the places whose entries stay.

        What is asked next never does (see `outpace.canvas.advance`).
        """
        if self.name == "none":  # not even what is exact: the baseline of every other policy
            return np.zeros_like(step.after.tokens, dtype=np.bool_)
        exact = step.exact()
        if self.name == "block":
            return exact
        found = exact | POLICIES[self.name](self, step)
        # Staleness is bounded by age, whatever the policy would keep. The next step counts: it would read the entries.
        return np.where(step.before.age + 1 < self.refresh, found, exact) if self.refresh else found


def _prefix(policy: Policy, step: Step) -> Bools:
    """All before the block stays while it is written; a new block computes everything anew."""
    del policy
    # The step that ends a block saw its last masks, so not even the prefix is kept then: the next step, which sees
    # the block as it is, computes all, and what it leaves is what the block in work reads.
    return step.goes_on() & step.first(step.before.base)


def _dual(policy: Policy, step: Step) -> Bools:
    """All before and behind the block stays while it is written."""
    del policy
    # Masks behind the block keep their entries as well: they hardly say anything, and there are many.
    return step.goes_on() & (step.first(step.before.base) | ~step.first(step.after.end))


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
    # Entries age most near a change, and matter most near the places that are still to be decided.
    return step.goes_on() & ~step.near(step.written() | step.todo(), policy.radius)


def _free(policy: Policy, step: Step) -> Bools:
    """The prompt and the decided text behind it freeze for good, `radius` places behind the first mask."""
    # As it was forwarded: a token written in this step has the entry of a mask so far.
    is_clean = np.logical_and.accumulate(step.decided(), axis=-1)
    return step.first(is_clean.sum(-1, keepdims=True) - policy.radius)


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
