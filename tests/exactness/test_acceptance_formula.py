"""Catalogue number 91: tokens per target call follow the formula of Leviathan et al. (2023), equation 1."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from outpace import Row, Run, Sampling
from outpace.cache import Cache
from outpace.methods.speculative.draft_model import DraftModel
from outpace.sampling import row_key
from outpace.types import NO_OUTPUTS, Adapter, Capabilities, Counter, Outputs, Scores


class ConstantModel(Adapter):
    """Draws every token from one law, whatever came before: acceptance is then the same at every position."""

    def __init__(self, probs: Sequence[float]) -> None:
        self.capabilities = Capabilities(len(probs), 10_000)
        self.logits = torch.tensor(probs, dtype=torch.float64).log()

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        return Cache([torch.zeros(rows, capacity, 1)], 1, counter)

    def embed(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def head(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError

    def score(
        self, tokens: Tensor, position: Tensor, visible: Tensor | None, cache: Cache, ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS, inputs: Tensor | None = None, skip: Sequence[int] = (),
    ) -> Scores:  # fmt: skip
        cache.counter.add(tokens.numel(), 1)
        asked = tokens.shape[1] if ask is None else ask.shape[1]
        return Scores(self.logits.expand(tokens.shape[0], asked, -1))


@pytest.mark.parametrize("draft_len", [1, 3, 5])
def test_tokens_per_call_follow_the_acceptance_rate(draft_len: int) -> None:
    target_probs, draft_probs = [0.5, 0.3, 0.1, 0.1], [0.3, 0.3, 0.3, 0.1]
    rate = sum(min(p, q) for p, q in zip(target_probs, draft_probs, strict=True))
    expected = (1 - rate ** (draft_len + 1)) / (1 - rate)
    method = DraftModel(draft_len=draft_len, is_adaptive=False, accept_rule="rejection")
    run = Run(
        ConstantModel(target_probs),
        method,
        Sampling(temperature=1.0),
        capacity=500,
        models={"draft": ConstantModel(draft_probs)},
    )
    # Every row takes as many steps: a fixed number of tokens would favour rows that ended on a long step.
    rows = [Row([0], 1, row_key(0, sample), 400) for sample in range(600)]
    run.join(rows)
    steps = 30
    emitted = [len(tokens) for _ in range(steps) for _, tokens in run.step()]
    mean = sum(emitted) / len(emitted)
    deviation = (sum((n - mean) ** 2 for n in emitted) / len(emitted)) ** 0.5
    assert abs(mean - expected) < 4 * deviation / len(emitted) ** 0.5
    counts = torch.bincount(torch.tensor([token for row in rows for token in row.written]), minlength=4).double()
    drawn = counts / counts.sum()
    assert torch.allclose(drawn, torch.tensor(target_probs, dtype=torch.float64), atol=4 * 0.5 / counts.sum() ** 0.5)
