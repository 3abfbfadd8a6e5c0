"""Rows that one run writes, and what becomes of them when a step fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from outpace.api.searching import Searching
from outpace.errors import NoPages, OutpaceError
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.text.stream import TextStream
from outpace.types import Outcome

__all__ = ["Lane", "SearchLane"]

_LISTS = ("tokens", "sources", "drafters", "log_probs", "top_log_probs", "margins", "steps")  # that a step appends to


class Lane:
    """A run that is made anew when a step of it fails.

    Args:
        new_run: returns the run, without rows.
        new_text: returns a row's text stream as it was before anything was written; None = rows have no text.
        is_shared: its rows are of several asks, and none of them forks.
    """

    def __init__(
        self, new_run: Callable[[], Run], new_text: Callable[[Row], TextStream | None], is_shared: bool = True
    ) -> None:
        self._new_run, self._new_text, self.is_shared = new_run, new_text, is_shared
        self.run = new_run()

    @property
    def rows(self) -> list[Row]:
        """The rows being written."""
        return self.run.rows

    @property
    def unread(self) -> int:
        """Prompt tokens that are still to be read of rows in line."""
        batch = self.run.batch
        if not batch.line or batch.cache is None:
            return 0
        held = batch.cache.lengths[len(batch.rows) :]
        return sum(len(row.tokens) - 1 - length for row, length in zip(batch.waiting, held, strict=True))

    def join(self, rows: Sequence[Row]) -> None:
        """Add rows; those that were written on before go on where they stood."""
        self.run.join(rows, in_line=self.is_shared)

    def step(self, budget: int) -> tuple[list[Row], Outcome | None, dict[Row, Exception]]:
        """Advance every row by one step, and read up to `budget` tokens of prompts beside it.

        Returns:
            The rows that took part, in the order of the outcome; the outcome, None where there was none, or where rows
            were stepped apart; and the rows that failed, with why. Those have left, as have all that ended.

        Raises:
            NoPages: pages do not suffice for all rows; nothing has changed.
        """
        rows = list(self.rows)
        sizes = [[len(getattr(row, name)) for name in _LISTS] for row in rows]
        try:
            stepped = [row for row, _ in self.run.step(budget)]
        except NoPages:
            raise
        except Exception as error:
            if not self.is_shared:
                self._renew()
                return rows, None, dict.fromkeys(rows, error)
            return rows, None, self._step_apart(rows, sizes, error)
        return stepped, self.run.last if stepped else None, {}

    def _step_apart(self, rows: list[Row], sizes: list[list[int]], error: Exception) -> dict[Row, Exception]:
        """Step each row in a run of its own: those that fail again are at fault, the others go on together."""
        for row, size in zip(rows, sizes, strict=True):
            self._rewind(row, size)
        self._renew()
        failed: dict[Row, Exception] = {}
        for row, size in zip(rows, sizes, strict=True):
            alone = self._new_run()
            try:
                alone.join([row])
                alone.step()
            except NoPages:  # it is stepped with the others, once there are pages
                self._rewind(row, size)
            except Exception as own:
                self._rewind(row, size)
                failed[row] = own
            alone.leave(list(alone.rows))
        if not failed:
            sentence = f"A step failed ({type(error).__name__}: {error}), and no text by itself is to blame."
            blame = OutpaceError(sentence, "Ask again; if it comes back, report it.")
            return dict.fromkeys((row for row in rows if row.finish is None), blame)
        self.join([row for row in rows if row not in failed and row.finish is None])
        return failed

    def _renew(self) -> None:
        """Go on with a fresh run, without rows."""
        self.run.leave(list(self.run.rows))
        self.run = self._new_run()

    def _rewind(self, row: Row, sizes: Sequence[int]) -> None:
        """Take back what a step that failed had written to a row."""
        if [len(getattr(row, name)) for name in _LISTS] != sizes:
            for name, size in zip(_LISTS, sizes, strict=True):
                del getattr(row, name)[size:]
            row.finish = None
            _recount(row)
            if row.text is not None and (text := self._new_text(row)) is not None:
                for token in row.written:
                    text.push(token)
                text.release()
                row.text = text
        row.constraint = row.state = None  # told anew from the text when the row joins


def _recount(row: Row) -> None:
    """Count what a row has cost anew, from what is noted of its tokens and steps."""
    usage, sources = row.usage, row.sources
    usage.num_accepted, usage.num_recovered, usage.num_bonus = map(sources.count, ("draft", "recovered", "bonus"))
    usage.num_emitted = len(sources)
    usage.num_proposed, usage.num_steps = sum(drafted for drafted, _ in row.steps or ()), len(row.steps or ())


class SearchLane(Lane):
    """A search of one ask, whose rows become the texts that are found; it writes others of its own for them.

    Args:
        new_run: returns the run, without rows.
        new_search: returns the search in such a run.
    """

    def __init__(self, new_run: Callable[[], Run], new_search: Callable[[Run], Searching]) -> None:
        super().__init__(new_run, lambda _: None, is_shared=False)
        self._rows, self._searching = list[Row](), new_search(self.run)

    @property
    def rows(self) -> list[Row]:
        """The texts that are still searched for."""
        return [row for row in self._rows if row.finish is None]

    def join(self, rows: Sequence[Row]) -> None:
        """Note the rows."""
        self._rows += rows

    def step(self, budget: int) -> tuple[list[Row], Outcome | None, dict[Row, Exception]]:
        """Search on by a step; return the texts that were found, no outcome, and what failed."""
        del budget
        try:
            return self._searching.step(), None, {}
        except Exception as error:
            return [], None, dict.fromkeys(self.rows, error)
