"""Small matrices by themselves, on packed weights: for networks that are no decoder of ours, as trained drafters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from outpace.kernels.decoder import COLUMNS, DTYPES, Packer, multiply
from outpace.kernels.library import load
from outpace.models.quantised import Quantised
from outpace.models.weights import Matrix

__all__ = ["PackedLinear", "pack_linears"]

_LEAST = 1 << 14  # numbers of a matrix; a smaller one costs what its call does


class PackedLinear(nn.Linear):
    """y = x W^T + b by the compiled kernels: a row has the same bits whatever rows stand beside it.

    Sums are float32 and rounded once. The weights are packed as they are now: what is written to `weight` later, which
    stays for whoever reads or saves it, is not seen, and there is no gradient.

    Args:
        linear: what it takes the place of; on the CPU, in a type that kernels compute in.
        packer: lays the weights out.
        quantised: the same weights as bytes, which are read then; a row of inputs is rounded with them.
    """

    def __init__(self, linear: nn.Linear, packer: Packer, quantised: Quantised | None = None) -> None:
        nn.Module.__init__(self)  # the numbers are there already
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._library, self._dtype = packer.library, packer.dtype
        self._panels = packer.panels(Matrix(linear.weight if quantised is None else quantised))
        self._added: Tensor | None = None
        if linear.bias is not None:  # read in whole panels
            self._added = torch.zeros(-(-linear.out_features // COLUMNS) * COLUMNS)
            self._added[: linear.out_features] = linear.bias.detach().float()

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., out] of [..., in].

        Raises:
            ConfigError: there is no memory for it.
        """
        given = input.reshape(-1, self.in_features).to(self._dtype).contiguous()
        added = None if self._added is None else self._added.data_ptr()
        found = multiply(self._library, self._panels.view, given, self.out_features, added)
        return found.view(*input.shape[:-1], self.out_features)


def pack_linears(net: nn.Module, coded: Mapping[str, Quantised] | None = None, without: tuple[str, ...] = ()) -> None:
    """Let the compiled kernels compute a network's large matrices; nothing changes where none can be had.

    Args:
        net: to be asked, and not trained from now on.
        coded: matrices that are to be read as bytes, by the names of their weights.
        without: children that are left as they are.
    """
    packers: dict[torch.dtype, Packer] = {}
    for prefix, parent in list(net.named_modules()):
        for name, child in list(parent.named_children()):
            if f"{prefix}.{name}".removeprefix(".").split(".")[0] in without:
                continue
            if type(child) is not nn.Linear or child.weight.numel() < _LEAST or child.weight.device.type != "cpu":
                continue
            dtype = child.weight.dtype
            library = load() if dtype in DTYPES else None
            if library is not None:
                packer = packers.setdefault(dtype, Packer(library, dtype, release=False))
                weight = f"{prefix}.{name}.weight".removeprefix(".")
                setattr(parent, name, PackedLinear(child, packer, (coded or {}).get(weight)))
