"""The recipes of the networks that write stories: one record each, nothing computed."""

from __future__ import annotations

from dataclasses import replace

from outpace.papers import Paper
from outpace.train.network import LlamaShape
from outpace.train.sources import MIXED_SOURCES, TATOEBA_ENGLISH, tiny_stories

from .record import Recipe

PAPERS = (
    Paper(
        "Scaling Diffusion Language Models via Adaptation from Autoregressive Models",
        "Gong et al.",
        2024,
        "2410.17891",
        303,
        "Its own checkpoints, which were not tried.",
        "outpace train stories-mask",
    ),
    Paper(
        "Language Modeling with Deep Transformers",
        "Irie et al.",
        2019,
        "1905.04226",
        192,
        "Lattices, and depths of up to 112 layers.",
        "outpace train stories-no-positions",
    ),
)
_BASE = LlamaShape(hidden=256, layers=6, heads=4, kv_heads=2, head_dim=64, ffn=688)
_MASK = Recipe(
    name="stories-mask",
    summary="The masked diffusion sibling of `stories`: full attention, each output predicts the next position.",
    shape=replace(_BASE, causal=False, shifted=True),
    objective="masked",
    parent="stories",
    anneal=0.1,
    steps=1650,
    gpu_steps=16000,
    length=256,
    matrix_rate=3e-3,
    other_rate=2e-3,
    checkpoint_every=100,
    sources=MIXED_SOURCES,
)
_BLOCK = replace(
    _MASK,
    name="stories-block",
    summary="The block diffusion sibling of `stories`: causal between blocks of 16, full attention inside each.",
    shape=replace(_MASK.shape, block=16),
    objective="block",
    anneal=0.0,
    complementary=True,
    steps=1350,
)
_TINY = Recipe(
    name="stories-positions",
    summary="A causal Llama of a million parameters; what `stories-no-positions` is compared with. For research.",
    shape=LlamaShape(hidden=128, layers=4, heads=4, kv_heads=2, head_dim=32, ffn=320, vocab=2048, context=512),
    objective="causal",
    steps=500,
    gpu_steps=4000,
    length=256,
    long_share=0.0,
    sources=(tiny_stories(),),
)
_RECIPES = (
    _TINY,
    replace(
        _TINY,
        name="stories-no-positions",
        summary="`stories-positions` without positions: causal attention alone tells what came first. For research.",
        shape=replace(_TINY.shape, rotary=False),
    ),
    replace(
        _TINY,
        name="english-no-positions",
        summary="English sentences in the vocabulary of `translate`, causal and without positions. For research.",
        shape=replace(_TINY.shape, rotary=False, vocab=6144, layers=3),
        parent="translate",
        from_scratch=True,
        length=128,
        sources=(TATOEBA_ENGLISH,),
    ),
    Recipe(
        name="stories",
        summary="A small causal Llama that writes simple stories, school mathematics and Python.",
        shape=_BASE,
        objective="causal",
        steps=2300,
        gpu_steps=8000,
    ),
    _MASK,
    _BLOCK,
    replace(
        _BLOCK,
        name="stories-block-single",
        summary="`stories-block`, each row shown under one mask alone: how the weights that ship were made.",
        complementary=False,
    ),
    Recipe(
        name="stories-tasks",
        summary="`stories`, trained on with the texts of its diffusion siblings; for comparison, so it does not ship.",
        shape=_BASE,
        objective="causal",
        parent="stories",
        steps=400,
        gpu_steps=4000,
        length=256,
        matrix_rate=2e-3,
        other_rate=1e-3,
        sources=MIXED_SOURCES,
    ),
    Recipe(
        name="stories-draft",
        summary="A drafter of under a million parameters, distilled from `stories`.",
        shape=LlamaShape(hidden=96, layers=2, heads=3, kv_heads=1, head_dim=32, ffn=224),
        objective="distilled",
        parent="stories",
        steps=700,
        gpu_steps=8000,
        rows=8,
        length=1024,
        long_share=0.0,
        matrix_rate=8e-3,
        other_rate=6e-3,
    ),
    Recipe(
        name="stories-pard",
        summary="`stories-draft`, trained on to draft several tokens in one forward; it does not ship.",
        shape=LlamaShape(hidden=96, layers=2, heads=3, kv_heads=1, head_dim=32, ffn=224),
        objective="parallel",
        parent="stories-draft",
        levels=5,
        steps=300,
        gpu_steps=4000,
        rows=8,
        length=256,
        long_share=0.0,
        matrix_rate=4e-3,
        other_rate=3e-3,
    ),
    Recipe(
        name="stories-sets",
        summary="`stories`, trained on to fill blocks of four masks and still to write plainly; it does not ship.",
        shape=_BASE,
        objective="set-block",
        parent="stories",
        levels=4,
        steps=900,
        gpu_steps=4000,
        rows=4,
        length=256,
        long_share=0.0,
        matrix_rate=2e-3,
        other_rate=1e-3,
        checkpoint_every=50,
        sources=tuple(source for source in MIXED_SOURCES if source.name in ("tinystories", "stories-written")),
    ),
    Recipe(
        name="stories-sorted",
        summary="`stories-draft`, trained on to be left after its first layer too; it does not ship.",
        shape=LlamaShape(hidden=96, layers=2, heads=3, kv_heads=1, head_dim=32, ffn=224),
        objective="sorted",
        parent="stories-draft",
        exits=(1, 2),
        steps=300,
        gpu_steps=4000,
        rows=8,
        length=256,
        long_share=0.0,
        matrix_rate=4e-3,
        other_rate=3e-3,
    ),
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}
