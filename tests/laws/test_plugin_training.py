"""Row 96: a plugin trained on a target domain beside a frozen model lowers that domain's perplexity."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from outpace.laws.plugin import reweighted
from outpace.train import RECIPES
from outpace.train.network import Llama, LlamaShape
from outpace.train.objectives import reweighted_loss

SHAPE = LlamaShape(hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16, ffn=48, vocab=40, context=32)


def test_training_lowers_the_loss_of_the_domain_and_leaves_the_model_alone() -> None:
    """The domain goes through its ten tokens in order; the model's own law knows nothing of it."""
    frozen, plugin = Llama(SHAPE, 0).requires_grad_(False), Llama(SHAPE, 1)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    starts = torch.randint(0, 10, (24, 1), generator=torch.Generator().manual_seed(0))
    texts = (starts + torch.arange(13)) % 10
    held, learned = texts[:8], texts[8:]
    own = float(cross_entropy(frozen(held[:, :-1]).float().flatten(0, 1), held[:, 1:].flatten()))
    optimizer = torch.optim.Adam(plugin.parameters(), lr=1e-2)
    for _ in range(40):
        loss = reweighted_loss(plugin, learned, frozen)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(reweighted_loss(plugin, held, frozen).detach()) < own - 1
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


def test_the_loss_is_that_of_the_law() -> None:
    frozen, plugin = Llama(SHAPE, 0).requires_grad_(False), Llama(SHAPE, 1)
    texts = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    own, other = (net(texts[:, :-1]).detach().double().log_softmax(-1) for net in (frozen, plugin))
    law = reweighted(own, other, 1.0).log_softmax(-1)
    wanted = -law.gather(-1, texts[:, 1:, None]).mean()
    assert float(reweighted_loss(plugin, texts, frozen).detach()) == pytest.approx(float(wanted), rel=1e-4)
    assert RECIPES["stories-plugin"].objective == "reweighted"
