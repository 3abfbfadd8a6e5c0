"""Searches as they advance: every prompt has a table of rows, and all tables are written by one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from outpace.errors import CapabilityError, ConfigError
from outpace.run.loop import Run
from outpace.run.row import Row, forked
from outpace.search.base import Found, Search
from outpace.search.rewards import RewardError
from outpace.search.table import Leaf, Shelf, Table
from outpace.types import Adapter, FinishReason, Guarantee

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel
    from outpace.api.running import Plan

__all__ = ["Searching", "check_searched", "pool_for"]


def check_searched(search: Search, target: Adapter, method: Any, num_samples: int, temperature: float) -> None:
    """Refuse a search where it cannot be made.

    Raises:
        CapabilityError: the model writes on a canvas.
        ConfigError: the method is not exact or makes a search of its own, or several samples are asked for, or a
            temperature where nothing is drawn.
    """
    if target.capabilities.is_canvas:
        raise CapabilityError(
            f"The search {search.name!r} writes texts from left to right, and the model does not.",
            "Use a causal model, such as stories.",
        )
    if method.guarantee is not Guarantee.EXACT or method.needs.has_forks:
        raise ConfigError(
            f"The search {search.name!r} cannot write with the method {method.name!r}, whose texts are not plain ones.",
            "Use an exact method, such as prompt-lookup.",
        )
    if search.takes_likeliest and temperature > 0:
        raise ConfigError(
            f"The search {search.name!r} takes the likeliest texts, but temperature is {temperature:g}.",
            "Leave temperature out, or draw with another search.",
        )
    if num_samples > 1:
        raise ConfigError(
            f"The search {search.name!r} searches once per prompt, but num_samples is {num_samples}.",
            "Ask the search for more texts: -o n_best=N, where it has that.",
        )


def pool_for(target: Adapter, plan: Plan, capacity: int) -> Any:
    """Return pages for all that a search may hold of some prompts; None = each row has slots of its own."""
    assert plan.search is not None
    one = target.new_pool(1, _PAGE)
    if one is None or plan.is_fixed:
        return None
    prompts = [row for row in plan.rows if not row.place]
    tails = (capacity - min(row.num_prompt for row in prompts)) // one.page_size + 3
    pages = sum(row.num_prompt // one.page_size + 1 for row in prompts)
    try:
        return target.new_pool(pages + 2 * tails * plan.search.num_rows * len(prompts), _PAGE)
    except (RuntimeError, MemoryError):  # then every row has a copy of its prompt
        return None


_PAGE = 16  # slots: every text has a copy of the page in which its prompt ends, and one that is begun


class Searching:
    """The searches of a plan's prompts, in one run.

    Args:
        lm: what writes.
        plan: whose rows become the texts that are found.
        run: without rows.
    """

    def __init__(self, lm: LanguageModel, plan: Plan, run: Run) -> None:
        assert plan.search is not None
        self.run, self._shelf = run, Shelf(run)
        self._open: dict[int, tuple[Table, Found]] = {}
        self._rows: dict[int, list[Row]] = {}
        spellings = () if lm.tokenizer is None else lm.tokenizer.spellings
        for row in plan.rows:
            self._rows.setdefault(row.group or 0, []).append(row)
        for group, (row, *_) in self._rows.items():
            prompt = row.tokens[: row.num_prompt] if row.source is None else row.source
            text = prompt if lm.tokenizer is None else lm.tokenizer.decode(prompt)
            first = replace(row, **forked(row), num_choices=plan.search.num_choices)
            first.record = sorted({*plan.request.record, *plan.search.noted})
            table = Table(self._shelf, first, plan.request.seed, spellings, text)
            self._open[group] = table, plan.search.search(table)

    @property
    def is_over(self) -> bool:
        """Whether all searches have ended."""
        return not self._open

    def step(self) -> list[Row]:
        """Let every search go on as far as it can without the model, then take one step; return rows that ended."""
        ended = list[Row]()
        for group, (table, found) in list(self._open.items()):
            try:
                next(found)
            except StopIteration as last:
                ended += self._end(group, table, last.value)
            except RewardError as error:
                ended += self._fail(group, table, error)
        if self.run.rows:
            self.run.step()
        return ended

    def cancel(self) -> list[Row]:
        """End everything where it is; what the first row of each search has written is its text."""
        ended = list[Row]()
        for group, (table, found) in list(self._open.items()):
            rows = table.rows[:1]
            found.close()
            self.run.leave(table.rows)
            ended += self._end(group, table, [self._shelf.pop(row) for row in rows])
        for row in ended:
            if row.finish is None:
                row.cancel()
        return ended

    def _end(self, group: int, table: Table, leaves: Sequence[Leaf]) -> list[Row]:
        """Write what was found to the plan's rows."""
        del self._open[group]
        rows = self._rows[group]
        for row, leaf in zip(rows, leaves, strict=False):
            for name, value in forked(leaf.row).items():
                setattr(row, name, value)
            row.finish, row.score, row.stopped_inside = leaf.row.finish, leaf.row.score, leaf.row.stopped_inside
        for row in rows[len(leaves) :]:
            row.cancel()
        for row in rows:
            row.usage, written = table.usage, len(row.tokens) - row.num_prompt
            row.usage.num_emitted = written
            row.notes += table.notes
        return rows

    def _fail(self, group: int, table: Table, error: RewardError) -> list[Row]:
        """End a search whose reward cannot be used."""
        rows = self._end(group, table, [])
        for row in rows:
            row.finish = FinishReason.ERROR
            row.notes.append(f"{error} {error.hint}".strip())
        return rows
