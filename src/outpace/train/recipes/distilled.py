"""The recipes of one-pass networks that learn from other texts: raw, forward and reverse distilled ones."""

from __future__ import annotations

from dataclasses import replace

from outpace.train.nar.lexical import LexicalPrior
from outpace.train.nar.reverse import Mixture
from outpace.train.translation.marian import MarianShape

from .one_pass import ONE_PASS_RAW, WRITTEN
from .pairs import SMALL
from .record import TranslationRecipe

_FORWARD = replace(
    ONE_PASS_RAW,
    name="nar-ctc-forward",
    summary="`nar-ctc-raw`, trained on with the targets that `captions-teacher` writes; for research only.",
    start="nar-ctc-raw",
    mixture=Mixture(forward="captions-teacher"),
    matrix_rate=4e-3,
    other_rate=2e-3,
    steps=300,
)
DISTILLED: tuple[TranslationRecipe, ...] = (
    replace(
        SMALL,
        name="captions-reverse",
        summary="Translates captions the other way, German to English; for research, it does not ship.",
        # It learns its pairs by heart: what it writes of them has to hold what their rare words point to.
        shape=MarianShape(width=192, encoder_layers=3, decoder_layers=3, heads=4, ffn=512, dropout=0.0),
        vocab=6144,
        direction="de-en",
        averaged=5,
        checkpoint_every=200,
        steps=4000,
    ),
    _FORWARD,
    replace(
        WRITTEN,
        name="nar-ctc-lexical",
        summary="`nar-ctc`, drawn early on to what the raw texts say about words; for research only.",
        criterion=LexicalPrior(),
        steps=600,
    ),
    # Raw texts, then both distilled ones, then those of the forward teacher again, as Ding et al. order them.
    replace(
        _FORWARD,
        name="nar-ctc-bidirectional",
        summary="`nar-ctc-forward`, and with the sources that `captions-reverse` writes; for research only.",
        mixture=Mixture(forward="captions-teacher", reverse="captions-reverse"),
        steps=4200,
    ),
    replace(
        _FORWARD,
        name="nar-ctc-mixed",
        summary="`nar-ctc-bidirectional` with the pairs as they are in place of written sources; for research only.",
        mixture=Mixture(forward="captions-teacher", is_raw=True),
        steps=4200,
    ),
    replace(
        _FORWARD,
        name="nar-ctc-rejuvenated",
        summary="`nar-ctc-bidirectional`, trained on with what `captions-teacher` writes alone; for research only.",
        start="nar-ctc-bidirectional",
        steps=1200,
    ),
)
