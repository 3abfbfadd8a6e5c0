"""Planting a fault: a function of the shipped code is replaced, wherever it is known, for the length of a block.

A replacement is made of the original: it changes what goes in (`stand_in` hands over an object that answers in part
otherwise), what comes out, or what the function finds under a name that it calls (`seeing`). So it holds on to names,
and survives a function that moves or is written anew. `text` changes the source itself, for faults in the middle of an
arithmetic expression, which neither has a name nor shows outside in any other way.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from outpace.testing import world
from outpace.testing.checks import own_text

__all__ = ["Change", "Mutant", "seeing", "stand_in", "text"]

Function = Callable[..., Any]
Change = Callable[[Any], Function]  # takes the original


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault.

    Attributes:
        name: short.
        fault: what goes wrong, one line.
        where: "module:function" or "module:Class.function", below `outpace`.
        change: takes the function and returns what stands in its place.
        is_canvas: it lies in what only canvases use.
    """

    name: str
    fault: str
    where: str
    change: Change
    is_canvas: bool = False

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the fault in place, everywhere the function is known, for the length of a `with` block.

        Raises:
            LookupError: there is no such function, or it does not hold what the fault needs: the code moved on, and
                the mutant must follow.
        """
        owner, name, original = self._found()
        function = original.__func__ if isinstance(original, classmethod) else original
        try:
            replacement = self.change(function)
        except LookupError as error:
            raise self._gone(str(error)) from None

        @functools.wraps(function)
        def planted(*given: Any, **named: Any) -> Any:  # so that arguments that do not fit raise here
            return replacement(*given, **named)

        changed: Any = classmethod(planted) if isinstance(original, classmethod) else planted
        is_method = inspect.isclass(owner)
        # A function that other modules imported by name is replaced there too.
        places = [owner] if is_method else [m for n, m in list(sys.modules.items()) if n.startswith("outpace")]
        known = [place for place in places if vars(place).get(name) is original]
        # So is one that its module keeps in a table, by name.
        names = vars(sys.modules[function.__module__])
        tables = [table for table in names.values() if isinstance(table, dict) and table is not names]
        entries = [(table, key) for table in tables for key, value in table.items() if value is original]
        try:
            for place in known:
                setattr(place, name, changed)
            for table, key in entries:
                table[key] = changed
            _forget()
            yield
        finally:
            for place in known:
                setattr(place, name, original)
            for table, key in entries:
                table[key] = original
            _forget()

    def check_crash(self, error: Exception) -> None:
        """Look at what a check raised under the fault: a replacement that breaks by itself proves nothing.

        Raises:
            LookupError: the error arose in the replacement, not in the code around it.
        """
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        file = trace.tb_frame.f_code.co_filename if trace is not None else ""
        if file in (__file__, inspect.getfile(self.change)):
            raise self._gone(f"it broke with {type(error).__name__}: {error}") from error

    def _found(self) -> tuple[Any, str, Any]:
        """Return what holds the function, the function's name, and the function as it is held."""
        module, _, path = self.where.partition(":")
        *owners, name = path.split(".")
        try:
            owner: Any = importlib.import_module(f"outpace.{module}")
            for part in owners:
                owner = getattr(owner, part)
            return owner, name, inspect.getattr_static(owner, name)
        except (ImportError, AttributeError) as error:
            raise self._gone(str(error)) from None

    def _gone(self, reason: str) -> LookupError:
        return LookupError(f"The mutant {self.name!r} no longer applies to {self.where}: {reason}.")


def _forget() -> None:
    """Forget texts written by other code."""
    world.reference.cache_clear()
    own_text.cache_clear()


def seeing(function: Any, **names: Any) -> Function:
    """Return a function with the same body, which finds other values under these names of its module.

    Raises:
        LookupError: the body does not use one of them.
    """
    used = _names(function.__code__)
    for name in names:
        if name not in used:
            raise LookupError(f"{function.__qualname__} does not use {name!r}")
    changed = FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    changed.__kwdefaults__ = function.__kwdefaults__
    return changed


def _names(code: CodeType) -> set[str]:
    """Return the names that code looks up, functions within it included."""
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*map(_names, inner))


class _StandIn:
    """Answers as another object, but for a few attributes; what is assigned to it reaches the other object."""

    def __init__(self, whole: Any, changes: dict[str, Any], keeps: tuple[str, ...]) -> None:
        vars(self).update(_whole=whole, _changes=changes, _keeps=keeps)

    def __getattr__(self, name: str) -> Any:
        mine = vars(self)
        return mine["_changes"][name] if name in mine["_changes"] else getattr(mine["_whole"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in vars(self)["_keeps"]:
            setattr(vars(self)["_whole"], name, value)


def stand_in(whole: Any, *, keeps: tuple[str, ...] = (), **changes: Any) -> Any:
    """Return an object that answers as `whole`, but for the attributes given.

    Args:
        whole: answers all else, by methods of its own that know nothing of the stand-in.
        keeps: attributes that stay as they are when they are assigned to.
        changes: by name.
    """
    return _StandIn(whole, changes, keeps)


def text(old: str, new: str) -> Change:
    """Return a change of one piece of a function's source; LookupError where it does not stand there exactly once."""

    def change(function: Any) -> Function:
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(old) != 1:
            raise LookupError(f"{old!r} is not there once")
        scope = dict(function.__globals__)
        code = "from __future__ import annotations\n" + source.replace(old, new)
        exec(compile(code, f"<mutant of {function.__qualname__}>", "exec"), scope)
        found: Function = scope[function.__name__]
        return found

    return change
