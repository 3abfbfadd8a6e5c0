"""A stand-in for a CUDA graph on a CPU: operations are noted as they run, and run again without the Python above them.

As a CUDA graph does, a tape holds the tensors and numbers of the moment of recording: a forward that looks at values,
at lengths on the host, or at memory made elsewhere is replayed wrongly, and tests that compare find it. What a CUDA
graph cannot hold at all is refused while it is noted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The host waits for the device in these: values, and shapes that follow from values.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "bincount", "item")


class Tape(TorchDispatchMode):
    """Notes operations while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if any(name.startswith(wait) for wait in WAITS):
            raise RuntimeError(f"{name} waits for the device")
        if name in ("index", "index_put", "index_put_"):  # a mask as index has a result of unknown size
            assert not any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if name == "lift_fresh":
            raise RuntimeError("a tensor is made of Python numbers, which the host copies to the device")
        out = func(*args, **kwargs)
        self.notes.append((func, args, kwargs, out))
        return out

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, out in self.notes:
                self._again(func, args, kwargs, out)

    def _again(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if (
            all(_is_alias(part, args) for part in tree_leaves(out) if isinstance(part, Tensor))
            and not func._schema.is_mutable
        ):
            return  # a view: it lies where it lay
        found = func(*args, **kwargs)
        for old, new in zip(tree_leaves(out), tree_leaves(found), strict=True):
            if isinstance(old, Tensor) and old is not new:
                old.copy_(new)

    def pool(self) -> object:
        return self


def _is_alias(out: Tensor, args: Any) -> bool:
    start = out.untyped_storage().data_ptr()
    return any(isinstance(a, Tensor) and a.untyped_storage().data_ptr() == start for a in tree_leaves(args))


def record(function: Callable[[], tuple[Tensor, ...]], pool: Any) -> tuple[Tape, tuple[Tensor, ...]]:
    """Record as `outpace.models.graphs.Recorder` does."""
    del pool
    with Tape() as tape:
        found = function()
    return tape, found
