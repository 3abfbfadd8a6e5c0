"""The laws by name; plug-ins name "module:Class" in the entry-point group `outpace.laws`."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, cast

from outpace.methods.registry import read_spelled
from outpace.plugins import gather, load

if TYPE_CHECKING:
    from outpace.laws.base import Control

__all__ = ["law_names", "load_law", "read_law"]

_GROUP = "outpace.laws"
_BUILT_IN = {  # below outpace.laws
    "hmm": "hmm:Hmm",
    "moi": "moi:MixtureOfInputs",
    "reward": "reward:Reward",
    "plugin": "plugin:Plugin",
    "cfg": "guidance:Guidance",
    "contrast": "contrast:Contrast",
    "dola": "dola:Dola",
    "hso": "hso:HiddenStates",
    "self-terminating": "self_terminating:SelfTerminating",
    "template": "template:Template",
    "codes": "codes:Codes",
}


@lru_cache(maxsize=1)
def _entries() -> dict[str, EntryPoint]:
    return gather(_GROUP, _BUILT_IN, "law")


def law_names() -> list[str]:
    """Return the names of all laws, built-in ones first."""
    return list(_entries())


def load_law(name: str) -> type[Control]:
    """Return the class of a law.

    Raises:
        ConfigError: no such law; the hint names the nearest.
        PluginError: the entry point does not load.
    """
    return cast("type[Control]", load(_entries(), name, "law"))


def read_law(text: str) -> Control:
    """Return the law that "NAME:key=value,key=value" spells.

    Raises:
        ConfigError: no such law, or a setting of it that cannot be.
    """
    name, options = read_spelled(text)
    return load_law(name).from_settings(options)
