"""Small matrices by themselves, on packed weights, for networks that are no decoder of ours, as trained drafters are."""

from __future__ import annotations

import ctypes
import threading

import torch
from torch import Tensor, nn

from outpace.errors import ConfigError
from outpace.kernels.decoder import DTYPES, Packer
from outpace.kernels.library import FAILURES, load
from outpace.models.weights import Matrix

__all__ = ["PackedLinear", "pack_linears"]

_LEAST = 1 << 14  # numbers of a matrix; a smaller one costs what its call does
_lock = threading.Lock()  # products share scratch memory


class PackedLinear(nn.Module):
    """y = x W^T + b, computed by the compiled kernels; the same bits for a row whatever rows stand beside it.

    Sums are float32 and rounded once. Weights are packed: there is no gradient, and `weight` is gone.

    Args:
        linear: what it takes the place of; on the CPU, in a type that kernels compute in.
        packer: lays the weights out.
    """

    def __init__(self, linear: nn.Linear, packer: Packer) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._packer, self._dtype = packer, packer.dtype
        self._panels = packer.panels(Matrix(linear.weight))
        self._bias: Tensor | None = None
        if linear.bias is not None:
            self._bias = torch.zeros(-(-linear.out_features // 32) * 32)
            self._bias[: linear.out_features] = linear.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] of [..., in]."""
        given = x.reshape(-1, self.in_features).to(self._dtype).contiguous()
        found = torch.empty(len(given), self.out_features, dtype=self._dtype)
        if len(given):
            bias = None if self._bias is None else self._bias.data_ptr()
            sizes = (len(given), self.in_features, self.out_features)
            with _lock:
                status = self._packer.library.outpace_linear(
                    ctypes.byref(self._panels.view), int(self._dtype == torch.bfloat16), given.data_ptr(), *sizes, bias,
                    found.data_ptr(), torch.get_num_threads(),
                )  # fmt: skip
            if status:
                raise ConfigError(FAILURES[status])
        return found.view(*x.shape[:-1], self.out_features)


def pack_linears(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Put packed matrices in the places of a network's large ones; nothing changes where nothing can be compiled.

    Args:
        net: on the CPU, to be asked and not trained from now on.
        dtype: of its numbers.
    """
    library = load() if dtype in DTYPES else None
    if library is None:
        return net
    packer = Packer(library, dtype, release=False)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.numel() >= _LEAST and child.weight.device.type == "cpu":
                setattr(parent, name, PackedLinear(child, packer))
    return net
