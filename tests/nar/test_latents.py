"""Diffusion of vectors of several tokens: the places that they fill, calls, smoothness, and what each stage teaches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.methods.whole.continuous import ContinuousDiffusion
from outpace.models.continuous.latents import Latents, LatentsConfig
from outpace.models.continuous.process import drawn
from outpace.models.continuous.solver import Plan, solve
from outpace.models.nar.model import NarModel
from outpace.models.nar.network import Pass
from outpace.run.row import Row
from outpace.sampling import row_key
from outpace.testing.world import drive, make_run

SIZES: dict[str, Any] = {"width": 16, "heads": 2, "ffn": 16, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}
SOURCES = [[5, 6, 7, 8, 9, 10, 11, 0], [9, 0], [4, 4, 12, 13, 0]]


def network(**settings: Any) -> Latents:
    torch.manual_seed(1)
    sizes = SIZES | {"length": 12, "chunk": 3, "dims": 8, "max_source": 16, "max_positions": 16, "end_token": 0}
    return Latents(LatentsConfig(vocab_size=17, **(sizes | settings))).double().eval()


def laid(net: Latents, sources: list[list[int]], targets: Tensor | None = None) -> Pass:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(source) for source in sources], batch_first=True)
    is_real = torch.arange(ids.shape[1]) < torch.tensor([[len(source)] for source in sources])
    lengths = None if targets is None else torch.full((len(sources),), targets.shape[1])
    return net.begin(ids, is_real, targets, lengths)


@pytest.mark.parametrize("length", [6, 12, 24])
def test_calls_do_not_depend_on_the_number_of_tokens(length: int) -> None:
    net, calls = network(length=length, max_positions=24), list[str]()
    net.said.register_forward_hook(lambda *_: calls.append("denoiser"))
    net.compressor.read.register_forward_hook(lambda *_: calls.append("decoder"))
    rows = [Row([2], 1, row_key(1, at), 40, (0,), source=source) for at, source in enumerate(SOURCES)]
    run = make_run(ContinuousDiffusion(steps=5), target=NarModel(net))
    drive(run, rows)
    assert calls == ["denoiser"] * 5 + ["decoder"] and net.size == length // 3
    assert run.counters["target"].nfe >= 5 and all(len(row.written) <= length + 1 for row in rows)


@pytest.mark.parametrize("is_rounded", [False, True])
def test_a_row_is_as_it_is_alone_and_the_seed_decides(is_rounded: bool) -> None:
    net, plan = network(), Plan(steps=3, is_rounded=is_rounded)
    laws = net.told(solve(net, laid(net, SOURCES), plan, [7, 8, 9]))
    assert laws.shape == (3, 12, 17)
    for at, source in enumerate(SOURCES):
        torch.testing.assert_close(net.told(solve(net, laid(net, [source]), plan, [7 + at]))[0], laws[at])
    assert not torch.allclose(net.told(solve(net, laid(net, SOURCES), plan, [1, 1, 1])), laws)


def test_the_process_is_ddim_written_out() -> None:
    net, run = network(), laid(network(), SOURCES)
    found = solve(net, run, Plan(steps=4, is_conditioned=False), [1, 2, 3])
    state = drawn([1, 2, 3], 4, 8, 0)
    for step in range(4):
        now, then = (net.schedule(torch.tensor(1 - at / 4, dtype=torch.float64)) for at in (step, step + 1))
        with torch.no_grad():
            clean = net.denoise(run, state, now.expand(3, 4))[0]
        noise = (state - torch.sigmoid(-now).sqrt() * clean) / torch.sigmoid(now).sqrt()
        state = torch.sigmoid(-then).sqrt() * clean + torch.sigmoid(then).sqrt() * noise
    torch.testing.assert_close(found, clean)


def test_vectors_have_one_length_and_see_each_other() -> None:
    net, tokens = network(), torch.randint(0, 17, (2, 12), generator=torch.Generator().manual_seed(0))
    vectors = net.clean(tokens)
    torch.testing.assert_close(
        vectors.square().sum(-1), torch.full((2, 4), 8.0, dtype=torch.float64), rtol=1e-3, atol=0
    )
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 17
    assert float((net.clean(changed) - vectors)[:, -1].abs().max().detach()) > 1e-9


def test_an_autoencoder_that_was_blurred_bears_noise() -> None:
    kept = []
    texts = torch.randint(1, 17, (64, 11), generator=torch.Generator().manual_seed(0))
    for blur in (0.0, 0.6):
        net = network(stage="chunks", blur=blur, spoilt=0.0, width=32, dims=16).float().train()
        run = laid(net, [[1, 0]] * 64, texts)
        torch.manual_seed(0)
        optimiser = torch.optim.Adam(net.compressor.parameters(), lr=1e-2)
        for _ in range(150):
            optimiser.zero_grad()
            net.loss(run).mean().backward()
            optimiser.step()
        with torch.no_grad():
            vectors, text = net.clean(net.padded(run)), net.padded(run)
            assert float((net.told(vectors).argmax(-1) == text).float().mean()) > 0.99  # near-perfect where it is quiet
            blurred = vectors + 0.6 * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1))
            kept.append(float((net.told(blurred).argmax(-1) == text).float().mean()))
    assert kept[1] > kept[0] + 0.02


def test_each_stage_teaches_its_own_part() -> None:
    targets = torch.randint(1, 17, (3, 11), generator=torch.Generator().manual_seed(0))
    for stage in ("chunks", "latents"):
        net = network(stage=stage).train()
        net.loss(laid(net, SOURCES, targets)).sum().backward()
        touched = {name for name, weight in net.named_parameters() if weight.grad is not None}
        assert touched and all(name.startswith("compressor.") == (stage == "chunks") for name in touched)


@pytest.mark.parametrize(
    "settings", [{"chunk": 5}, {"space": "simplex"}, {"times": "poisson"}, {"is_joined": True}, {"stage": "both"}]
)
def test_contradictions_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        network(**settings)


def test_a_length_that_vectors_do_not_fill_is_named() -> None:
    with pytest.raises(ConfigError, match="does not fill vectors of 5 tokens"):
        network(chunk=5)
    with pytest.raises(ConfigError, match="do not fit into 12 places"):
        network().loss(laid(network(), [[1, 0]], torch.ones(1, 12, dtype=torch.int64)))
