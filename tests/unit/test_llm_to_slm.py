"""A large encoder before a small decoder: the encoder is Marian's own and stays; a projector of zeros is nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import outpace
from outpace.errors import ModelError
from outpace.models.nets.adapter import NetAdapter
from outpace.models.nets.llm_to_slm import LlmToSlm, LlmToSlmConfig
from outpace.train.pairs import PairBatch
from outpace.train.translation.marian import MarianShape
from outpace.train.translation.nets import TrainedNet

SMALL = LlmToSlmConfig(vocab_size=40, width=16, layers=2, heads=2, ffn=32, dropout=0.0, max_source=24, large_layers=0)
CONFIG = replace(SMALL, large_width=24, large_layers=2, large_heads=2, large_ffn=40)
SOURCES = torch.tensor([[5, 9, 7, 0], [8, 0, 0, 0]])
REAL = torch.tensor([[True, True, True, True], [True, True, False, False]])


@pytest.fixture(scope="module")
def marian() -> torch.nn.Module:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = MarianShape(width=24, encoder_layers=2, decoder_layers=1, heads=2, ffn=40, context=32, dropout=0.0)
    return shape.build(40).eval()


def test_the_encoder_is_marians(marian: torch.nn.Module) -> None:
    net = LlmToSlm(CONFIG)
    assert net.adopt(marian.state_dict())
    encoder = marian.model.get_encoder()  # type: ignore[union-attr, operator]
    with torch.no_grad():
        wanted = encoder(SOURCES, attention_mask=REAL.long()).last_hidden_state
        found = net.large(SOURCES, REAL)
    assert torch.allclose(found[REAL], wanted[REAL], atol=1e-5)
    with pytest.raises(ModelError, match="no encoder of these sizes"):
        LlmToSlm(replace(CONFIG, large_layers=3)).adopt(marian.state_dict())
    assert LlmToSlm(SMALL).adopt({})


def test_zeros_are_the_small_model_and_drafts_change_nothing(marian: torch.nn.Module) -> None:
    torch.manual_seed(1)
    small, net = LlmToSlm(SMALL), LlmToSlm(CONFIG)
    net.adopt(marian.state_dict())
    net.load_state_dict(small.state_dict(), strict=False)
    texts = [[5, 9, 7, 0], [8, 0]]

    def written(one: LlmToSlm, method: str = "autoregressive") -> list[list[int]]:
        lm = outpace.LanguageModel(NetAdapter(one), end_tokens=(0,))
        return [result.tokens for result in lm.generate(texts, max_tokens=20, ignore_eos=True, method=method)]

    net.projector[2].weight.data *= 50
    informed = written(net)
    assert informed != written(small) and informed == written(net, "prompt-lookup")
    torch.nn.init.zeros_(net.projector[2].weight)
    torch.nn.init.zeros_(net.projector[2].bias)
    assert written(net) == written(small)


def test_the_large_encoder_learns_nothing_and_the_projector_does(marian: torch.nn.Module) -> None:
    net = TrainedNet(LlmToSlm(CONFIG))
    net.adopt(marian.state_dict())
    net.train()
    inputs, labels = torch.tensor([[2, 6], [2, 4]]), torch.tensor([[6, 0], [4, 0]])
    logits = net.logits(PairBatch(SOURCES, REAL.long(), inputs, labels))
    torch.nn.functional.cross_entropy(logits, labels.flatten()).backward()
    given = {name for name, weight in net.named_parameters() if weight.grad is not None and bool(weight.grad.any())}
    assert {"net.projector.0.weight", "net.embedding.weight"} <= given
    assert not any(".large." in name for name in given)
    assert not any(module.training for module in net.net.large.modules())  # type: ignore[union-attr]
