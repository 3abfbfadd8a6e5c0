"""Texts from one or two vectors: how the inputs lie, what one vector can say at most, and that weights rest."""

from __future__ import annotations

import pytest
import torch

from outpace.bench.one_step import laid, main, reconstruct
from outpace.train.network import Llama, LlamaShape

SHAPE = LlamaShape(hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=48, vocab=20, context=32)


def test_the_second_vector_stands_at_all_places_but_the_first() -> None:
    one, two = torch.tensor([[[1.0]], [[5.0]]]), torch.tensor([[[1.0], [2.0]], [[5.0], [6.0]]])
    assert laid(one, 4).squeeze(-1).tolist() == [[1, 1, 1, 1], [5, 5, 5, 5]]
    assert laid(two, 4).squeeze(-1).tolist() == [[1, 2, 2, 2], [5, 6, 6, 6]]


def test_two_vectors_hold_a_text_of_which_one_holds_a_token() -> None:
    network = Llama(SHAPE, seed=1)
    for weight in network.parameters():
        weight.data *= 6 if weight.ndim == 2 else 1
    network.requires_grad_(False)
    before = [weight.clone() for weight in network.parameters()]
    texts = torch.tensor([[3, 7, 5, 11], [9, 2, 2, 14]])
    one, two = (reconstruct(network, texts, count, 250, 0) for count in (1, 2))
    # Alike inputs are alike after every attention, whatever the places: one vector says one token.
    assert (one == one[:, :1]).all()
    assert (one == texts).sum(1).tolist() == [1, 2]
    assert (two == texts).sum() > (one == texts).sum() + 2
    assert all(torch.equal(weight, old) for weight, old in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--lengths", "1"], "2 tokens or more"), (["--model", "stories-mask"], "does not write from left to right")],
)
def test_what_cannot_be_asked_is_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert told in capsys.readouterr().err
