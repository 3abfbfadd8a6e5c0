"""The recipe of the recurrent language model: for research, it does not ship."""

from __future__ import annotations

from dataclasses import dataclass

from outpace.train.sources import Source, tiny_stories

from .record import AnyRecipe

__all__ = ["RECURRENT", "RecurrentRecipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentRecipe(AnyRecipe):
    """How one LSTM is trained.

    Attributes:
        vocab: Tokens of its vocabulary.
        width: Of embeddings and last states.
        hidden: Of states between layers.
        layers: LSTM layers.
        rate: Of plain gradient descent, constant.
        weight_drop: Share of hidden-to-hidden weights that a step leaves out (DropConnect).
        input_drop: Share of numbers of embedded tokens that a row goes without for its whole length.
        layer_drop: The same, of states between layers.
        output_drop: The same, of the last states.
        word_drop: Share of the vocabulary whose embeddings a step leaves out.
        look_every: Steps between two looks at the held-out loss.
        patience: Looks without a better loss than so many looks ago, after which weights are averaged.
        rows: Sequences in a batch.
        length: Tokens in a sequence.
        sources: Texts to train on.
    """

    vocab: int = 2048
    width: int = 192
    hidden: int = 256
    layers: int = 2
    rate: float = 20.0
    weight_drop: float = 0.3
    input_drop: float = 0.1
    layer_drop: float = 0.1
    output_drop: float = 0.1
    word_drop: float = 0.02
    look_every: int = 100
    patience: int = 5
    rows: int = 32
    length: int = 64
    sources: tuple[Source, ...] = (tiny_stories(),)


RECURRENT = {
    "stories-lstm": RecurrentRecipe(
        name="stories-lstm",
        summary="A recurrent model of simple stories: two LSTM layers, dropped weights, averaged. For research.",
        objective="next token",
        steps=2500,
        gpu_steps=20000,
        clip=0.25,
        weight_decay=1.2e-6,
        warmup=100,
    )
}
