"""Small matrices on the compiled kernels: what they compute, of how many rows, and what stays of a network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from outpace.kernels import load_library
from outpace.kernels.linear import PackedLinear, pack_linears

pytestmark = pytest.mark.skipif(load_library() is None, reason="no compiler is found here")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("inputs", "outputs", "has_bias"), [(576, 96, True), (130, 129, True), (129, 257, False)])
def test_products_are_right_and_rows_do_not_mind_each_other(
    dtype: torch.dtype, inputs: int, outputs: int, has_bias: bool
) -> None:
    torch.manual_seed(inputs)
    plain = nn.Linear(inputs, outputs, bias=has_bias).to(dtype)
    net = nn.Sequential(plain).requires_grad_(False)
    pack_linears(net)
    packed, x = net[0], torch.randn(3, 23, inputs).to(dtype)
    assert isinstance(packed, PackedLinear)
    exact = x.double() @ plain.weight.double().T + (plain.bias.double() if has_bias else 0.0)
    found = packed(x)
    step = torch.finfo(dtype).eps
    assert found.shape == exact.shape and found.dtype == dtype
    assert bool(((found.double() - exact).abs() <= step * exact.abs() + inputs * 2**-24).all())
    for rows in (1, 2, 13, 64):
        assert torch.equal(packed(x.flatten(0, 1)[:rows]), found.flatten(0, 1)[:rows])
    assert packed(x[:0]).shape == (0, 23, outputs)


def test_a_network_keeps_its_names_and_small_matrices() -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"large": nn.Linear(128, 128), "small": nn.Linear(4, 4), "narrow": nn.Linear(128, 128).half()})
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pack_linears(net)
    assert [type(net[name]) for name in net] == [PackedLinear, nn.Linear, nn.Linear]
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
