"""Editing networks in training: copy-aware CTC and EdiT5, which learn from pairs by a loss of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from outpace.api.engine import LanguageModel
from outpace.api.result import Result
from outpace.models.editing.copy_ctc import CopyCtc
from outpace.models.editing.edit5 import Edit5, Edit5Model
from outpace.models.editing.encoder import Sizes
from outpace.models.editing.files import Editor, editor_config, load_editor
from outpace.train.data import EOS_ID
from outpace.train.pairs import START_ID, PairBatch

from .network import Criterion, NetworkFiles, PairNetwork, until_end

__all__ = ["EditorNetwork", "EditorShape", "edited"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EditorShape:
    """A kind of editing network and its sizes.

    Attributes:
        kind: `copy-ctc` or `edit5`.
        width: Size of the residual stream.
        layers: Layers of the encoder.
        heads: Attention heads.
        ffn: Width of the feed-forward layers.
        context: Most positions of a source.
        factor: Frames per source token (`copy-ctc`).
        decoder_layers: Layers that write insertions (`edit5`).
    """

    kind: Literal["copy-ctc", "edit5"]
    width: int = 96
    layers: int = 4
    heads: int = 4
    ffn: int = 384
    context: int = 256
    factor: int = 2
    decoder_layers: int = 1

    def build(self, vocab: int) -> EditorNetwork:
        """Return a network with random weights."""
        sizes = Sizes(
            vocab=vocab,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            ffn=self.ffn,
            context=self.context,
            factor=self.factor,
            decoder_layers=self.decoder_layers,
        )
        return EditorNetwork(CopyCtc(sizes) if self.kind == "copy-ctc" else Edit5(sizes))

    def load(self, directory: Path) -> EditorNetwork:
        """Return the network of a directory, in float32; see `PairShape.load`."""
        return EditorNetwork(load_editor(directory))


class EditorNetwork(PairNetwork):
    """An editing network in training.

    Args:
        network: the network.
    """

    def __init__(self, network: Editor) -> None:
        super().__init__()
        self.network = network

    def loss(self, batch: PairBatch, criterion: Criterion) -> Tensor:
        """Return the network's own loss, in nats per target token."""
        del criterion
        # Of the labels the end is left out; the source keeps its own.
        targets = [until_end([token for token in row if token >= 0]) for row in batch.labels.tolist()]
        return self.network.loss(batch.sources, batch.mask.bool(), targets)

    @torch.no_grad()
    def translate(self, sources: Tensor, mask: Tensor, most: int) -> list[list[int]]:
        """Edit all sources; see `PairNetwork.translate`."""
        rows = [row[:length] for row, length in zip(sources.tolist(), mask.sum(1).tolist(), strict=True)]
        was_training = self.training
        model = LanguageModel(self.network.adapter(EOS_ID, START_ID), None, end_tokens=(EOS_ID,))
        results = edited(model, rows, most)
        self.train(was_training)
        return [tokens for _, tokens in results]

    def export(self) -> NetworkFiles:
        """Return its files."""
        sizes = self.network.sizes
        return NetworkFiles(
            weights=self.network.state_dict(),
            config=editor_config(self.network),
            context=sizes.context,
            architecture=f"{self.network.model_type}, {sizes.layers} encoder layers of width {sizes.width}",
        )


def edited(
    model: LanguageModel, sources: Sequence[list[int]], most: int, method: str = "", **arguments: Any
) -> list[tuple[Result, list[int]]]:
    """Return, per source, the result of the loop and the tokens of the text that it stands for, without the end.

    Args:
        model: any encoder-decoder, an editing model among them.
        sources: tokens, ends included.
        most: longest result.
        method: how to decode; "" = in one pass where the model writes so, else plainly.
        **arguments: of `LanguageModel.generate`.
    """
    target = model.target
    chosen = method or ("one-pass" if target.capabilities.is_one_pass else "autoregressive")
    limit = min(most, target.capabilities.max_positions - 1)
    results = model.generate(list(sources), method=chosen, max_tokens=limit, **arguments)
    written = [list(result.tokens) for result in results]
    if isinstance(target, Edit5Model):
        written = target.texts(sources, written)
    return [(result, until_end(tokens)) for result, tokens in zip(results, written, strict=True)]
