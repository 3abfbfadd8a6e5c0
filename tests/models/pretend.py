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
FACTS = ("__get__", "__set__", "size", "dim", "numel", "stride", "element_size", "data_ptr", "__len__", "tolist", "item")


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
    """Call a function of torch on the CPU; what it returns lies where its arguments lie, or where it is asked to."""
    name = getattr(func, "__name__", "")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    asked = kwargs.get("device")
    if name in ("to", "tensor", "new_tensor"):
        asked = asked or next((a for a in args if isinstance(a, (str, torch.device))), None)
        other = next((a for a in args[1:] if isinstance(a, Tensor)), None) if name == "to" else None
        asked = asked if other is None else other.device
    goes = CUDA if asked is not None and torch.device(asked).type == "cuda" else None
    if asked is None and ours and not (name == "cpu"):
        goes = CUDA
    if ours and name not in (*MOVES, *HOST_INDEX) and any(
        tensor.dim() and not isinstance(tensor, Pretended) for tensor in tensors
    ):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu")
    if name in HOST_INDEX and not isinstance(args[0], Pretended) and ours:
        raise RuntimeError(f"{name}: the indexed tensor lies on cpu, an index or a value on cuda:0")

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, Pretended):
            return leaf.as_subclass(Tensor)
        return torch.device("cpu") if isinstance(leaf, torch.device) or leaf in ("cuda", "cuda:0") else leaf

    with torch._C.DisableTorchFunction():
        bare, named = tree_map(plain, args), tree_map(plain, kwargs)
        named.pop("pin_memory", None)
        found = func(*bare, **named)
        in_place = name.endswith("_") and not name.startswith("__") and args and isinstance(args[0], Tensor)
        if in_place:
            return args[0]
        if goes is None:
            return found
        return tree_map(lambda leaf: leaf.as_subclass(Pretended) if type(leaf) is Tensor else leaf, found)


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
    with patch("torch.cuda.is_available", lambda: True), Placing():
        yield
