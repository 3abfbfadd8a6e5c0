"""The recipe of the network that writes places in any order: for research, it does not ship."""

from __future__ import annotations

from dataclasses import dataclass, replace

from outpace.train.sources import SOURCES, Source, copied_lists

from .record import AnyRecipe

__all__ = ["ORDERS", "OrderRecipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRecipe(AnyRecipe):
    """How one network over shuffled places is trained.

    Attributes:
        vocab: Tokens of its vocabulary.
        width: Of the residual stream.
        layers: Transformer layers.
        heads: Attention heads.
        rows: Sequences in a batch.
        length: Tokens in a sequence, which are its places.
        sources: Texts to train on.
    """

    vocab: int = 1024
    width: int = 128
    layers: int = 3
    heads: int = 4
    rows: int = 32
    length: int = 48
    sources: tuple[Source, ...] = tuple(source for source in SOURCES if source.name == "tinystories")


_STORIES = OrderRecipe(
    name="stories-any-order",
    summary="Writes passages of 48 tokens of simple stories in any order; for research.",
    objective="any-order",
    steps=2000,
    gpu_steps=12000,
    matrix_rate=5e-3,
    other_rate=3e-3,
    warmup=40,
)
ORDERS = {
    recipe.name: recipe
    for recipe in (
        _STORIES,
        replace(
            _STORIES,
            name="copies-any-order",
            summary="Copies lists of words in any order; for research.",
            sources=(copied_lists(),),
        ),
    )
}
