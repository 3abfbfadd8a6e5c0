"""What every search is: frozen settings, a few declared facts, and one function that works on a table of rows.

A search file holds one frozen dataclass derived from `Search`, as a method file does of `Method`. A search decides
which texts are written on, how far, and which are returned; how tokens are drafted, drawn and constrained is the run's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from outpace.errors import ConfigError, nearest
from outpace.methods.base import Method
from outpace.methods.registry import load_method
from outpace.papers import Paper
from outpace.search.registry import load_search
from outpace.search.rewards import Reward, read_reward
from outpace.search.table import Leaf, Table
from outpace.setting import check, read_options

__all__ = ["Found", "Search", "read_search"]

Found = Generator[None, None, list[Leaf]]
"""What a search is while it runs: it yields wherever rows have to be written on, and returns the best texts."""


@dataclass(frozen=True)
class Search:
    """Base of all searches: writes one text, which is plain decoding.

    Subclasses are frozen dataclasses; a setting declares its range (`outpace.setting`), and one whose default is
    `rewards.NONE` takes a function or "FILE.py:function". Nothing is kept on the object.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    paper: ClassVar[Paper | None] = None
    takes_likeliest: ClassVar[bool] = False
    """It decides by likelihood where others draw, so that a temperature would mean nothing."""

    def __post_init__(self) -> None:
        """Read rewards, and hold the settings to the ranges that they declare.

        Raises:
            ConfigError: a value outside its range, or a reward that cannot be read.
        """
        for field in dataclasses.fields(self):
            if isinstance(field.default, Reward):
                object.__setattr__(self, field.name, read_reward(field.name, getattr(self, field.name)))
        check(self)

    @property
    def draws(self) -> bool:
        """Whether its texts would all be one without noise: temperature is then 1 where nobody says anything else."""
        return False

    @property
    def num_rows(self) -> int:
        """Most texts that it holds at a time."""
        return 1

    @property
    def num_texts(self) -> int:
        """How many it returns, the best first."""
        return 1

    @property
    def num_choices(self) -> int:
        """How many of the likeliest tokens it wants to know at every place."""
        return 0

    @property
    def noted(self) -> frozenset[str]:
        """What is noted of every token, for it to read: "log_probs", "entropies"."""
        return frozenset()

    def search(self, table: Table) -> Found:
        """Search one prompt; see `Found`."""
        return (yield from table.write([table.sample(0)]))

    def reduced(self) -> Search:
        """Return the search under the settings that make it its reference, token for token."""
        return self

    def reference(self) -> Method:
        """Return the method whose text the reduced search writes: plain decoding, unless it says otherwise."""
        return load_method("autoregressive")()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values; a reward by its name."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value.name if isinstance(value, Reward) else value for name, value in found.items()}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Build the search from settings given as values or as command-line strings.

        Raises:
            ConfigError: an unknown setting, or a value of the wrong kind.
        """
        return cls(**read_options(cls, settings, "search"))


def read_search(
    search: str | Search | None, method: str | Method, options: Mapping[str, Any] | None
) -> tuple[Search | None, dict[str, Any] | None]:
    """Return the search that was asked for, and the options that are left to the method.

    Args:
        search: a name, an object, or None.
        method: beside it; what it has a setting for, and the search has not, is the method's.
        options: of both; a search that comes as an object leaves all to the method.

    Raises:
        ConfigError: there is no such search, or an option that neither has.
    """
    if search is None or isinstance(search, Search):
        return search, None if options is None else dict(options)
    kind = load_search(search)
    given = dict(options or {})
    own = {field.name for field in dataclasses.fields(kind)}
    ours = {key: value for key, value in given.items() if str(key).replace("-", "_") in own}
    rest = {key: value for key, value in given.items() if key not in ours}
    if isinstance(method, str):
        known = {field.name for field in dataclasses.fields(load_method(method))}
        for key in rest:
            if str(key).replace("-", "_") not in known:
                message = f"Neither the search {search!r} nor the method {method!r} has an option {key!r}."
                raise ConfigError(message, nearest(str(key), own | known, "option"))
    return kind.from_settings(ours), rest or None
