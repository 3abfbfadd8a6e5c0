"""Distillation into fewer steps: divergences in plain arithmetic, which state teaches what, and training that works."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from outpace.train.data import MASK_ID
from outpace.train.network import Llama, LlamaShape
from outpace.train.objectives_steps import cleaner_view, matched_loss, rolled_out
from outpace.train.recipes import RECIPES

SHAPE = LlamaShape(hidden=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=16, vocab=11, causal=False, shifted=True)
TOKENS = torch.randint(2, 11, (4, 24), generator=torch.Generator().manual_seed(0))


class Counting(Llama):
    """Says how many masks its input has: token 2 is the likelier, the fewer there are."""

    def hidden(self, tokens: Tensor, *rest: object, **more: object) -> Tensor:  # type: ignore[override]
        masks = (tokens == MASK_ID).sum(1).float()
        return masks.view(-1, 1, 1).expand(*tokens.shape, 1)

    def project(self, hidden: Tensor) -> Tensor:
        return torch.cat([hidden * 0, hidden * 0, -hidden.log1p(), hidden.expand(*hidden.shape[:-1], 8) * 0], dim=-1)


def test_the_divergence_by_plain_arithmetic() -> None:
    network = Llama(SHAPE, 1)
    inputs = TOKENS.index_fill(1, torch.tensor([3, 4]), MASK_ID)
    outputs = torch.tensor([2, 24 + 3])
    laws = torch.randn(2, 11, generator=torch.Generator().manual_seed(2))
    laws[:, MASK_ID] = -1e4  # the mask is never an answer
    laws = laws.log_softmax(-1)
    own = network(inputs).detach().flatten(0, 1)[outputs].double()
    own[:, MASK_ID] = -1e4
    p, q = own.softmax(-1).tolist(), laws.double().exp().tolist()
    for is_reverse in (True, False):
        wanted = 0.0
        for a, b in zip(p, q, strict=True):
            first, second = (a, b) if is_reverse else (b, a)
            wanted += sum(x * math.log(x / y) for x, y in zip(first, second, strict=True) if x) / 2
        assert matched_loss(network, inputs, outputs, laws, is_reverse).item() == pytest.approx(wanted, rel=1e-3)


def test_one_step_teaches_what_the_teacher_says_already() -> None:
    teacher = Llama(SHAPE, 1).eval()
    batch = rolled_out(TOKENS, teacher, 1, 0.25, 40, 3, 0)
    assert matched_loss(teacher, *batch).item() == pytest.approx(0.0, abs=1e-6)
    more = rolled_out(TOKENS, teacher, 4, 0.25, 40, 3, 0)
    assert torch.equal(more.inputs, batch.inputs)
    assert matched_loss(teacher, *more).item() > 0


def test_a_place_is_taught_by_the_state_that_wrote_it() -> None:
    teacher = Counting(SHAPE, 0)
    batch = rolled_out(TOKENS, teacher, 3, 0.1, 60, 5, 1)
    assert (batch.inputs[:, 0] == TOKENS[:, 0]).all()
    assert (batch.inputs.flatten()[batch.outputs + 1] == MASK_ID).all()
    # The law tells the number of masks: 1 / (1 + n) against ten others of 1 each, the mask not among them.
    chance = batch.laws[:, 2].exp()
    told = ((1 / chance - 1) / 9).round() - 1
    begun = (batch.inputs == MASK_ID).sum(1)[batch.outputs // 24]
    assert (told <= begun).all()
    assert (told == begun).any()
    assert (told < begun).any()
    for row in range(4):
        assert len(told[batch.outputs // 24 == row].unique()) <= 3  # one per step


def test_the_cleaner_view_shows_more() -> None:
    teacher = Counting(SHAPE, 0)
    batch = cleaner_view(TOKENS, teacher, 60, 5, 1)
    told = ((1 / batch.laws[:, 2].exp() - 1) / 9).round() - 1
    begun = (batch.inputs == MASK_ID).sum(1)[batch.outputs // 24]
    assert (told <= begun).all()
    assert (told < begun).any()
    assert (batch.inputs.flatten()[batch.outputs + 1] == MASK_ID).all()
    assert not batch.is_reverse


@pytest.mark.parametrize("kind", ["unrolled", "consistent"])
def test_a_student_comes_nearer(kind: str) -> None:
    teacher, student = Llama(SHAPE, 1).eval(), Llama(SHAPE, 2)
    optimiser = torch.optim.Adam(student.parameters(), lr=0.01)

    def loss(step: int) -> Tensor:
        if kind == "unrolled":
            return matched_loss(student, *rolled_out(TOKENS, teacher, 2, 0.2, 60, step, 0))
        return matched_loss(student, *cleaner_view(TOKENS, teacher, 60, step, 0))

    before = loss(99).item()
    for step in range(20):
        optimiser.zero_grad()
        loss(step).backward()
        optimiser.step()
    assert loss(99).item() < 0.7 * before
    assert loss(99).item() == loss(99).item()  # fixed by seed and step


def test_rounds_follow_each_other() -> None:
    one, two = RECIPES["stories-mask-round"], RECIPES["stories-mask-rounds"]
    assert (one.parent, two.parent) == ("stories-mask", one.name)
    assert two.stride == 2 * one.stride
