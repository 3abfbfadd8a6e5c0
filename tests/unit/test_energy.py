"""Energies of whole texts: the loss learns log-odds of enumerable laws, files give what was trained, searches ask."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor

import outpace
from outpace.bench.energies import jackknifed, log_mean_exp, main
from outpace.errors import ConfigError, ModelError
from outpace.models.energy import read_energy
from outpace.testing.toy import ToyModel
from outpace.train.energy import EnergyNet, EnergyTrainer, calibrated, odds_loss, sampled
from outpace.train.network import Llama, LlamaShape
from outpace.train.recipes import EnergyRecipe

_VOCAB, _LENGTH = 4, 2


def network(seed: int = 0, vocab: int = _VOCAB) -> EnergyNet:
    told: dict[str, Any] = {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 16, "ffn": 64}
    return EnergyNet(Llama(LlamaShape(**told, vocab=vocab, context=32, causal=False), seed))


def trainer(net: EnergyNet, real: Tensor, sample: Tensor, steps: int) -> EnergyTrainer:
    told: dict[str, Any] = {"name": "toy", "summary": "", "objective": "", "steps": steps, "gpu_steps": steps}
    told |= {"rows": 256, "length": _LENGTH, "least": _LENGTH, "warmup": 5, "matrix_rate": 1e-2, "other_rate": 1e-2}
    tokenizer = Tokenizer(BPE({f"t{at}": at for at in range(net.body.shape.vocab)}, []))
    given = {"recipe": EnergyRecipe(**told), "network": net, "tokenizer": tokenizer}
    given |= {"real": real, "sample": sample, "held": torch.stack([real[:8], sample[:8]])}
    return EnergyTrainer(**given, device=torch.device("cpu"), seed=0, steps=steps)


def test_the_loss_is_that_of_telling_two_classes() -> None:
    real, sample = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 0.0])
    odds = [(float(one), True) for one in real] + [(float(one), False) for one in sample]
    wanted = sum(-math.log(1 / (1 + math.exp(-one if is_real else one))) for one, is_real in odds) / 4
    assert float(odds_loss(real, sample)) == pytest.approx(wanted, rel=1e-6)


def test_the_residual_law_nears_the_real_one() -> None:
    """Two laws over all texts of two tokens: what is learned from draws makes the one out of the other."""
    generator = torch.Generator().manual_seed(1)
    texts = torch.cartesian_prod(torch.arange(_VOCAB), torch.arange(_VOCAB))
    laws = [(1.5 * torch.randn(len(texts), generator=generator, dtype=torch.float64)).softmax(0) for _ in range(2)]
    real, noise = (texts[torch.multinomial(law, 4000, replacement=True, generator=generator)] for law in laws)
    net = network()
    assert not net(texts).abs().max()  # untrained, the residual law is the noise's own
    loop = trainer(net, real, noise, 160)
    while loop.step < loop.steps:
        loop.advance()
    residual = (laws[1].log() + net(texts).detach().double()).softmax(0)
    before, after = (float((law - laws[0]).abs().sum()) / 2 for law in (laws[1], residual))
    assert before > 0.4 and after < before / 4


def test_files_and_searches_give_what_was_trained(tmp_path: Path) -> None:
    net = network(3, vocab=16)
    torch.nn.init.normal_(net.energy.weight, std=3.0)
    loop = trainer(net, torch.zeros(1, _LENGTH, dtype=torch.int64), torch.zeros(1, _LENGTH, dtype=torch.int64), 1)
    with torch.no_grad():  # two held-out texts that it tells apart, so that it is written as it is
        odds = [float(net(torch.tensor([[at] * 3]))) for at in range(2)]
        net.energy.bias -= sum(odds) / 2
    loop.held = torch.tensor([[[at] * 3] for at in sorted(range(2), key=lambda at: -odds[at])])
    loop.keep(tmp_path)
    energy, texts = read_energy(tmp_path), [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
    for weight in net.body.parameters():
        weight.data = weight.data.bfloat16().float()  # as the file holds it
    wanted = [-float(net(torch.tensor([text])).detach()) for text in texts]
    assert energy(texts) == pytest.approx(wanted, abs=1e-4)
    lm, n = outpace.LanguageModel(ToyModel(vocab_size=16), None), 6
    for seed in range(3):
        asked: dict[str, Any] = {"search": "residual-energy", "max_tokens": 6, "seed": seed}
        found = lm.generate([1, 2], options={"n": n, "energy": str(tmp_path)}, **asked)
        minus = {"n": n, "reward": lambda written: [-value for value in energy([[1, 2, *text] for text in written])]}
        again = lm.generate([1, 2], options=minus, **asked)
        assert found.tokens == again.tokens and found.score == pytest.approx(again.score)
    with pytest.raises(ConfigError, match="from 1 to 32"):
        energy([[1] * 33])
    with pytest.raises(ConfigError, match="knows 16 tokens"):
        energy([[16]])
    (tmp_path / "energy.safetensors").unlink()
    read_energy.cache_clear()
    with pytest.raises(ModelError, match="holds no energy"):
        lm.generate([1], search="residual-energy", options={"energy": str(tmp_path)})


def test_an_energy_is_as_large_as_what_it_knows() -> None:
    """Log-odds that are 4 times too large are brought back; those that know nothing become none."""
    generator = torch.Generator().manual_seed(0)
    real, sample = (torch.randn(4000, generator=generator) + sign for sign in (1.0, -1.0))  # true log-odds: 2 x
    assert calibrated(8 * real, 8 * sample) == pytest.approx(0.25)
    assert calibrated(2 * real, 2 * sample) > 0.9
    assert calibrated(real, real.flip(0)) == 0.0


def test_samples_go_on_from_the_beginnings_as_the_model_does() -> None:
    lm = outpace.LanguageModel(ToyModel(vocab_size=8), None, end_tokens=[3])
    texts = torch.randint(8, (6, 5), generator=torch.Generator().manual_seed(0))
    found = sampled(lm, texts, torch.tensor([2, 3] * 3), seed=1)
    for row, size, text in zip(found.tolist(), [2, 3] * 3, texts.tolist(), strict=True):
        assert row[:size] == text[:size]
    again = lm.generate(texts[[1, 3, 5], :3].tolist(), max_tokens=2, temperature=1.0, ignore_eos=True, seed=7)
    assert [one.tokens for one in again] == found[[1, 3, 5], 3:].tolist()


def test_estimates_of_the_constant(capsys: pytest.CaptureFixture[str]) -> None:
    """Of draws whose mean exp is known, the plain estimate is too small in the mean, the other one nearer."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(300, 8, generator=generator, dtype=torch.float64)
    plain, better = (sum(how(row) for row in draws) / 300 for how in (log_mean_exp, jackknifed))
    assert plain < 0.5 - 0.05 and abs(better - 0.5) < abs(plain - 0.5) / 2
    assert main(["nowhere", "--samples", "1"]) == 2
    assert "two samples or more" in capsys.readouterr().err
