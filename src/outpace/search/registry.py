"""Names to searches, lazily: what ships stands here; plug-ins name "module:Class" in the group `outpace.searches`.

Set OUTPACE_PLUGINS=0 to load built-ins only.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, cast

from outpace.plugins import gather, load

if TYPE_CHECKING:
    from outpace.search.base import Search

__all__ = ["built_in_searches", "load_search", "search_names"]

_BUILT_IN = {  # below outpace.search
    "best-of": "best_of:BestOf",
    "step-beam": "step_beam:StepBeam",
    "tree-search": "tree_search:TreeSearch",
    "lookahead-beam": "lookahead_beam:LookaheadBeam",
    "cautious": "cautious:Cautious",
    "foresight": "foresight:Foresight",
    "residual-energy": "residual_energy:ResidualEnergy",
    "superposed": "superposed:Superposed",
    "conditional-beam": "conditional_beam:ConditionalBeam",
}


@lru_cache(maxsize=1)
def _entries() -> dict[str, EntryPoint]:
    return gather("outpace.searches", _BUILT_IN, "search", "outpace.search")


def search_names() -> list[str]:
    """Return the names of all searches, built-in ones first."""
    return list(_entries())


def built_in_searches() -> list[str]:
    """Return the names of the searches that ship with Outpace."""
    return list(_BUILT_IN)


def load_search(name: str) -> type[Search]:
    """Return the class of a search.

    Raises:
        ConfigError: no such search; the hint names the nearest.
        PluginError: the entry point does not load.
    """
    return cast("type[Search]", load(_entries(), name, "search"))
