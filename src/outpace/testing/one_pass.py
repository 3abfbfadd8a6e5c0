"""Toy models of one pass: every law depends on the source and its place, and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outpace.models.continuous.network import Diffusion
from outpace.models.nar.files import find_kind
from outpace.models.nar.lengths import Lengths
from outpace.models.nar.model import NarModel
from outpace.models.nar.ordered import Ordered
from outpace.models.one_pass import OnePassModel, end_law

__all__ = ["ToyOnePass", "toy_network"]


class ToyOnePass(OnePassModel):
    """A few random vectors, in float64; texts are as long as the source tells.

    Args:
        vocab_size: V.
        end: the end token.
        seed: decides the weights.
    """

    def __init__(self, vocab_size: int = 13, end: int = 3, seed: int = 0) -> None:
        super().__init__(vocab_size, 64, 4096, 0)
        self.dtype, self.end = torch.float64, end
        generator = torch.Generator().manual_seed(seed)
        self.weights = torch.randn(3, vocab_size, vocab_size, generator=generator, dtype=torch.float64)

    def write(self, sources: Sequence[list[int]]) -> list[Tensor]:
        """Return per row the logits of 30 to 40 tokens."""
        return [self._text(torch.tensor(source)) for source in sources]

    def _text(self, source: Tensor) -> Tensor:
        size, vocab = 30 + int(source.sum()) % 11, self.weights.shape[-1]
        places = torch.arange(size)
        sums = self.weights[0][source].sum(0) + self.weights[1][places % vocab]
        laws = 3.0 * torch.tanh(torch.roll(sums, 1, 0) + self.weights[2][source[places % len(source)]])
        return torch.cat([laws, end_law(vocab, self.end, torch.float64)])


def toy_network(kind: str, vocab_size: int = 13, end: int = 3, seed: int = 0) -> NarModel:
    """Return a small random network of a kind of ours, in float64, with all other settings at their defaults.

    Args:
        kind: one of `outpace.models.nar.files.KINDS`.
        vocab_size: V.
        end: the end token.
        seed: decides the weights.
    """
    network = find_kind(kind)
    sizes = {"width": 16, "heads": 2, "ffn": 16, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}
    config = network.Config(vocab_size=vocab_size, start_token=0, end_token=end, max_source=64, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network(config).double().eval()
    if isinstance(net, Diffusion):  # likewise
        net.said.bias.data[end] -= 50.0
    if isinstance(net, Ordered):
        net.unsaid = (*net.unsaid, end)
    for part in net.modules():
        if isinstance(part, Lengths):  # so that texts go on behind the prompts of the tests
            part.rows.bias.data[part.reach + 20] += 20.0
    return NarModel(net)
