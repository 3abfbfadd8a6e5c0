"""The recipes of networks that write token by token, learnt from pairs: one record each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from outpace.models.nets.gru import GruConfig
from outpace.models.nets.llm_to_slm import LlmToSlmConfig
from outpace.models.nets.pervasive import PervasiveConfig
from outpace.models.nets.phrases import PhrasesConfig
from outpace.models.nets.registers import RegistersConfig
from outpace.models.nets.stacks import equal_configs
from outpace.train.corrections import CORRECTION_SPANS, CORRECTIONS, FEW_CORRECTIONS, REORDERED
from outpace.train.pairs import MULTI30K, MULTI30K_TAGGED
from outpace.train.translation.criteria import CrossEntropy
from outpace.train.translation.editing import EditorShape
from outpace.train.translation.marian import MarianShape
from outpace.train.translation.nets import NetShape
from outpace.train.translation.smoothing import SequenceSmoothing, TokenSmoothing
from outpace.train.translation.transport import Transport

from .record import TranslationRecipe

_CAPTIONS = TranslationRecipe(
    name="captions-teacher",
    summary="A balanced Transformer that translates captions from English to German; for research, it does not ship.",
    shape=MarianShape(width=192, encoder_layers=4, decoder_layers=4, heads=4, ffn=512, dropout=0.3),
    vocab=6144,
    criterion=CrossEntropy(smoothing=0.1),
    source=MULTI30K,
    direction="en-de",
    budget=2048,
    joined=0.0,
    averaged=5,
    keeps_all=True,
    look_every=400,
    checkpoint_every=200,
    warmup=300,
    matrix_rate=8e-3,
    other_rate=4e-3,
    steps=2700,
    gpu_steps=12000,
)
SMALL = replace(
    _CAPTIONS,
    name="captions-small",
    summary="A small translator of captions, to compare criteria with; for research, it does not ship.",
    shape=MarianShape(width=128, encoder_layers=2, decoder_layers=2, ffn=256, dropout=0.1),
    vocab=4096,
    criterion=CrossEntropy(),
    averaged=0,
    keeps_all=False,
    look_every=400,
    checkpoint_every=200,
    warmup=60,
    matrix_rate=1.2e-2,
    other_rate=5e-3,
    steps=400,
    gpu_steps=4000,
)
_TRANSLATIONS = (
    TranslationRecipe(
        name="translate",
        summary="A small encoder-decoder that translates everyday sentences from German to English.",
        steps=2200,
        gpu_steps=16000,
    ),
    TranslationRecipe(
        name="translate-draft",
        summary="A drafter of about a million parameters with one decoder layer, distilled from `translate`.",
        shape=MarianShape(width=96, encoder_layers=2, decoder_layers=1, ffn=384, dropout=0.0),
        objective="distilled",
        parent="translate",
        steps=1400,
        gpu_steps=16000,
    ),
    TranslationRecipe(
        name="translate-captions",
        summary="`translate`, trained on to describe pictures; its texts are for research only, so it does not ship.",
        shape=MarianShape(dropout=0.2),
        parent="translate",
        source=MULTI30K,
        matrix_rate=4e-3,
        other_rate=2e-3,
        steps=900,
        gpu_steps=4000,
    ),
    _CAPTIONS,
    replace(
        _CAPTIONS,
        name="captions-deep-shallow",
        summary="`captions-teacher` with twice the encoder and one decoder layer; for research, it does not ship.",
        shape=MarianShape(encoder_layers=8, decoder_layers=1, ffn=512, dropout=0.2),
        parent="captions-teacher",
        objective="written",
        is_deepened=True,
        averaged=0,
        keeps_all=False,
        matrix_rate=6e-3,
        other_rate=3e-3,
        warmup=100,
        checkpoint_every=100,
        steps=2700,
    ),
    SMALL,
    replace(
        SMALL,
        name="captions-transport",
        summary="`captions-small` with the cost of transport to the reference; for research, it does not ship.",
        criterion=Transport(),
    ),
    replace(
        SMALL,
        name="captions-denoising",
        summary="Captions of both languages, written from spoilt copies; for research, it does not ship.",
        objective="denoising",
        look_every=0,
    ),
    replace(
        SMALL,
        name="captions-denoised",
        summary="`captions-small`, started from `captions-denoising`; for research, it does not ship.",
        parent="captions-denoising",
    ),
    replace(
        SMALL,
        name="captions-kept",
        summary="`captions-small`, its weights kept every 25 steps to see it learn; for research, it does not ship.",
        keeps_all=True,
        look_every=0,
        checkpoint_every=25,
    ),
    TranslationRecipe(
        name="correct",
        summary="A small corrector of English: spelling, agreement, articles, prepositions, verb forms and marks.",
        shape=MarianShape(width=128, encoder_layers=6, decoder_layers=1, ffn=512, dropout=0.0),
        vocab=4096,
        objective="correction",
        source=CORRECTIONS,
        method="input-guided",
        budget=2048,
        steps=4000,
        gpu_steps=30000,
        checkpoint_every=100,
    ),
    TranslationRecipe(
        name="correct-ctc",
        summary="A corrector of English that writes its text in one pass, by copy-aware CTC; it does not ship.",
        shape=EditorShape(kind="copy-ctc"),
        vocab=4096,
        objective="correction",
        source=FEW_CORRECTIONS,
        budget=2048,
        parent="correct",
        steps=2000,
        gpu_steps=30000,
        checkpoint_every=100,
    ),
    TranslationRecipe(
        name="correct-edit5",
        summary="A corrector of English that tags, orders and inserts; it does not ship.",
        shape=EditorShape(kind="edit5"),
        vocab=4096,
        objective="correction",
        source=REORDERED,
        budget=2048,
        parent="correct",
        steps=2000,
        gpu_steps=30000,
        checkpoint_every=100,
    ),
    TranslationRecipe(
        name="correct-spans",
        summary="`correct`, trained on to write edits alone: where each is and what stands there; it does not ship.",
        shape=MarianShape(width=128, encoder_layers=6, decoder_layers=1, ffn=512, dropout=0.0),
        vocab=4096,
        source=CORRECTION_SPANS,
        budget=2048,
        joined=0.0,
        parent="correct",
        steps=1000,
        gpu_steps=30000,
        checkpoint_every=100,
    ),
)
GRU = TranslationRecipe(
    name="pairs-gru",
    summary="A GRU encoder-decoder with attention that translates captions from English to German; for research only.",
    shape=NetShape(config=GruConfig(width=128, hidden=192, dropout=0.2)),
    vocab=3000,
    source=MULTI30K,
    direction="en-de",
    budget=768,
    joined=0.0,
    matrix_rate=8e-3,
    other_rate=5e-3,
    steps=3600,
    gpu_steps=6000,
)
_SMALL_SIZES: dict[str, Any] = {"width": 64, "layers": 2, "heads": 4, "ffn": 256, "dropout": 0.1}
_SMALL = replace(
    GRU,
    name="captions-slm",
    summary="A small decoder that reads a caption in English and writes it in German; for research only.",
    shape=NetShape(config=LlmToSlmConfig(**_SMALL_SIZES, large_layers=0)),
    vocab=6144,
    start="captions-teacher",
    criterion=CrossEntropy(smoothing=0.1),
    steps=800,
)
DECODER, _PAIR = equal_configs(6, width=96, heads=4, dropout=0.1)
_BASELINES = (
    GRU,
    replace(
        GRU,
        name="pairs-decoder-only",
        summary="One stack of layers that reads a caption in English, then writes it in German; for research only.",
        shape=NetShape(config=DECODER),
        criterion=CrossEntropy(smoothing=0.1),
    ),
    replace(
        GRU,
        name="pairs-encoder-decoder",
        summary="An encoder-decoder of the size of `pairs-decoder-only`, which teaches it; for research only.",
        shape=NetShape(config=_PAIR),
        objective="distilled",
        parent="pairs-decoder-only",
    ),
    replace(
        GRU,
        name="captions-token-smoothing",
        summary="`pairs-gru` with labels that are laws over similar tokens; for research, it does not ship.",
        criterion=TokenSmoothing(),
    ),
    replace(
        GRU,
        name="captions-sequence-smoothing",
        summary="`pairs-gru`, other targets drawn around each reference; for research, it does not ship.",
        criterion=SequenceSmoothing(),
    ),
    replace(
        GRU,
        name="pairs-gru-plain",
        summary="`pairs-gru` without attention: the RNN encoder-decoder as first published; for research only.",
        shape=NetShape(config=GruConfig(width=128, hidden=192, dropout=0.2, has_attention=False)),
    ),
    replace(
        GRU,
        name="pairs-pervasive",
        summary="A two-dimensional convolutional translator of captions, English to German; for research only.",
        shape=NetShape(config=PervasiveConfig(width=64, layers=5, growth=16, dropout=0.1)),
        steps=4800,
    ),
    replace(
        GRU,
        name="pairs-registers",
        summary="A decoder-only translator of captions with registers, English to German and French; for research.",
        shape=NetShape(config=RegistersConfig(width=128, layers=4, heads=4, ffn=384, dropout=0.1, tags=(3, 4))),
        vocab=4096,
        source=MULTI30K_TAGGED,
        direction="en-x",
        criterion=CrossEntropy(smoothing=0.1),
        matrix_rate=8e-3,
        steps=2400,
    ),
    replace(
        GRU,
        name="pairs-phrases",
        summary="A phrase-based translator of captions, English to German, that reads its source once; for research.",
        shape=NetShape(config=PhrasesConfig(width=128, hidden=96, reach=3, longest=3, dropout=0.1)),
        vocab=2048,
        budget=768,
        steps=2400,
    ),
    _SMALL,
    replace(
        _SMALL,
        name="captions-llm-to-slm",
        summary="`captions-slm`, told by the frozen encoder of `captions-teacher` what its prompt says; for research.",
        shape=NetShape(config=LlmToSlmConfig(**_SMALL_SIZES)),
    ),
)
PAIRS: tuple[TranslationRecipe, ...] = (*_TRANSLATIONS, *_BASELINES)
