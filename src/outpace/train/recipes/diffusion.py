"""The recipes that teach a masked diffusion model to need fewer steps: for research, none of them ships."""

from __future__ import annotations

from dataclasses import replace

from outpace.papers import Paper
from outpace.train.sources import MIXED_SOURCES, copied_lists

from .stories import RECIPES

__all__ = ["ADAPTED", "FEWER", "PAPERS"]

PAPERS = (
    Paper(
        "Beyond Autoregression: Fast LLMs via Self-Distillation Through Time",
        "Deschenaux, Gulcehre",
        2024,
        "2410.21035",
        279,
        "Rounds beyond the second.",
        "outpace train stories-mask-rounds",
    ),
    Paper(
        "CD4LM: Consistency Distillation and aDaptive Decoding for Diffusion Language Models",
        "Liang et al.",
        2026,
        "2601.02236",
        314,
        "",
        "outpace train stories-mask-consistent",
    ),
    Paper(
        "Transfer Learning for Text Diffusion Models",
        "Han et al.",
        2024,
        "2401.17181",
        318,
        "Its encoder-decoders and other objectives, code synthesis, question answering and translation.",
        "outpace train copies-adapted",
    ),
)
_SHORT = replace(
    RECIPES["stories-mask"],
    name="stories-mask-round",
    summary="`stories-mask`, taught in one step what it says after four: one round of self-distillation through time.",
    objective="unrolled",
    parent="stories-mask",
    anneal=0.0,
    rollout=4,
    stride=1 / 32,
    steps=200,
    gpu_steps=2000,
    warmup=20,
    rows=8,
    length=128,
    long_share=0.0,
    matrix_rate=1e-3,
    other_rate=5e-4,
    checkpoint_every=100,
    sources=tuple(source for source in MIXED_SOURCES if source.name.startswith("tinystories")),
)
_CONSISTENT = replace(
    _SHORT,
    name="stories-mask-consistent",
    summary="`stories-mask`, taught to say of a text what it says of a less masked view of it.",
    objective="consistent",
    rollout=0,
    stride=0.0,
)
_COPIES_CONSISTENT = replace(
    _CONSISTENT,
    name="copies-consistent",
    summary="`stories-mask`, taught on lists to copy what it says of less masked views of them. For research.",
    steps=300,
    sources=(copied_lists(),),
)
FEWER = {
    recipe.name: recipe
    for recipe in (
        _SHORT,
        replace(
            _SHORT,
            name="stories-mask-rounds",
            summary="`stories-mask-round` after a second round, with steps of twice the length.",
            parent="stories-mask-round",
            stride=1 / 16,
        ),
        _CONSISTENT,
        _COPIES_CONSISTENT,
        replace(
            _COPIES_CONSISTENT,
            name="copies-continued",
            summary="`stories-mask`, trained on as long as `copies-consistent`, which it is compared with.",
            objective="masked",
        ),
        replace(
            _SHORT,
            name="stories-mask-residual",
            summary="`stories-mask`, taught to read what a step before believed of open places (for method `rcd`).",
            objective="residual",
            rollout=0,
            stride=1 / 16,
        ),
        replace(
            _SHORT,
            name="stories-mask-hybrid",
            summary="`stories-mask`, taught to find wrong tokens too (for `hyperschedule`). For research.",
            objective="masked",
            rollout=0,
            stride=0.0,
            uniform=0.2,
        ),
    )
}
_PREFIX = replace(
    RECIPES["stories-mask"],
    name="stories-prefix",
    summary="`stories`, trained on to fill masks behind a given beginning, with full attention: AR2Diff's adaptation.",
    anneal=0.0,
    has_prefix=True,
    steps=200,
    gpu_steps=4000,
    warmup=20,
    rows=8,
    length=128,
    long_share=0.0,
    sources=tuple(source for source in MIXED_SOURCES if source.name.startswith("tinystories")),
)
_COPIES = replace(
    _PREFIX,
    name="copies-direct",
    summary="`stories` made a diffusion model by fine-tuning on lists to copy alone: AR2Diff without adaptation.",
    has_prefix=False,
    responses_after=("Answer:",),
    sources=(copied_lists(),),
)
ADAPTED = {
    recipe.name: recipe
    for recipe in (
        _PREFIX,
        _COPIES,
        replace(
            _COPIES,
            name="copies-adapted",
            summary="`stories-prefix`, fine-tuned on lists to copy: AR2Diff after as many steps of adaptation.",
            parent="stories-prefix",
        ),
        replace(
            _COPIES,
            name="copies-scratch",
            summary="Random weights, fine-tuned on lists to copy: diffusion without a causal model before it.",
            from_scratch=True,
        ),
    )
}
