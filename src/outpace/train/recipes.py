"""The recipes of the zoo: one frozen record each, nothing computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

from outpace.errors import ConfigError
from outpace.models.nar.cmlm import CmlmConfig
from outpace.models.nar.ctc import CtcConfig
from outpace.models.nar.dag import DagConfig
from outpace.models.nar.diffused import DiffusedConfig
from outpace.models.nar.elmer import ElmerConfig
from outpace.models.nar.fertility import FertilityConfig
from outpace.models.nar.insertion import InsertionConfig, InsertionLmConfig
from outpace.models.nar.levenshtein import LevenshteinConfig
from outpace.models.nar.markov import MarkovConfig
from outpace.models.nar.recursive import RecursiveConfig
from outpace.models.nar.sga import SgaConfig
from outpace.models.nets.gru import GruConfig
from outpace.models.nets.pervasive import PervasiveConfig
from outpace.models.nets.phrases import PhrasesConfig
from outpace.models.nets.registers import RegistersConfig
from outpace.models.nets.stacks import equal_configs
from outpace.papers import Paper

from .corrections import CORRECTION_SPANS, CORRECTIONS, FEW_CORRECTIONS, REORDERED
from .keywords import COMMON, DIALOGUES, GAPS, PATHS, RESTAURANTS, STORIES, TABLES
from .nar.axe import AlignedCrossEntropy
from .nar.barriers import Barriers
from .nar.curriculum import Curriculum
from .nar.eisl import EditInvariant
from .nar.infilling import Infilling
from .nar.lexical import LexicalPrior
from .nar.network import NarShape
from .nar.nmla import NonMonotonic
from .nar.objectives import Glancing, Likelihood
from .nar.permutation import LayerPermutation
from .nar.refining import Masked, MaskedTexts, Unrolled
from .nar.residual import ResidualGlancing
from .nar.reverse import Mixture
from .nar.stories import STORY_GAPS, STORY_PASSAGES
from .network import LlamaShape
from .pairs import FEW_TATOEBA, MULTI30K, MULTI30K_TAGGED, STRINGS, TATOEBA, PairSource
from .sources import MIXED_SOURCES, SOURCES, Source
from .translation.criteria import CrossEntropy
from .translation.editing import EditorShape
from .translation.marian import MarianShape
from .translation.nets import NetShape
from .translation.network import Criterion, PairShape
from .translation.noise import Noise
from .translation.smoothing import SequenceSmoothing, TokenSmoothing
from .translation.transport import Transport

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
)
Objective = Literal["causal", "masked", "block", "distilled", "parallel", "sorted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyRecipe:
    """What every recipe says, whatever the network.

    Attributes:
        name: Name of the model and of its directory.
        summary: One sentence for the card.
        objective: What is minimised; `distilled` means taught by the parent.
        parent: Recipe whose tokenizer is shared, and whose weights teach (`distilled`) or start (else) this one.
        steps: Optimiser steps on a CPU.
        gpu_steps: Optimiser steps where there is a GPU.
        warmup: Steps until the full learning rate.
        matrix_rate: Peak learning rate of Muon, for the matrices of the layers.
        other_rate: Peak learning rate of AdamW, for embeddings and norms.
        weight_decay: Decoupled weight decay of the matrices.
        clip: Largest norm of the gradient.
        checkpoint_every: Steps between checkpoints.
    """

    name: str
    summary: str
    objective: str
    parent: str | None = None
    steps: int
    gpu_steps: int
    warmup: int = 60
    matrix_rate: float = 5e-3
    other_rate: float = 3e-3
    weight_decay: float = 0.05
    clip: float = 1.0
    checkpoint_every: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(AnyRecipe):
    """How one Llama of the zoo is trained.

    Attributes:
        shape: Sizes of the network.
        objective: `causal` (next token), `masked` (masked diffusion), `block` (block diffusion), `distilled` (next
            token, taught by the parent), `parallel` (next token, and through masks the tokens after it) or `sorted`
            (next token, after several layers).
        from_scratch: Take the parent's tokenizer alone and start from random weights.
        anneal: Share of the steps in which causal attention is opened to full attention (`masked`).
        responses_after: Texts that end a prompt; with them only what follows, to the end of its document, is masked
            (`masked`): fine-tuning on responses alone.
        complementary: Show each row twice, every token masked in exactly one of the two views (`block`).
        levels: Masks behind a token (`parallel`).
        exits: Layers after which the next token is learned, ascending (`sorted`).
        kept: Share of the tokens with so many masks that have one more (`parallel`).
        rows: Sequences in a batch of `length` tokens; longer sequences come in proportionally fewer rows.
        length: Tokens in a sequence.
        long_share: Share of the steps, at the end, that use sequences of twice the length.
        sources: Texts to train on.
    """

    shape: LlamaShape
    objective: Objective
    from_scratch: bool = False
    anneal: float = 0.0
    responses_after: tuple[str, ...] = ()
    complementary: bool = False
    levels: int = 0
    exits: tuple[int, ...] = ()
    kept: float = 0.7
    rows: int = 16
    length: int = 512
    long_share: float = 0.15
    sources: tuple[Source, ...] = SOURCES


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
_RECIPES = (
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


_SHAPE, _PLAIN, _NOISE = MarianShape(), CrossEntropy(), Noise()


@dataclass(frozen=True, slots=True, kw_only=True)
class TranslationRecipe(AnyRecipe):
    """How one network is trained on sentence pairs.

    Attributes:
        shape: The kind of network and its sizes.
        vocab: Tokens of the vocabulary that both sides share.
        objective: `translation` or `correction` (the pairs' own targets; a correction takes only the tokenizer of the
            parent), `written` (the targets that the parent writes: distillation at the level of sequences), `distilled`
            (the parent's laws over the next token: at the level of tokens), `denoising` (each text of either side,
            from a spoilt copy of it) or `infilling` (a fragment of each, from what stands around it).
        criterion: What is minimised.
        noise: How the copies are spoilt (`denoising`).
        fragment: Least and most share of a text that is asked for (`infilling`).
        mixture: Texts of several teachers in place of the pairs' own; None = none.
        curriculum: Words and phrases of the pairs before the sentences; None = sentences from the start.
        is_deepened: Start from the parent's layers, each repeated as often as there are more of them.
        has_own_tokenizer: Make a tokenizer of `vocab` tokens, though there is a parent that writes (`written`).
        start: Recipe whose tokenizer is shared, and whose weights are taken as far as names and shapes agree, beside a
            parent that teaches or none at all.
        source: Pairs to train on.
        direction: One of the source's directions; "" = its first.
        budget: Positions of a batch on the longer side, padding included.
        longest: Pairs with a longer side, in tokens, are left out.
        joined: Share of further pairs made by joining two or three.
        method: How its card says to decode it; "" = plainly.
        averaged: Weights are kept at each checkpoint, and the mean of the last so many is exported; 0 = the last alone.
        keeps_all: Keep the weights of every checkpoint, to look into the training later.
        look_every: Steps between two looks at the held-out split (loss and BLEU); 0 = none.
    """

    shape: PairShape = _SHAPE
    vocab: int = 6144
    objective: Literal["translation", "correction", "written", "distilled", "denoising", "infilling"] = "translation"
    criterion: Criterion = _PLAIN
    noise: Noise = _NOISE
    fragment: tuple[float, float] = (0.3, 0.7)
    mixture: Mixture | None = None
    curriculum: Curriculum | None = None
    is_deepened: bool = False
    has_own_tokenizer: bool = False
    start: str | None = None
    source: PairSource = TATOEBA
    direction: str = ""
    method: str = ""
    budget: int = 4096
    longest: int = 96
    joined: float = 0.05
    averaged: int = 0
    keeps_all: bool = False
    look_every: int = 0
    warmup: int = 100
    matrix_rate: float = 1.2e-2
    other_rate: float = 5e-3

    def __post_init__(self) -> None:
        """Refuse a student without a parent."""
        if self.parent is None and (self.is_deepened or self.objective in ("written", "distilled")):
            raise ConfigError(f"The recipe {self.name} learns from a parent, but names none.", "Give it a parent.")
        if self.objective != "written" and (self.has_own_tokenizer or (self.start and self.parent)):
            reason = f"The recipe {self.name} takes its tokenizer from its parent {self.parent}."
            raise ConfigError(reason, "Leave the parent out, or learn from the texts that it writes (`written`).")
        if self.start and (self.has_own_tokenizer or self.is_deepened):
            raise ConfigError(f"The recipe {self.name} starts from {self.start}.", "Leave other beginnings out.")


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
_SMALL = replace(
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
    _SMALL,
    replace(
        _SMALL,
        name="captions-transport",
        summary="`captions-small` with the cost of transport to the reference; for research, it does not ship.",
        criterion=Transport(),
    ),
    replace(
        _SMALL,
        name="captions-denoising",
        summary="Captions of both languages, written from spoilt copies; for research, it does not ship.",
        objective="denoising",
        look_every=0,
    ),
    replace(
        _SMALL,
        name="captions-denoised",
        summary="`captions-small`, started from `captions-denoising`; for research, it does not ship.",
        parent="captions-denoising",
    ),
    replace(
        _SMALL,
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
_GRU = TranslationRecipe(
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
_DECODER, _PAIR = equal_configs(6, width=96, heads=4, dropout=0.1)
_BASELINES = (
    _GRU,
    replace(
        _GRU,
        name="pairs-decoder-only",
        summary="One stack of layers that reads a caption in English, then writes it in German; for research only.",
        shape=NetShape(config=_DECODER),
        criterion=CrossEntropy(smoothing=0.1),
    ),
    replace(
        _GRU,
        name="pairs-encoder-decoder",
        summary="An encoder-decoder of the size of `pairs-decoder-only`, which teaches it; for research only.",
        shape=NetShape(config=_PAIR),
        objective="distilled",
        parent="pairs-decoder-only",
    ),
    replace(
        _GRU,
        name="captions-token-smoothing",
        summary="`pairs-gru` with labels that are laws over similar tokens; for research, it does not ship.",
        criterion=TokenSmoothing(),
    ),
    replace(
        _GRU,
        name="captions-sequence-smoothing",
        summary="`pairs-gru`, other targets drawn around each reference; for research, it does not ship.",
        criterion=SequenceSmoothing(),
    ),
    replace(
        _GRU,
        name="pairs-gru-plain",
        summary="`pairs-gru` without attention: the RNN encoder-decoder as first published; for research only.",
        shape=NetShape(config=GruConfig(width=128, hidden=192, dropout=0.2, has_attention=False)),
    ),
    replace(
        _GRU,
        name="pairs-pervasive",
        summary="A two-dimensional convolutional translator of captions, English to German; for research only.",
        shape=NetShape(config=PervasiveConfig(width=64, layers=5, growth=16, dropout=0.1)),
        steps=4800,
    ),
    replace(
        _GRU,
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
        _GRU,
        name="pairs-phrases",
        summary="A phrase-based translator of captions, English to German, that reads its source once; for research.",
        shape=NetShape(config=PhrasesConfig(width=128, hidden=96, reach=3, longest=3, dropout=0.1)),
        vocab=2048,
        budget=768,
        steps=2400,
    ),
)
# One-pass networks on captions: small ones of equal size and equal steps, so that objectives can be compared.
_ONE_PASS_RAW = replace(
    _SMALL,
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
_ONE_PASS = replace(
    _ONE_PASS_RAW,
    name="nar-ctc",
    summary="Writes captions in one pass by CTC; for research, it does not ship.",
    objective="written",
    parent="captions-teacher",
    has_own_tokenizer=True,
)
_CMLM = CmlmConfig(width=128, heads=4, ffn=384, encoder_layers=2, decoder_layers=2)
_MASKED_RAW = replace(
    _ONE_PASS_RAW,
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
    _ONE_PASS_RAW,
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
        source=FEW_TATOEBA,
        method="one-pass",
        budget=1024,
        matrix_rate=8e-3,
        other_rate=4e-3,
        steps=2000,
        gpu_steps=40000,
        checkpoint_every=100,
    ),
    _ONE_PASS_RAW,
    _ONE_PASS,
    replace(
        _ONE_PASS_RAW,
        name="nar-ctc-raw-glancing",
        summary="`nar-ctc-raw`, shown a part of its target while it learns; for research, it does not ship.",
        criterion=Glancing(),
    ),
    replace(
        _ONE_PASS_RAW,
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
        _ONE_PASS,
        name="nar-ctc-glancing",
        summary="`nar-ctc`, shown a part of its target while it learns; for research, it does not ship.",
        criterion=Glancing(),
    ),
    replace(
        _ONE_PASS_RAW,
        name="nar-ctc-diffused",
        summary="`nar-ctc-raw` whose layers read each other's texts, shown less and less; for research, it stays here.",
        shape=NarShape(
            config=DiffusedConfig(width=128, heads=4, ffn=384, encoder_layers=2, decoder_layers=2, factor=2)
        ),
        criterion=ResidualGlancing(),
    ),
    replace(
        _ONE_PASS_RAW,
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
# What one-pass networks are trained on: equal networks and equal steps, from one start where that is fair.
_FORWARD = replace(
    _ONE_PASS_RAW,
    name="nar-ctc-forward",
    summary="`nar-ctc-raw`, trained on with the targets that `pairs-gru` writes; for research only.",
    start="nar-ctc-raw",
    mixture=Mixture(forward="pairs-gru"),
    matrix_rate=4e-3,
    other_rate=2e-3,
    steps=300,
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
_TEXTS = (
    replace(
        _GRU,
        name="pairs-gru-reverse",
        summary="`pairs-gru` the other way, German to English, started from it; for research only.",
        direction="de-en",
        parent="pairs-gru",
        steps=1000,
    ),
    _FORWARD,
    replace(
        _FORWARD,
        name="nar-ctc-lexical",
        summary="`nar-ctc-forward`, drawn early on to what the raw texts say about words; for research only.",
        criterion=LexicalPrior(),
    ),
    replace(
        _FORWARD,
        name="nar-ctc-rejuvenated",
        summary="`nar-ctc-forward`, and with the sources that `pairs-gru-reverse` writes; for research only.",
        mixture=Mixture(forward="pairs-gru", reverse="pairs-gru-reverse"),
    ),
    replace(
        _ONE_PASS_RAW,
        name="nar-ctc-curriculum",
        summary="`nar-ctc-raw`, words and phrases before sentences; for research only.",
        curriculum=Curriculum(),
    ),
    replace(
        _ONE_PASS_RAW,
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
        _ONE_PASS,
        name="nar-fertility",
        summary="Writes captions in one pass, each source token as many places as it has fertility; for research only.",
        shape=NarShape(config=FertilityConfig(width=128, heads=4, ffn=384, encoder_layers=2, decoder_layers=2)),
    ),
    replace(
        _ONE_PASS_RAW,
        name="nar-context-aware",
        summary="`nar-ctc-raw` with a local branch of cross-attention, three tokens wide; for research only.",
        shape=NarShape(
            config=CtcConfig(width=128, heads=4, ffn=384, encoder_layers=2, decoder_layers=2, factor=2, cross_window=1)
        ),
    ),
    replace(
        _ONE_PASS_RAW,
        name="nar-elmer-base",
        summary="Captions from spoilt copies, each token learnt after a layer drawn for it; for research only.",
        shape=_DEEP,
        criterion=LayerPermutation(),
        objective="denoising",
        look_every=0,
        steps=400,
    ),
    replace(
        _ONE_PASS_RAW,
        name="nar-elmer",
        summary="`nar-elmer-base`, trained on to translate captions and to stop early; for research, it does not ship.",
        shape=_DEEP,
        criterion=LayerPermutation(),
        start="nar-elmer-base",
    ),
)
_GROWN = InsertionConfig(
    width=112, heads=4, ffn=320, encoder_layers=1, decoder_layers=2, dropout=0.0, max_source=96, max_positions=128
)
_EDITED = LevenshteinConfig(
    width=112, heads=4, ffn=320, encoder_layers=2, decoder_layers=2, dropout=0.0, max_source=96, max_positions=128
)
_STORIES = replace(
    _ONE_PASS_RAW,
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
    vocab=300,
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
        shape=NetShape(config=replace(_DECODER, layers=5, width=96, ffn=384, dropout=0.0)),
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
    _ONE_PASS_RAW,
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
TRANSLATIONS: dict[str, TranslationRecipe] = {
    recipe.name: recipe
    for recipe in (
        *_TRANSLATIONS,
        *_BASELINES,
        *_NAR,
        *_REFINED,
        *_TEXTS,
        *_PLACED,
        _MARKOV,
        *_ENCODERS,
        *_COMPLETED,
        *_STRINGS,
    )
}
