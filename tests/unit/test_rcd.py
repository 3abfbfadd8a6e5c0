"""Residual context: residuals by hand, weight 0 = plain decoding, what a step and a student are told."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from outpace.canvas.rules.lrd import residual
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.methods.diffusion.rcd import ResidualContext
from outpace.sampling import Sampling
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, make_rows, write
from outpace.train.data import MASK_ID
from outpace.train.network import Llama, LlamaShape
from outpace.train.objectives_steps import told_before, told_loss
from outpace.types import Scores

WARM = Sampling(temperature=0.8)
SHAPE = LlamaShape(hidden=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=16, vocab=11, causal=False, shifted=True)
TOKENS = torch.randint(2, 11, (4, 24), generator=torch.Generator().manual_seed(0))


class NotingToy(ToyModel):
    """A toy that notes its inputs and what it said."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.log: list[tuple[Tensor, Tensor | None, Tensor]] = []

    def score(self, tokens: Tensor, *given: Any, inputs: Tensor | None = None, **more: Any) -> Scores:
        scores = super().score(tokens, *given, inputs=inputs, **more)
        self.log.append((tokens.clone(), inputs, scores.logits.clone()))
        return scores


@pytest.mark.parametrize("settings", [Sampling(), WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("more", [{"per_step": 1}, {"per_step": 3, "order": "entropy"}, {"steps": 5}], ids=str)
def test_no_weight_is_plain_decoding(settings: Sampling, more: dict[str, Any]) -> None:
    target = ToyModel(attention="full")
    ours = write(ResidualContext(weight=0.0, block=8, **more), settings, make_rows(), target=target)
    plain = write(MaskedDiffusion(block=8, **more), settings, make_rows(), target=target)
    assert [row.written for row in ours] == [row.written for row in plain]
    assert [row.usage.num_steps for row in ours] == [row.usage.num_steps for row in plain]


def test_residuals_change_the_text_and_rows_are_alone() -> None:
    target, method = ToyModel(attention="full"), ResidualContext(block=8, per_step=2)
    together = write(method, WARM, make_rows(), target=target)
    plain = write(MaskedDiffusion(block=8, per_step=2), WARM, make_rows(), target=target)
    assert [row.written for row in together] != [row.written for row in plain]
    for index in range(len(PROMPTS)):
        assert write(method, WARM, [make_rows()[index]], target=target)[0].written == together[index].written


def test_residuals_by_hand() -> None:
    laws = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    share, ids, weights = residual(laws, 0.5, 2)
    assert share.tolist() == pytest.approx([0.5 * 1.5 * math.log(2) / math.log(4), 0.0])
    assert ids[:, 0].tolist() == [0, 2]
    assert weights[0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert weights[1].tolist() == pytest.approx([1.0, 0.0])


def test_open_places_read_the_last_steps_expected_embedding() -> None:
    target = NotingToy(attention="full")
    mask, size = target.capabilities.mask_id, target.capabilities.vocab_size
    write(ResidualContext(block=8, candidates=size), WARM, [make_rows()[0]], target=target)
    table, seen = target.embed(torch.arange(size)).double(), 0
    for (before, _, said), (tokens, inputs, _) in zip(target.log, target.log[1:], strict=False):
        if inputs is None:
            continue
        for place in range(tokens.shape[1]):
            plain = table[tokens[0, place]]
            if tokens[0, place] != mask or torch.equal(inputs[0, place].double(), plain):
                continue
            logits = said[0, int((before[0, :place] == mask).sum())].double()  # masks alone are asked
            logits[mask] = -math.inf
            p = logits.softmax(-1).tolist()
            share = -sum(x * math.log(x) for x in p if x) / math.log(size)
            wanted = (1 - share) * plain + share * sum(x * row for x, row in zip(p, table, strict=True))
            torch.testing.assert_close(inputs[0, place].double(), wanted, rtol=1e-3, atol=1e-4)
            seen += 1
    assert seen > 5


def test_what_a_student_is_told() -> None:
    teacher = Llama(SHAPE, 1).eval()
    batch = told_before(TOKENS, teacher, 0.0, 40, 3, 0)
    # With nothing less written than now, the step before said what the teacher says of the text itself.
    logits = teacher(batch.inputs).detach().double()
    logits[..., MASK_ID] = -1e4
    told = (batch.share > 0).nonzero().tolist()
    assert len(told) > 5
    assert (batch.inputs[batch.share > 0] == MASK_ID).all()
    for row, place in told:
        p = logits[row, place - 1].softmax(-1)
        entropy = -sum(x * math.log(x) for x in p.tolist() if x) / math.log(11)
        assert batch.share[row, place].item() == pytest.approx(entropy, rel=1e-3)
        assert batch.weights[row, place].tolist() == pytest.approx(p[batch.ids[row, place]].tolist(), abs=1e-4)
    assert torch.equal(batch.answers, TOKENS.flatten()[batch.outputs + 1])
    # Told nothing, the loss is the plain one.
    bare = batch._replace(share=torch.zeros_like(batch.share))
    plain = -logits.flatten(0, 1)[batch.outputs].log_softmax(-1).gather(1, batch.answers.unsqueeze(1)).mean()
    assert told_loss(teacher, *bare).item() == pytest.approx(plain.item(), rel=1e-4)
    assert told_loss(teacher, *batch).item() != pytest.approx(plain.item(), rel=1e-6)


def test_bad_settings_and_models() -> None:
    for bad in ({"weight": -0.1}, {"weight": 1.5}, {"candidates": 0}):
        with pytest.raises(ConfigError):
            ResidualContext(**bad)

    class Closed(ToyModel):
        def __getattribute__(self, name: str) -> Any:
            if name == "embed":
                raise AttributeError(name)
            return super().__getattribute__(name)

    with pytest.raises(CapabilityError, match="rcd feeds mixed embeddings"):
        write(ResidualContext(block=8), WARM, make_rows(), target=Closed(attention="full"))
