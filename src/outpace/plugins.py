"""What ships by name and what other packages add under an entry-point group; nothing is imported before it is used.

Set OUTPACE_PLUGINS=0 to load built-ins only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from outpace.errors import ConfigError, PluginError, nearest

__all__ = ["gather", "load"]


def gather(group: str, built_in: Mapping[str, str], noun: str, home: str = "") -> dict[str, EntryPoint]:
    """Return what can be loaded by name, built-in ones first.

    Args:
        group: of entry points.
        built_in: names to "module:Class", below `home`.
        noun: what they are, for messages.
        home: the package of what ships; "" = the one that the group is called after.

    Raises:
        PluginError: two packages give the same name.
    """
    found = {name: EntryPoint(name, f"{home or group}.{value}", group) for name, value in built_in.items()}
    if os.environ.get("OUTPACE_PLUGINS") == "0":
        return found
    for entry in entry_points(group=group):
        if entry.dist is not None and entry.dist.name == "outpace":  # an older installation's list
            continue
        known = found.get(entry.name)
        if known is not None:
            raise PluginError(
                f"Two packages name a {noun} {entry.name!r}: {known.value} and {entry.value}.",
                "Uninstall one of them, or set OUTPACE_PLUGINS=0.",
            )
        found[entry.name] = entry
    return found


def load(entries: Mapping[str, EntryPoint], name: str, noun: str) -> Any:
    """Return the class that a name stands for.

    Raises:
        ConfigError: there is none; the hint names the nearest.
        PluginError: the entry point does not load.
    """
    entry = entries.get(name)
    if entry is None:
        raise ConfigError(f"There is no {noun} {name!r}.", nearest(name, entries, noun))
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"The {noun} {name!r} does not load: {error}.", f"Its entry point is {entry.value}."
        ) from error
