"""What a network must be able to do to be trained on sentence pairs.

A network is one file with two things: a frozen dataclass of its sizes with `build` (a `PairShape`), and a `PairNetwork`
with `logits`, or with `loss` where it has none, and `export`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from outpace.errors import ModelError
from outpace.train.data import EOS_ID
from outpace.train.pairs import START_ID, PairBatch, PairBatches

__all__ = ["Criterion", "NetworkFiles", "PairNetwork", "PairShape"]

GENERATION = {
    "bos_token_id": START_ID,
    "decoder_start_token_id": START_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": EOS_ID,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFiles:
    """What a trained network's files say.

    Attributes:
        weights: Those that the file needs; they are stored in bfloat16.
        config: The `config.json`.
        context: Most positions on either side.
        architecture: One line of the card.
        generation: The `generation_config.json`.
    """

    weights: Mapping[str, Tensor]
    config: dict[str, Any]
    context: int
    architecture: str
    generation: Mapping[str, Any] = field(default_factory=lambda: dict(GENERATION))


class Criterion(Protocol):
    """What is minimised: a frozen dataclass, its fields the settings; draws are torch's, seeded by the step."""

    def __call__(self, network: PairNetwork, batch: PairBatch) -> Tensor:
        """Return the loss in nats per target token, a scalar."""
        ...


class PairShape(Protocol):
    """A kind of network and its sizes: a frozen dataclass."""

    def build(self, vocab: int) -> PairNetwork:
        """Return a network with random weights, drawn by torch's generator."""
        ...

    def load(self, directory: Path) -> PairNetwork:
        """Return the network of this kind that a run has written, in float32 and without dropout, whatever its sizes.

        Raises:
            ModelError: When a file is missing.
        """
        ...


class PairNetwork(nn.Module, ABC):
    """A network that learns to write a target from a source.

    Attributes:
        progress: Share of the training that is done, which the trainer sets before each step.
    """

    progress: float = 0.0

    def logits(self, batch: PairBatch) -> Tensor:
        """Return what it says at each place with a label, [N, V] in the order of `batch.is_real`.

        Raises:
            ModelError: The network has no law over one next token; it then has a `loss` of its own.
        """
        raise ModelError(f"{type(self).__name__} has no logits for each target token.", "Train it by its own loss.")

    def loss(self, batch: PairBatch, criterion: Criterion) -> Tensor:
        """Return the loss in nats per target token, a scalar."""
        return criterion(self, batch)

    def notes(self) -> list[str]:
        """Return what the training log should say at a checkpoint, about what happened since the last one."""
        return []

    def prepare(self, batches: PairBatches, tokenizer: Tokenizer) -> None:
        """Look at the pairs before the first step; a resumed run does it again, so draws and clocks have no say.

        Args:
            batches: all pairs that are trained on, encoded.
            tokenizer: of both sides.
        """
        del batches, tokenizer

    def adopt(self, weights: Mapping[str, Tensor]) -> bool:
        """Take what it wants of the weights of a network that it starts from; False = whatever agrees in name."""
        del weights
        return False

    @property
    def table(self) -> Tensor:
        """The embeddings of the target's tokens, [V, width].

        Raises:
            ModelError: The network does not say which they are.
        """
        raise ModelError(f"{type(self).__name__} names no table of embeddings.", "Give it a property `table`.")

    @torch.no_grad()
    def translate(self, sources: Tensor, mask: Tensor, most: int) -> list[list[int]]:
        """Write the most likely next token until the end or `most` tokens, and return the tokens before the end.

        This one computes every prefix anew; a network with a cache has its own.

        Args:
            sources: int64 [B, S].
            mask: 1 where a source token stands, [B, S].
            most: longest target.
        """
        written = torch.full((len(sources), 1), START_ID, device=sources.device)
        for _ in range(most):
            logits = self.logits(PairBatch(sources, mask, written, torch.zeros_like(written)))
            following = logits.view(len(sources), written.shape[1], -1)[:, -1].argmax(-1)
            written = torch.cat([written, following.unsqueeze(1)], 1)
            if bool((written[:, 1:] == EOS_ID).any(1).all()):
                break
        return [until_end(row) for row in written[:, 1:].tolist()]

    def writer(self) -> Callable[[Tensor, Tensor, int], list[list[int]]]:
        """Return what `translate` does, for many batches under the present weights."""
        return self.translate

    @abstractmethod
    def export(self) -> NetworkFiles:
        """Return what its files say."""


def until_end(tokens: Sequence[int]) -> list[int]:
    """Return the tokens before the first end of text."""
    tokens = list(tokens)
    return tokens[: tokens.index(EOS_ID)] if EOS_ID in tokens else tokens
