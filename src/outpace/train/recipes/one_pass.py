"""The recipes of networks that write in one pass or a few, learnt from pairs: one record each."""

from __future__ import annotations

from dataclasses import replace

from outpace.models.nar.cmlm import CmlmConfig
from outpace.models.nar.ctc import CtcConfig
from outpace.models.nar.dag import DagConfig
from outpace.models.nar.diffused import DiffusedConfig
from outpace.models.nar.elmer import ElmerConfig
from outpace.models.nar.fertility import FertilityConfig
from outpace.models.nar.markov import MarkovConfig
from outpace.models.nar.ordered import OrderedConfig
from outpace.models.nar.sga import SgaConfig
from outpace.train.nar.axe import AlignedCrossEntropy
from outpace.train.nar.barriers import Barriers
from outpace.train.nar.curriculum import Curriculum
from outpace.train.nar.eisl import EditInvariant
from outpace.train.nar.infilling import Infilling
from outpace.train.nar.molecules import MOLECULES
from outpace.train.nar.network import NarShape
from outpace.train.nar.nmla import NonMonotonic
from outpace.train.nar.objectives import Glancing, Likelihood
from outpace.train.nar.permutation import LayerPermutation
from outpace.train.nar.refining import Masked, MaskedTexts, Unrolled
from outpace.train.nar.residual import ResidualGlancing
from outpace.train.nar.stories import STORY_GAPS, STORY_PASSAGES
from outpace.train.pairs import TATOEBA
from outpace.train.translation.noise import Noise

from .pairs import SMALL
from .record import TranslationRecipe

# One-pass networks on captions: small ones of equal size and equal steps, so that objectives can be compared.
ONE_PASS_RAW = replace(
    SMALL,
    name="nar-ctc-raw",
    summary="Writes captions in one pass by CTC, learnt from the pairs themselves; for research, it does not ship.",
    shape=NarShape(config=CtcConfig(width=128, heads=4, ffn=384, encoder_layers=2, decoder_layers=2, factor=2)),
    criterion=Likelihood(),
    method="one-pass",
    matrix_rate=8e-3,
    other_rate=4e-3,
    vocab=2500,
    budget=1024,
    steps=600,
    gpu_steps=12000,
)
WRITTEN = replace(
    ONE_PASS_RAW,
    name="nar-ctc",
    summary="Writes captions in one pass by CTC; for research, it does not ship.",
    objective="written",
    parent="captions-teacher",
    has_own_tokenizer=True,
    steps=6000,  # a quarter of an hour of one core: what the network can do, not what an idea brings
)
_CMLM = CmlmConfig(width=128, heads=4, ffn=384, encoder_layers=2, decoder_layers=2)
_MASKED_RAW = replace(
    ONE_PASS_RAW,
    name="nar-cmlm-raw",
    summary="Fills masks in captions of predicted length, trained on from `nar-ctc-raw`; for research only.",
    shape=NarShape(config=_CMLM),
    start="nar-ctc-raw",
    criterion=Masked(),
    method="mask-predict",
    look_every=0,
)
_UNROLLED = replace(
    _MASKED_RAW,
    name="nar-unrolled-captions",
    summary="Captions of both languages, written in steps from spoilt copies; for research, it does not ship.",
    shape=NarShape(config=replace(_CMLM, blank="noise")),
    objective="denoising",
    criterion=Unrolled(),
    method="sundae",
    steps=250,
)
_REFINED = (
    _MASKED_RAW,
    replace(
        _MASKED_RAW,
        name="nar-cmlm",
        summary="`nar-cmlm-raw`, learnt from what `captions-teacher` writes; for research, it does not ship.",
        objective="written",
        parent="captions-teacher",
        start="nar-cmlm-raw",
    ),
    _UNROLLED,
    replace(
        _UNROLLED,
        name="nar-sundae",
        summary="Translates captions in steps, from `nar-unrolled-captions`; for research, it does not ship.",
        objective="translation",
        start="nar-unrolled-captions",
        steps=450,
    ),
    replace(
        _UNROLLED,
        name="nar-denoised",
        summary="`nar-sundae` with the loss of one step alone, for comparison; for research, it does not ship.",
        objective="translation",
        criterion=Unrolled(steps=1),
        start="nar-unrolled-captions",
        steps=450,
    ),
)
_DAG = replace(
    ONE_PASS_RAW,
    name="nar-dag-raw",
    summary="Writes captions in one pass by a graph of places, learnt from the pairs; for research, it does not ship.",
    shape=NarShape(
        config=DagConfig(width=128, heads=4, ffn=384, encoder_layers=2, decoder_layers=2, factor=4, reach=16)
    ),
    criterion=Glancing(),
    steps=300,
)
_SGA = SgaConfig(width=128, heads=4, ffn=384, encoder_layers=4, is_frozen=False)
_ENCODERS = (
    replace(
        _UNROLLED,
        name="nar-masked-encoder",
        summary="Fills masks in captions of both languages; for research, it does not ship.",
        shape=NarShape(config=_SGA),
        start=None,
        noise=Noise(infill=0.0),
        criterion=MaskedTexts(),
        method="one-pass",
        steps=600,
    ),
    replace(
        _UNROLLED,
        name="nar-sga",
        summary="`nar-masked-encoder`, frozen, with bridges by which it translates captions; for research only.",
        shape=NarShape(config=replace(_SGA, is_frozen=True)),
        objective="translation",
        criterion=Unrolled(begin="blank"),
        start="nar-masked-encoder",
        steps=450,
    ),
)
_MARKOV = replace(
    _MASKED_RAW,
    name="nar-markov",
    summary="Translates captions, each token from two before it, trained on from `nar-ctc-raw`; for research only.",
    shape=NarShape(config=MarkovConfig(width=128, heads=4, ffn=384, encoder_layers=2, decoder_layers=2)),
    criterion=Barriers(),
    method="cascade",
)
_DAG_STORIES = replace(
    _DAG,
    name="nar-dag-stories",
    summary="Pre-training of a small graph: it writes fragments of passages of stories; it does not ship.",
    shape=NarShape(
        config=DagConfig(
            width=64, heads=4, ffn=192, encoder_layers=2, decoder_layers=2, factor=2, reach=32, link_heads=2
        )
    ),
    objective="infilling",
    criterion=Infilling(),
    source=STORY_PASSAGES,
    direction="",
    vocab=1000,
    budget=768,
    look_every=0,
    steps=300,
)
_DAG_GAPS = (
    replace(
        _DAG_STORIES,
        name="nar-dag-gaps-raw",
        summary="A small graph that writes the missing sentence of a story, from random weights; it does not ship.",
        objective="correction",
        parent="nar-dag-stories",
        criterion=Likelihood(),
        source=STORY_GAPS,
        look_every=200,
        steps=200,
    ),
    replace(
        _DAG_STORIES,
        name="nar-dag-gaps",
        summary="`nar-dag-gaps-raw`, trained on from `nar-dag-stories`; it does not ship.",
        objective="translation",
        start="nar-dag-stories",
        criterion=Likelihood(),
        source=STORY_GAPS,
        look_every=200,
        steps=200,
    ),
)
_NAR = (
    TranslationRecipe(
        name="translate-fast",
        summary="Translates everyday sentences from German to English in one pass, by CTC with glancing.",
        shape=NarShape(
            config=CtcConfig(
                width=160, heads=4, ffn=480, encoder_layers=3, decoder_layers=3, factor=2, max_positions=512
            )
        ),
        criterion=Glancing(),
        objective="written",
        parent="translate",
        has_own_tokenizer=True,
        vocab=3000,
        source=TATOEBA,
        method="one-pass",
        budget=1024,
        matrix_rate=8e-3,
        other_rate=4e-3,
        steps=13000,
        gpu_steps=40000,
        checkpoint_every=100,
    ),
    ONE_PASS_RAW,
    WRITTEN,
    replace(
        ONE_PASS_RAW,
        name="nar-ctc-raw-glancing",
        summary="`nar-ctc-raw`, shown a part of its target while it learns; for research, it does not ship.",
        criterion=Glancing(),
    ),
    replace(
        ONE_PASS_RAW,
        name="nar-ctc-nmla",
        summary="`nar-ctc-raw`, trained on for expected pairs of words wherever they stand; for research.",
        start="nar-ctc-raw",
        criterion=NonMonotonic(),
        warmup=20,
        matrix_rate=1e-3,
        other_rate=5e-4,
        steps=150,
        gpu_steps=2000,
        look_every=50,
    ),
    replace(
        WRITTEN,
        name="nar-ctc-glancing",
        summary="`nar-ctc`, shown a part of its target while it learns; for research, it does not ship.",
        criterion=Glancing(),
    ),
    replace(
        ONE_PASS_RAW,
        name="nar-ctc-diffused",
        summary="`nar-ctc-raw` whose layers read each other's texts, shown less and less; for research, it stays here.",
        shape=NarShape(
            config=DiffusedConfig(width=128, heads=4, ffn=384, encoder_layers=2, decoder_layers=2, factor=2)
        ),
        criterion=ResidualGlancing(),
    ),
    replace(
        ONE_PASS_RAW,
        name="nar-ctc-drafter",
        summary="A one-pass drafter of `captions-small`, whose tokens it writes; for research, it does not ship.",
        objective="correction",
        parent="captions-small",
        criterion=Glancing(),
        vocab=4096,
    ),
    _DAG_STORIES,
    *_DAG_GAPS,
    _DAG,
    replace(
        _DAG,
        name="nar-dag-plain",
        summary="`nar-dag-raw` that is shown nothing of its target while it learns, for comparison; for research only.",
        criterion=Likelihood(),
    ),
    replace(
        _DAG,
        name="nar-dag-pretrained",
        summary="`nar-dag-raw` before it translates: it writes fragments of captions; for research, it does not ship.",
        objective="infilling",
        criterion=Infilling(),
        look_every=0,
        steps=400,
    ),
    replace(
        _DAG,
        name="nar-dag-tuned",
        summary="`nar-dag-raw`, trained on from `nar-dag-pretrained`; for research, it does not ship.",
        start="nar-dag-pretrained",
    ),
)
_PLAIN_PASS = replace(
    _MASKED_RAW,
    name="nar-cmlm-plain",
    summary="`nar-cmlm-raw`, trained on to write its text in one pass; for research only.",
    criterion=Likelihood(),
    start="nar-cmlm-raw",
    method="one-pass",
    matrix_rate=4e-3,
    other_rate=2e-3,
    steps=300,
)
_LENGTHS = replace(
    _MASKED_RAW,
    name="nar-lengths-raw",
    summary="Writes captions in one pass, at blank places of a predicted number; for research, it does not ship.",
    criterion=Likelihood(),
    method="one-pass",
    steps=4000,
)
_TEXTS = (
    replace(
        WRITTEN,
        name="nar-ctc-curriculum",
        summary="`nar-ctc`, words and phrases before sentences; for research only.",
        curriculum=Curriculum(),
    ),
    replace(
        ONE_PASS_RAW,
        name="nar-ctc-aligned",
        summary="`nar-ctc-raw`, trained on with aligned cross-entropy; for research only.",
        start="nar-ctc-raw",
        criterion=AlignedCrossEntropy(),
        matrix_rate=4e-3,
        other_rate=2e-3,
        steps=300,
    ),
    _PLAIN_PASS,
    replace(
        _PLAIN_PASS,
        name="nar-cmlm-edit-invariant",
        summary="`nar-cmlm-raw`, trained on to write n-grams wherever they stand, in one pass; for research only.",
        criterion=EditInvariant(),
    ),
)
_DEEP = NarShape(config=ElmerConfig(width=128, heads=4, ffn=384, encoder_layers=2, decoder_layers=4))
_PLACED = (  # networks that lay out, see and leave places in ways of their own
    replace(
        WRITTEN,
        name="nar-fertility",
        summary="Writes captions in one pass, each source token as many places as it has fertility; for research only.",
        shape=NarShape(config=FertilityConfig(width=128, heads=4, ffn=384, encoder_layers=2, decoder_layers=2)),
        steps=600,
    ),
    _LENGTHS,
    replace(
        _LENGTHS,
        name="nar-lengths-glancing",
        summary="`nar-lengths-raw`, shown a part of its target while it learns; for research, it does not ship.",
        criterion=Glancing(),
    ),
    replace(
        ONE_PASS_RAW,
        name="nar-context-aware",
        summary="`nar-ctc-raw` with a local branch of cross-attention, three tokens wide; for research only.",
        shape=NarShape(
            config=CtcConfig(width=128, heads=4, ffn=384, encoder_layers=2, decoder_layers=2, factor=2, cross_window=1)
        ),
    ),
    replace(
        ONE_PASS_RAW,
        name="nar-elmer-base",
        summary="Captions from spoilt copies, each token learnt after a layer drawn for it; for research only.",
        shape=_DEEP,
        criterion=LayerPermutation(),
        objective="denoising",
        look_every=0,
        steps=400,
    ),
    replace(
        ONE_PASS_RAW,
        name="nar-elmer",
        summary="`nar-elmer-base`, trained on to translate captions and to stop early; for research, it does not ship.",
        shape=_DEEP,
        criterion=LayerPermutation(),
        start="nar-elmer-base",
    ),
)
_ORDERED = OrderedConfig(
    width=96,
    heads=4,
    ffn=256,
    encoder_layers=1,
    decoder_layers=3,
    dropout=0.0,
    length=24,
    max_source=32,
    max_positions=24,
)
_MOLECULES = replace(
    ONE_PASS_RAW,
    name="molecules-ordered",
    summary="Writes small molecules from their atoms, in an order that it learns (LO-ARM); it does not ship.",
    shape=NarShape(config=_ORDERED),
    source=MOLECULES,
    direction="",
    method="learned-order",
    vocab=259,
    budget=1536,
    longest=23,
    joined=0.0,
    look_every=0,
    steps=600,
    warmup=40,
)
_ORDERS = (
    _MOLECULES,
    replace(
        _MOLECULES,
        name="molecules-random",
        summary="`molecules-ordered` in a random order, for comparison; it does not ship.",
        shape=NarShape(config=replace(_ORDERED, order="random")),
    ),
)
ONE_PASS: tuple[TranslationRecipe, ...] = (*_NAR, *_REFINED, *_TEXTS, *_PLACED, _MARKOV, *_ENCODERS, *_ORDERS)
