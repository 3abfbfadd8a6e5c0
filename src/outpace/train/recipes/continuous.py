"""Recipes of continuous diffusion: one network, and what papers choose of it."""

from __future__ import annotations

from dataclasses import replace

from outpace.models.continuous.latents import LatentsConfig
from outpace.models.continuous.network import DiffusionConfig
from outpace.models.continuous.vectors import VectorsConfig
from outpace.papers import Paper
from outpace.train.nar.network import NarShape
from outpace.train.nar.objectives import Likelihood
from outpace.train.nar.stories import STORY_GAPS, STORY_NEXT
from outpace.train.pairs import MULTI30K

from .record import TranslationRecipe

__all__ = ["CONTINUOUS", "PAPERS"]

PAPERS = (
    Paper(
        "Likelihood-Based Diffusion Language Models",
        "Gulrajani et al.",
        2023,
        "2305.18619",
        304,
        "Its scaling laws and its 1B weights.",
        "outpace train stories-plaid",
    ),
    Paper(
        "AR-Diffusion: Auto-Regressive Diffusion Model for Text Generation",
        "Wu et al.",
        2023,
        "2305.09515",
        77,
        "Its corpora.",
        "outpace train captions-staggered",
    ),
    Paper(
        "TESS: Text-to-Text Self-Conditioned Simplex Diffusion",
        "Karimi Mahabadi et al.",
        2023,
        "2305.08379",
        162,
        "Its start from pre-trained weights, and top-p projection.",
        "outpace train captions-simplex",
    ),
    Paper(
        "Unifying Continuous and Discrete Text Diffusion with Non-simultaneous Diffusion Processes",
        "Li et al.",
        2025,
        "2505.22165",
        202,
        "Its schedule optimised for inference by Bayesian search.",
        "outpace train captions-poisson",
    ),
    Paper(
        "Compressed and Smooth Latent Space for Text Diffusion Modeling",
        "Meshchaninov et al.",
        2025,
        "2506.21170",
        80,
        "Its alignment with a pre-trained encoder, and its resampler.",
        "outpace train stories-latents",
    ),
)
_CONFIG = DiffusionConfig(
    width=128, heads=4, ffn=384, encoder_layers=2, decoder_layers=3, dropout=0.05, max_source=48, max_positions=48
)
_CAPTIONS = TranslationRecipe(
    name="captions-diffuseq",
    summary="Captions from English to German by diffusion of the text beside its clean source; for research only.",
    shape=NarShape(config=replace(_CONFIG, is_joined=True, encoder_layers=4, decoder_layers=0, schedule="sqrt")),
    vocab=3000,
    criterion=Likelihood(),
    source=MULTI30K,
    direction="en-de",
    method="continuous-diffusion",
    budget=1024,
    longest=31,
    joined=0.0,
    look_every=0,
    checkpoint_every=200,
    warmup=60,
    matrix_rate=8e-3,
    other_rate=4e-3,
    steps=300,
    gpu_steps=8000,
)
_VECTORS = VectorsConfig(
    width=128, heads=4, ffn=384, encoder_layers=2, decoder_layers=3, dropout=0.05, max_source=48, max_positions=48
)
_CHUNKS = replace(
    _CAPTIONS,
    name="stories-chunks",
    summary="The autoencoder of `stories-vectors`: four tokens of a story in a vector, and back.",
    shape=NarShape(config=replace(_VECTORS, stage="chunks")),
    source=STORY_NEXT,
    direction="",
    method="next-vector",
    vocab=1000,
    budget=3072,
    longest=47,
    steps=1000,
    warmup=40,
)
_LATENTS = LatentsConfig(
    width=128,
    heads=4,
    ffn=384,
    encoder_layers=2,
    decoder_layers=3,
    dropout=0.05,
    max_source=48,
    max_positions=48,
    length=48,
)
_SMOOTH = replace(
    _CHUNKS,
    name="stories-smooth",
    summary="The autoencoder of `stories-latents`: vectors of four tokens that bear noise and gaps.",
    shape=NarShape(config=replace(_LATENTS, stage="chunks")),
    method="continuous-diffusion",
)
CONTINUOUS = (
    _CAPTIONS,
    replace(
        _CAPTIONS,
        name="captions-staggered",
        summary="Captions by diffusion in which left places finish first (AR-Diffusion); for research only.",
        shape=NarShape(config=replace(_CONFIG, times="staggered")),
    ),
    replace(
        _CAPTIONS,
        name="captions-poisson",
        summary="Captions by diffusion in which each token has its own time (NeoDiff); for research only.",
        shape=NarShape(config=replace(_CONFIG, times="poisson")),
    ),
    replace(
        _CAPTIONS,
        name="captions-simplex",
        summary="Captions by diffusion of logits over the vocabulary (TESS); for research only.",
        shape=NarShape(config=replace(_CONFIG, space="simplex")),
        vocab=2000,
    ),
    replace(
        _CAPTIONS,
        name="stories-plaid",
        summary="Writes the missing sentence of a story by diffusion that bounds its likelihood (Plaid).",
        shape=NarShape(
            config=replace(
                _CONFIG, objective="bound", schedule="learned", dims=32, max_source=96, max_positions=64, length=48
            )
        ),
        source=STORY_GAPS,
        direction="",
        vocab=2000,
        longest=64,
    ),
    _CHUNKS,
    replace(
        _CHUNKS,
        name="stories-vectors",
        summary="Writes two sentences of a story after one, a vector of four tokens a step (CALM).",
        shape=NarShape(config=_VECTORS),
        start="stories-chunks",
        steps=1000,
        budget=1536,
    ),
    _SMOOTH,
    replace(
        _SMOOTH,
        name="stories-latents",
        summary="Writes two sentences of a story after one by diffusion of vectors of four tokens (Cosmos).",
        shape=NarShape(config=_LATENTS),
        start="stories-smooth",
        budget=1536,
    ),
)
