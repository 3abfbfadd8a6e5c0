"""The recipe of an energy of whole texts: for research, it does not ship."""

from __future__ import annotations

from dataclasses import dataclass

from outpace.train.sources import Source, tiny_stories

from .record import AnyRecipe

__all__ = ["ENERGIES", "EnergyRecipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyRecipe(AnyRecipe):
    """How an energy is trained; the parent is the masked model that becomes its body.

    Attributes:
        noise: the language model whose samples are told from real texts.
        pairs: real texts, each with one sample behind its beginning.
        held: further pairs, by which it is calibrated.
        begun: tokens of a beginning; pairs take them in turns.
        length: tokens of a text, its beginning included.
        least: tokens to which the texts of a batch are cut, at the least.
        rows: pairs in a batch.
        sources: real texts; one.
    """

    noise: str = "stories"
    pairs: int = 1536
    held: int = 256
    begun: tuple[int, ...] = (4, 8, 16, 24)
    length: int = 48
    least: int = 32
    rows: int = 12
    sources: tuple[Source, ...] = (tiny_stories(),)


ENERGIES = {
    "stories-energy": EnergyRecipe(
        name="stories-energy",
        summary="An energy of whole texts that tells real stories from samples of `stories`; for research.",
        objective="noise-contrastive estimation",
        parent="stories-mask",
        steps=240,
        gpu_steps=2000,
        warmup=30,
        matrix_rate=1e-3,
        other_rate=5e-4,
        checkpoint_every=50,
    )
}
