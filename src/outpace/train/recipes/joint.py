"""The recipe of a sampler layer on top of a masked model: for research, it does not ship."""

from __future__ import annotations

from dataclasses import dataclass

from outpace.train.sources import SOURCES, Source

from .record import AnyRecipe

__all__ = ["JOINTS", "JointRecipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JointRecipe(AnyRecipe):
    """How a sampler layer is trained; the parent is the masked model on which it stands.

    Attributes:
        width: of the layer.
        block: places of a block.
        most: places that are written behind one pass, at most.
        rows: texts in a batch.
        length: tokens of a text.
        sources: texts to train on.
    """

    width: int = 256
    block: int = 16
    most: int = 7
    rows: int = 12
    length: int = 64
    sources: tuple[Source, ...] = tuple(source for source in SOURCES if source.name == "tinystories")


JOINTS = {
    "stories-mask-joint": JointRecipe(
        name="stories-mask-joint",
        summary="A layer on `stories-mask` that says what writing one place means for the others; for research.",
        objective="joint",
        parent="stories-mask",
        steps=1000,
        gpu_steps=6000,
        matrix_rate=5e-3,
        other_rate=3e-3,
        warmup=30,
        checkpoint_every=100,
    )
}
