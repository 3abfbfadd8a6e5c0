"""The recipes of networks that complete given words, and of auto-encoders of bytes: one record each."""

from __future__ import annotations

from dataclasses import asdict, replace

from outpace.models.nar.insertion import InsertionConfig, InsertionLmConfig
from outpace.models.nar.levenshtein import LevenshteinConfig
from outpace.models.nar.recursive import RecursiveConfig
from outpace.models.nets.gru import GruConfig
from outpace.train.keywords import COMMON, DIALOGUES, GAPS, PATHS, RESTAURANTS, STORIES, TABLES
from outpace.train.nar.network import NarShape
from outpace.train.pairs import STRINGS
from outpace.train.recipes.record import TranslationRecipe
from outpace.train.templates import TEMPLATES
from outpace.train.translation.criteria import CrossEntropy
from outpace.train.translation.marian import MarianShape
from outpace.train.translation.nets import NetShape

from .one_pass import ONE_PASS_RAW
from .pairs import DECODER

_GROWN = InsertionConfig(
    width=112, heads=4, ffn=320, encoder_layers=1, decoder_layers=2, dropout=0.0, max_source=96, max_positions=128
)
_EDITED = LevenshteinConfig(
    width=112, heads=4, ffn=320, encoder_layers=2, decoder_layers=2, dropout=0.0, max_source=96, max_positions=128
)
_STORIES = replace(
    ONE_PASS_RAW,
    name="stories-insertion",
    summary="Completes given words to a sentence of a story, in rounds of parallel insertions (POINTER).",
    shape=NarShape(config=replace(_GROWN, scheme="progressive")),
    parent=None,
    objective="translation",
    source=STORIES,
    direction="",
    vocab=2000,
    budget=1024,
    longest=48,
    look_every=0,
    method="insertion",
    steps=900,
)
_PATHS = replace(
    _STORIES,
    name="paths-insertion",
    summary="Finds paths in graphs by inserting node after node between their ends.",
    shape=NarShape(
        config=InsertionLmConfig(
            width=96, heads=4, ffn=384, encoder_layers=2, decoder_layers=2, dropout=0.0, max_source=64, max_positions=16
        )
    ),
    source=PATHS,
    vocab=440,
    budget=1024,
    method="insertion-lm",
    steps=1500,
)
_RESTAURANTS = replace(
    _STORIES,
    name="restaurants-entities",
    summary="Completes given entities to a description of a restaurant, by stages that keep them (ENCONTER).",
    shape=NarShape(config=_GROWN),
    source=RESTAURANTS,
    steps=300,
)
_COMPLETED = (
    _STORIES,
    replace(
        _STORIES,
        name="stories-entities",
        summary="`stories-insertion` by stages that keep the given words (ENCONTER).",
        shape=NarShape(config=_GROWN),
    ),
    replace(
        _STORIES,
        name="stories-gaps",
        summary="Fills gaps of any length in sentences of stories, one insertion at a time (insertion language model).",
        shape=NarShape(config=InsertionLmConfig(**asdict(replace(_GROWN, scheme="uniform")))),
        source=GAPS,
        method="insertion-lm",
    ),
    replace(
        _STORIES,
        name="concepts-insertion",
        summary="Completes concepts to an everyday sentence, in rounds of parallel insertions.",
        shape=NarShape(config=_GROWN),
        source=COMMON,
    ),
    _PATHS,
    replace(
        _PATHS,
        name="paths-decoder",
        summary="Finds paths in graphs from left to right, by a network of the size of `paths-insertion`.",
        shape=NetShape(config=replace(DECODER, layers=5, width=96, ffn=384, dropout=0.0)),
        criterion=CrossEntropy(),
        method="",
    ),
    _RESTAURANTS,
    replace(
        _RESTAURANTS,
        name="restaurants-progressive",
        summary="`restaurants-entities` by stages that know of no entities (POINTER); for comparison.",
        shape=NarShape(config=replace(_GROWN, scheme="progressive")),
    ),
    replace(
        _RESTAURANTS,
        name="restaurants-levenshtein",
        summary="Completes given entities by rounds of deletion and insertion (Levenshtein Transformer).",
        shape=NarShape(config=_EDITED),
        method="levenshtein",
    ),
    replace(
        _RESTAURANTS,
        name="tables-skeleton",
        summary="Describes restaurants: a pointer picks words of the table, rounds of edits complete them (SANA).",
        shape=NarShape(config=replace(_EDITED, plan="source", ungiven=0.3)),
        source=TABLES,
        method="levenshtein",
    ),
    replace(
        _RESTAURANTS,
        name="dialogue-concepts",
        summary="Answers users: a planner picks concepts of a graph, rounds of insertions complete them (CG-nAR).",
        shape=NarShape(config=replace(_GROWN, encoder_layers=2, decoder_layers=2, plan="graph", neighbours=16)),
        source=DIALOGUES,
        longest=40,
    ),
)
# Auto-encoders of bytes, of equal steps: a vocabulary of all bytes and three special tokens leaves no room for merges.
_BYTES = replace(
    ONE_PASS_RAW,
    name="bytes-recursive",
    summary="A recursive convolutional auto-encoder: short strings to a vector and back, byte by byte, in one pass.",
    shape=NarShape(config=RecursiveConfig()),
    vocab=259,
    source=STRINGS,
    direction="",
    budget=2048,
    longest=32,
    look_every=0,
    steps=600,
)
_STRINGS = (
    _BYTES,
    replace(
        _BYTES,
        name="bytes-gru",
        summary="The recurrent auto-encoder that `bytes-recursive` is compared with, of as many weights.",
        shape=NetShape(config=GruConfig(width=128, hidden=336, dropout=0.0, has_attention=False)),
        criterion=CrossEntropy(),
        method="",
        other_rate=5e-3,
    ),
)
_TEMPLATES = (
    TranslationRecipe(
        name="story-templates",
        summary="Writes a sentence around given words, with numbers in their places (law `template`). For research.",
        shape=MarianShape(width=96, encoder_layers=2, decoder_layers=2, ffn=256, dropout=0.0),
        source=TEMPLATES,
        vocab=2048,
        budget=768,
        longest=48,
        joined=0.0,
        steps=600,
        gpu_steps=8000,
    ),
)
COMPLETIONS: tuple[TranslationRecipe, ...] = (*_COMPLETED, *_STRINGS, *_TEMPLATES)
