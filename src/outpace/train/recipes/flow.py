"""The recipes of samplers that fill gaps: for research, they do not ship."""

from __future__ import annotations

from dataclasses import dataclass, replace

from outpace.train.sources import Source, tiny_stories

from .record import AnyRecipe

__all__ = ["FLOWS", "FlowRecipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRecipe(AnyRecipe):
    """How one sampler of infills is trained.

    Attributes:
        is_supervised: Learn the texts that stood in the gaps, in place of the balance.
        teller: Recipe of the model that rewards.
        has_told: The first text of each gap is the one that stood there.
        contexts: Gaps in a step.
        draws: Texts drawn for each.
        most: Tokens of a gap, at the most.
        temperature: The reward is the probability to the power of one over it.
        heat: Every second text is drawn from a law flattened by this much.
        sources: Texts whose sentences become gaps; one.
    """

    is_supervised: bool = False
    teller: str = "stories-draft"
    has_told: bool = False
    contexts: int = 4
    draws: int = 6
    most: int = 10
    temperature: float = 1.0
    heat: float = 1.5
    sources: tuple[Source, ...] = (tiny_stories(),)


_TOLD = FlowRecipe(
    name="stories-infill-told",
    summary="Fills a gap of one sentence as the texts did; what `stories-infill` starts from. For research.",
    objective="the sentences that stood there",
    is_supervised=True,
    parent="stories-draft",
    contexts=24,
    steps=1500,
    gpu_steps=4000,
    warmup=20,
    matrix_rate=2e-3,
    other_rate=1e-3,
    weight_decay=0.0,
    checkpoint_every=50,
)
FLOWS = {
    recipe.name: recipe
    for recipe in (
        _TOLD,
        replace(
            _TOLD,
            name="stories-infill",
            summary="Fills a gap of one sentence in proportion to what `stories-draft` thinks of it. For research.",
            objective="subtrajectory balance",
            is_supervised=False,
            has_told=True,
            parent="stories-infill-told",
            contexts=4,
            steps=1000,
            gpu_steps=4000,
            matrix_rate=1e-3,
            other_rate=5e-4,
        ),
    )
}
