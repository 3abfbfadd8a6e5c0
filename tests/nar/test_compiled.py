"""A one-pass network on compiled kernels says what its modules say, and a row alone what it says among others."""

from __future__ import annotations

import pytest
import torch

from outpace import kernels
from outpace.models.nar.compiled import compile_net
from outpace.models.nar.ctc import Ctc, CtcConfig
from outpace.models.nar.model import NarModel

SOURCES = [[5, 6, 7, 8, 0], [9, 0], [4, 4, 0]]


def network() -> Ctc:
    torch.manual_seed(0)
    sizes = CtcConfig(vocab_size=60, width=32, heads=4, ffn=48, encoder_layers=2, decoder_layers=2, factor=2)
    return Ctc(sizes).eval()


def test_it_says_what_the_modules_say() -> None:
    net = network()
    with torch.no_grad():
        plain = NarModel(net).write(SOURCES)
        fast = NarModel(net)
        if not fast.compile(kernels):
            pytest.skip("no compiler here")
        found = fast.write(SOURCES)
    assert fast.path == "compiled"
    for ours, wanted in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, wanted, atol=2e-5, rtol=0)


def test_a_row_says_the_same_alone() -> None:
    model = NarModel(network())
    if not model.compile(kernels):
        pytest.skip("no compiler here")
    with torch.no_grad():
        together = model.write(SOURCES)
        for source, law in zip(SOURCES, together, strict=True):
            torch.testing.assert_close(model.write([source])[0], law, atol=2e-5, rtol=0)


def test_a_network_with_layers_of_its_own_stays_as_it_is() -> None:
    class Other(Ctc):
        own_layers = True

    assert compile_net(Other(network().config), kernels) is None
