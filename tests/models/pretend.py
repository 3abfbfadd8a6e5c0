"""A CUDA device that is not there: tensors on the CPU that say they lie on it, and refuse what a device refuses.

Numbers are the CPU's. What is found is code that mixes devices, hands a device's tensor to numpy, or makes a tensor
without saying where: none of it shows on a machine whose only device is the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
MOVES = ("to", "copy_", "cpu", "cuda", "type_as", "new_tensor")  # what may take tensors of both devices
HOST_INDEX = ("__getitem__", "__setitem__", "index_put_")  # indices may lie on the CPU


class Pretended(Tensor):
    """A tensor that says that it lies on a CUDA device."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


def call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Call a function of torch on the CPU; what it returns lies where its arguments lie, or where it is asked to.

    Raises:
        RuntimeError: its tensors lie on both devices.
    """
    with torch._C.DisableTorchFunction():
        name = getattr(func, "__name__", "")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_ours = any(isinstance(tensor, Pretended) for tensor in tensors)
        strangers = [tensor for tensor in tensors if tensor.dim() and not isinstance(tensor, Pretended)]
        if name in HOST_INDEX:
            strangers = [args[0]] if not isinstance(args[0], Pretended) else []
        if is_ours and strangers and name not in MOVES:
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu")
        asked = kwargs.get("device")
        if name in ("to", "tensor", "new_tensor"):
            places = [a.device if isinstance(a, Tensor) else a for a in args[1:]]
            asked = asked or next((a for a in places if isinstance(a, torch.device) or a in ("cpu", "cuda")), None)
        is_there = is_ours and name != "cpu" if asked is None else torch.device(asked).type == "cuda"
        named = {key: tree_map(_plain, value) for key, value in kwargs.items() if key != "pin_memory"}
        found = func(*tree_map(_plain, args), **named)
        if name.endswith("_") and not name.endswith("__") and isinstance(args[0], Tensor):
            return args[0]
        return tree_map(_pretended, found) if is_there else found


def _plain(leaf: Any) -> Any:
    if isinstance(leaf, Pretended):
        return leaf.as_subclass(Tensor)
    is_place = isinstance(leaf, torch.device) or (isinstance(leaf, str) and leaf.startswith("cuda"))
    return torch.device("cpu") if is_place else leaf


def _pretended(leaf: Any) -> Any:
    return leaf.as_subclass(Pretended) if type(leaf) is Tensor else leaf


class Placing(TorchFunctionMode):
    """Lets functions that make tensors make them on the pretended device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asks = kwargs.get("device") is not None or getattr(func, "__name__", "") in ("to", "tensor")
        if asks and not any(isinstance(leaf, Pretended) for leaf in tree_leaves((args, kwargs))):
            return call(func, args, kwargs)
        return func(*args, **kwargs)


@contextlib.contextmanager
def cuda() -> Iterator[None]:
    """Have a CUDA device, in this thread."""
    with (
        patch("torch.cuda.is_available", lambda: True),
        patch("torch.cuda.get_device_name", lambda *_: "none"),
        Placing(),
    ):
        yield
