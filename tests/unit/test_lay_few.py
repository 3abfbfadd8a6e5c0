"""Small trees are laid out on the host as large ones are by tensors."""

from __future__ import annotations

import random

import pytest
import torch

from outpace.run import layout, tree
from outpace.types import Proposal


@pytest.mark.parametrize("seed", range(6))
def test_small_trees_are_laid_out_as_large_ones(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    rows, width, longest = draw.randint(1, 3), draw.randint(1, 9), draw.randint(1, 3)
    pending = [[draw.randrange(50) for _ in range(longest)] for _ in range(rows)]
    bases = [draw.randrange(20) for _ in range(rows)]
    parent = torch.tensor([[draw.randrange(-1, node) for node in range(width)] for _ in range(rows)])
    ask = torch.tensor([[-1, width - 1]] * rows) if seed % 2 else None
    proposal = Proposal(torch.randint(50, (rows, width)), [width] * rows, parent, ask=ask)
    few = layout.lay_out(pending, bases, proposal)
    for room in (layout, tree):
        monkeypatch.setattr(room, "_FEW", 0)
    many = layout.lay_out(pending, bases, proposal)
    for name in ("tokens", "position", "visible"):
        assert torch.equal(getattr(few, name), getattr(many, name))
    assert few.start == many.start and (few.ask is None) == (many.ask is None)
    assert few.ask is None or torch.equal(few.ask, many.ask)
