"""Row operations on a method's state: a tree of tensors, lists, caches and dataclasses with rows on the first axis."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["join", "rows"]


def rows(state: Any, index: Sequence[int]) -> Any:
    """Return the state of some rows, in that order (a row may repeat: a fork copies).

    Tensors are indexed on axis 0, lists are picked from, dicts and dataclasses are walked, and objects with a `rows`
    method (caches, nested runs) do it themselves. None, and scalars shared by all rows, pass unchanged.
    """
    if isinstance(state, Tensor):
        return state.index_select(0, torch.tensor(list(index), dtype=torch.int64, device=state.device))
    if isinstance(state, list):
        times = Counter(index)
        return [_copied(state[i], times[i] > 1) for i in index]
    if isinstance(state, dict):
        return {name: rows(value, index) for name, value in state.items()}
    if hasattr(state, "rows"):
        return state.rows(index)
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return dataclasses.replace(state, **{f.name: rows(getattr(state, f.name), index) for f in _fields(state)})
    return state


def join(states: Sequence[Any]) -> Any:
    """Stack the rows of several states of one method (the inverse of `rows`).

    What is shared by all rows, and None in some states, is taken from one that knows it.

    Raises:
        TypeError: one state has rows where another is None: how many rows that None stands for cannot be told.
    """
    known = [state for state in states if state is not None]
    first = known[0] if known else None
    if len(states) == 1 or first is None or isinstance(first, (str, int, float, tuple)):
        return first
    if len(known) < len(states):
        raise TypeError(
            f"A state of None cannot be joined with a {type(first).__name__}; keep a list with None per row."
        )
    if isinstance(first, Tensor):
        return torch.cat(list(states))
    if isinstance(first, list):
        return [item for state in states for item in state]
    if isinstance(first, dict):
        return {name: join([state[name] for state in states]) for name in first}
    if hasattr(first, "join"):
        return first.join(states)
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        merged = {f.name: join([getattr(state, f.name) for state in states]) for f in _fields(first)}
        return dataclasses.replace(first, **merged)
    return first


def _fields(state: Any) -> tuple[dataclasses.Field[Any], ...]:
    return tuple(f for f in dataclasses.fields(state) if f.init)


def _copied(item: Any, is_forked: bool) -> Any:
    if not is_forked:
        return item
    return item.copy() if hasattr(item, "copy") else item
