"""Drafters whose matrices are bytes: what is stored, what is read back, and what kernels make of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from obliging import Obliging
from safetensors.torch import load_file

from outpace import zoo
from outpace.heads.files import open_head, read_head, save_head
from outpace.heads.model import new_head
from outpace.kernels import load_library
from outpace.kernels.linear import PackedLinear, pack_linears
from outpace.models.rounded import SCALE, joined, rounded, split


def test_a_row_is_rounded_to_the_nearest_byte_and_what_was_rounded_stays() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(96, 64) * torch.logspace(-3, 2, 96).unsqueeze(1)
    matrix[5] = 0
    given = {
        "m": matrix,
        "small": torch.randn(4, 4),
        "vector": torch.randn(8192),
        "ids": torch.arange(5000).view(50, 100),
    }
    stored = split(given)
    assert stored["m"].dtype == torch.int8 and stored["m" + SCALE].shape == (96,)
    assert all(torch.equal(stored[name], given[name]) for name in ("small", "vector", "ids"))
    plain, coded = joined(stored)
    half = matrix.abs().amax(-1, keepdim=True) / 254
    assert bool(((plain["m"] - matrix).abs() <= half * (1 + 1e-5)).all())
    assert set(plain) == set(given) and set(coded) == {"m"}
    assert bool(((coded["m"].dense() - plain["m"]).abs() <= half * 1e-4).all())  # two roundings in place of one
    again = split(plain)
    assert torch.equal(again["m"], stored["m"])
    assert torch.allclose(again["m" + SCALE], stored["m" + SCALE], rtol=1e-6, atol=0)


def test_what_kernels_cannot_read_as_bytes_stays_a_matrix_of_floats() -> None:
    odd = torch.randn(300, 30)
    plain, coded = joined(split({"odd": odd}))
    assert not coded and torch.allclose(plain["odd"], odd, atol=float(odd.abs().max()) / 200)
    assert rounded(odd) is None and rounded(torch.randn(4, 32)) is None


def test_a_saved_drafter_is_read_back(tmp_path: Path) -> None:
    target = Obliging()
    net = new_head("dspark", target, ffn=256).net.float()
    save_head(net, tmp_path, dtype=torch.int8)
    stored = load_file(tmp_path / "model.safetensors")
    read, _ = read_head(tmp_path)
    large = {name for name, tensor in net.state_dict().items() if tensor.dim() == 2 and tensor.numel() >= 4096}
    assert large and {name for name, tensor in stored.items() if tensor.dtype == torch.int8} == large
    for name, tensor in net.state_dict().items():
        step = tensor.abs().amax(-1, keepdim=True) / 127 if name in large else tensor.abs() / 256
        assert bool(((read.state_dict()[name] - tensor).abs() <= step).all()), name
    assert open_head(tmp_path, target).net.config == net.config


@pytest.mark.skipif(load_library() is None, reason="no compiler is found here")
def test_kernels_read_the_bytes() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(160, 128, bias=False)).to(torch.bfloat16).requires_grad_(False)
    matrix = rounded(net[0].weight)
    assert matrix is not None
    pack_linears(net, {"0.weight": matrix})
    x = torch.randn(5, 160).to(torch.bfloat16)
    found, exact = net(x), matrix.product(x.double())
    assert isinstance(net[0], PackedLinear) and found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), exact, rtol=2**-8, atol=1e-4)


def test_the_shipped_drafter_is_of_bytes() -> None:
    directory = zoo.path("smollm2-dspark")
    net, ids = read_head(directory)
    assert (directory / "model.safetensors").stat().st_size < 5_000_000
    assert ids is not None and len(ids) == net.config.draft_vocab
    large = {name for name, one in net.state_dict().items() if one.dim() == 2 and one.numel() >= 1 << 12}
    assert set(net.coded) == {name for name in large if net.state_dict()[name].shape[1] % 32 == 0} and len(large) > 8
