"""Rewards: a caller's function of texts, read from a file or given as it is, asked for many texts at a time."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpace.arguments import refused
from outpace.errors import ConfigError, OutpaceError

__all__ = ["NONE", "Reward", "RewardError", "read_reward"]

_REQUIRED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class RewardError(OutpaceError):
    """A reward that cannot be used for any text; the search ends, its neighbours go on."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A function that says how good texts are.

    Attributes:
        function: takes a list of written texts, and a second list of their prompts if it has a second parameter that
            must be given; returns a number for each, larger is better. Without a tokenizer, texts are lists of ids.
            None = no reward.
        name: for messages and results.
    """

    function: Callable[..., Any] | None = None
    name: str = ""

    def __bool__(self) -> bool:
        return self.function is not None

    def __call__(
        self, texts: Sequence[Any], prompts: Sequence[Any], places: Sequence[int]
    ) -> tuple[list[float], list[str]]:
        """Return the rewards of some texts, and notes; a text whose reward fails or is no number gets -inf.

        Args:
            texts: what was written.
            prompts: what each was written behind.
            places: the numbers of the texts among all of the search, for messages.

        Raises:
            RewardError: there is no reward for any text, or not one for each.
        """
        if not texts:
            return [], []
        try:
            found = self._ask(texts, prompts)
        except RewardError:
            raise
        except Exception as error:
            if len(texts) == 1:
                raise RewardError(f"{_told(self.name, error)} on text {places[0]}.", "Correct the function.") from error
            return self._one_by_one(texts, prompts, places)
        notes = [f"The reward {self.name} gave nan for text {at}, which was left out."
                 for at, value in zip(places, found, strict=True) if math.isnan(value)]  # fmt: skip
        if len(notes) == len(texts):
            raise RewardError(f"The reward {self.name} gave nan for text {places[0]} and all others.", "Give numbers.")
        return [-math.inf if math.isnan(value) else value for value in found], notes

    def _one_by_one(
        self, texts: Sequence[Any], prompts: Sequence[Any], places: Sequence[int]
    ) -> tuple[list[float], list[str]]:
        """Ask for each text by itself, so that one whose reward fails takes no other with it."""
        values, notes, first = [], list[str](), None
        for text, prompt, place in zip(texts, prompts, places, strict=True):
            try:
                (value,), told = self([text], [prompt], [place])
            except RewardError as error:
                value, told, first = -math.inf, [f"{str(error).rstrip('.')}; it was left out."], first or error
            values.append(value)
            notes += told
        if first is not None and len(notes) == len(texts):
            raise first
        return values, notes

    def _ask(self, texts: Sequence[Any], prompts: Sequence[Any]) -> list[float]:
        assert self.function is not None  # asked only where there is one
        given = [list(texts), list(prompts)] if _takes_prompts(self.function) else [list(texts)]
        found = self.function(*given)
        found = found.tolist() if hasattr(found, "tolist") else found
        if not isinstance(found, (list, tuple)) or len(found) != len(texts):
            count = f"{len(found)} values" if isinstance(found, (list, tuple)) else f"a {type(found).__name__}"
            raise RewardError(
                f"The reward {self.name} gave {count} for {len(texts)} texts.", "Give a list, one number each."
            )
        return [float(value) for value in found]


NONE = Reward()


def _told(name: str, error: Exception) -> str:
    return f"The reward {name} failed ({type(error).__name__}: {error})"


@functools.cache
def _takes_prompts(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a function in C
        return False
    return sum(part.kind in _REQUIRED and part.default is part.empty for part in parameters) > 1


def read_reward(name: str, value: Any) -> Reward:
    """Return the reward that a function, "FILE.py:function", "module:function" or "" stands for.

    Args:
        name: of the setting, for messages.
        value: as callers give it.

    Raises:
        ConfigError: the file cannot be run, or holds no such function.
    """
    if isinstance(value, Reward):
        return value
    if callable(value):
        return Reward(value, getattr(value, "__qualname__", type(value).__name__))
    if not isinstance(value, str):
        raise refused(name, value, "a function or FILE.py:function")
    if not value:
        return NONE
    file, _, function = value.rpartition(":")
    if not file or not function:
        raise ConfigError(f"{name} is {value!r}.", "Give FILE.py:function.")
    found = getattr(_module(name, file), function, None)
    if not callable(found):
        raise ConfigError(f"{file} has no function {function!r}.", f"{name} takes FILE.py:function.")
    return Reward(found, value)


def _module(name: str, file: str) -> Any:
    path = Path(file)
    if not file.endswith(".py"):
        try:
            return importlib.import_module(file)
        except (ImportError, TypeError, ValueError) as error:
            raise ConfigError(f"There is no module {file!r} for {name}.", "Give FILE.py:function.") from error
    if not path.is_file():
        raise ConfigError(f"The file of {name} is not there: {file}.", "Give FILE.py:function.")
    spec = importlib.util.spec_from_file_location(f"outpace_reward_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} is no Python file.", "Give FILE.py:function.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{file} cannot be run ({type(error).__name__}: {error}).", "Correct the file.") from error
    return module
