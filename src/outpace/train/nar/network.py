"""A network of the one-pass family in training: what the trainer of pairs asks for, said once for all kinds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from outpace.models.nar.files import config_of, kind_of, read_nar
from outpace.models.nar.model import NarModel
from outpace.models.nar.network import NarConfig, NarNet, Pass
from outpace.models.nar.sketched import Sketched
from outpace.train.pairs import PairBatch, PairBatches
from outpace.train.translation.network import Criterion, NetworkFiles, PairNetwork, until_end

from .alignment import Aligner, Lexicon
from .objectives import Likelihood, Objective, Unreached

__all__ = ["NarShape", "TrainedNar"]

_ALIGNER = Aligner()
_BLANK = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"  # how a byte-level tokenizer writes a space


@dataclass(frozen=True, slots=True, kw_only=True)
class NarShape:
    """A one-pass network.

    Attributes:
        config: Its kind, by its class, and its sizes; the vocabulary is the recipe's.
    """

    config: NarConfig

    def build(self, vocab: int) -> TrainedNar:
        """Return a network with random weights."""
        config = replace(self.config, vocab_size=vocab)
        return TrainedNar(kind_of(config)(config))

    def load(self, directory: Path) -> TrainedNar:
        """Return the network of a directory, in float32, without dropout; its sizes are the directory's.

        Raises:
            ModelError: When a file is missing or damaged.
        """
        network = TrainedNar(read_nar(directory))
        network.eval()
        return network


class TrainedNar(PairNetwork):
    """A one-pass network in training.

    Args:
        net: the network.

    Attributes:
        lexicon: tells which source token each target token translates; None = the kind does not ask, or not yet known.
    """

    def __init__(self, net: NarNet) -> None:
        super().__init__()
        self.net = net
        self.unreached = Unreached()
        self.lexicon: Lexicon | None = None

    def prepare(self, batches: PairBatches, tokenizer: Tokenizer) -> None:
        """Align the tokens of the pairs where the kind learns from links; count them where it completes given words."""
        if self.net.wants_links:
            sources, targets = ([text[:-1] for text in side] for side in (batches.sources, batches.targets))
            self.lexicon, _ = _ALIGNER.one_way(sources, targets)
        if isinstance(self.net, Sketched):
            ids = range(self.net.config.vocab_size)
            pieces = [tokenizer.id_to_token(at) or "" for at in ids]
            given, wanted = ([until_end(text.tolist()) for text in side] for side in (batches.sources, batches.targets))
            starts, joins = [piece.startswith(_BLANK) for piece in pieces], [_goes_on(piece) for piece in pieces]
            self.net.prepare(given, wanted, starts, joins)

    def begin(self, batch: PairBatch) -> Pass:
        """Encode a batch and lay out its places, its targets without their ends."""
        rows = [torch.tensor(until_end([token for token in row if token >= 0])) for row in batch.labels.tolist()]
        lengths = torch.tensor([len(row) for row in rows], device=batch.sources.device)
        targets = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).long().to(batch.sources.device)
        is_real = batch.mask.bool()
        extra = dict[str, Any]()
        if self.lexicon is not None:
            is_word = F.pad(is_real[:, 1:], (0, 1))  # the end translates nothing
            extra["links"] = self.lexicon.links(batch.sources, is_word, targets, lengths, _ALIGNER)
        return self.net.begin(batch.sources, is_real, targets, lengths, extra)

    def loss(self, batch: PairBatch, criterion: Criterion) -> Tensor:
        """Return an objective's loss in nats per target token; any other criterion stands for the likelihood."""
        objective = criterion if isinstance(criterion, Objective) else Likelihood()
        return objective.of(self, batch)

    def notes(self) -> list[str]:
        """Say which targets were too long for their places."""
        return self.unreached.report()

    @property
    def table(self) -> Tensor:
        """The embeddings of tokens, [V + extra symbols, width]."""
        return self.net.embed_tokens.weight

    @torch.no_grad()
    def translate(self, sources: Tensor, mask: Tensor, most: int) -> list[list[int]]:
        """Write all texts in one pass; see `PairNetwork.translate`."""
        was_training = self.training
        rows = [row[:count] for row, count in zip(sources.tolist(), mask.sum(1).tolist(), strict=True)]
        laws = NarModel(self.net).write(rows)
        self.train(was_training)
        return [until_end(law.argmax(-1).tolist())[:most] for law in laws]

    def export(self) -> NetworkFiles:
        """Return its files."""
        config = self.net.config
        return NetworkFiles(
            weights=self.net.state_dict(),
            config=config_of(self.net) | {"dtype": "bfloat16"},
            context=config.max_source,
            architecture=f"{type(self.net).__name__}, which writes in one pass: {config}",
        )


def _goes_on(piece: str) -> bool:
    """Return whether a piece of a byte-level vocabulary begins with a letter, a digit or a byte beyond ASCII."""
    first = piece[:1]
    if first.isascii():
        return first.isalnum() or first == "_"
    return not "\u0100" <= first <= _BLANK  # there stand control characters and the blank
