"""Our own networks (`outpace.models.nets`) in training: what the trainer asks for, said once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from outpace.api.engine import LanguageModel
from outpace.models.nets.adapter import NetAdapter
from outpace.models.nets.base import PairConfig, PairNet
from outpace.models.nets.files import config_of, kind_of, read_net
from outpace.train.pairs import PairBatch

from .network import Criterion, NetworkFiles, PairNetwork, until_end

__all__ = ["NetShape", "TrainedNet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetShape:
    """One of our own networks.

    Attributes:
        config: Its kind, by its class, and its sizes; the vocabulary is the recipe's.
    """

    config: PairConfig

    def build(self, vocab: int) -> TrainedNet:
        """Return a network with random weights."""
        config = replace(self.config, vocab_size=vocab)
        return TrainedNet(kind_of(config)(config))

    def load(self, directory: Path) -> TrainedNet:
        """Return the network of a directory, in float32, without dropout; its sizes are the directory's.

        Raises:
            ModelError: When a file is missing or damaged.
        """
        network = TrainedNet(read_net(directory))
        network.eval()
        return network


class TrainedNet(PairNetwork):
    """One of our own networks in training.

    Args:
        net: the network.
    """

    def __init__(self, net: PairNet) -> None:
        super().__init__()
        self.net = net

    def logits(self, batch: PairBatch) -> Tensor:
        """Return what it says at each place with a label, [N, V].

        Raises:
            ModelError: The network is trained by a loss of its own.
        """
        if not self.net.has_logits:
            return PairNetwork.logits(self, batch)
        return self.net.head(self.net.states(batch.sources, batch.mask.bool(), batch.inputs)[batch.is_real])

    def loss(self, batch: PairBatch, criterion: Criterion) -> Tensor:
        """Return the loss in nats per target token: the criterion's, or the network's own."""
        if self.net.has_logits:
            return criterion(self, batch)
        found: Tensor = self.net.loss(tuple(batch))  # type: ignore[operator]
        return found

    def adopt(self, weights: Mapping[str, Tensor]) -> bool:
        """Let the network take what it wants; see `PairNetwork.adopt`."""
        return self.net.adopt(weights)

    @property
    def table(self) -> Tensor:
        """The embeddings of the target's tokens, [V, width]."""
        found: Tensor = self.net.embedding.weight  # type: ignore[union-attr, assignment]
        return found

    @torch.no_grad()
    def translate(self, sources: Tensor, mask: Tensor, most: int) -> list[list[int]]:
        """Write the most likely next token until the end, by the engine; see `PairNetwork.translate`."""
        lm = LanguageModel(NetAdapter(self.net), end_tokens=(self.net.config.end_token,))
        # The steps' products in bfloat16 would give entries of another type than the cache's.
        rows = [row[:count] for row, count in zip(sources.tolist(), mask.sum(1).tolist(), strict=True)]
        with torch.autocast(sources.device.type, enabled=False):
            return [until_end(result.tokens) for result in lm.generate(rows, max_tokens=most)]

    def export(self) -> NetworkFiles:
        """Return its files."""
        config = self.net.config
        return NetworkFiles(
            weights=self.net.state_dict(),
            config=config_of(self.net) | {"dtype": "bfloat16"},
            context=min(config.max_positions, config.max_source),
            architecture=f"{type(self.net).__name__}, one of our own networks: {config}",
        )
