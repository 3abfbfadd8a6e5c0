"""What a recipe says: one frozen record of each form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from outpace.errors import ConfigError
from outpace.train.nar.curriculum import Curriculum
from outpace.train.nar.reverse import Mixture
from outpace.train.network import LlamaShape
from outpace.train.pairs import TATOEBA, PairSource
from outpace.train.sources import SOURCES, Source
from outpace.train.translation.criteria import CrossEntropy
from outpace.train.translation.marian import MarianShape
from outpace.train.translation.network import Criterion, PairShape
from outpace.train.translation.noise import Noise

Objective = Literal[
    "causal",
    "masked",
    "block",
    "distilled",
    "parallel",
    "sorted",
    "unrolled",
    "consistent",
    "residual",
    "set-block",
    "reweighted",
    "windows",
    "backspace",
    "codes",
]


_EARLY = (25, 35, 50, 70, 100, 140, 280, 560)  # steps


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

    def is_checkpoint(self, step: int) -> bool:
        """Tell whether a checkpoint is written after a step."""
        return step % self.checkpoint_every == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(AnyRecipe):
    """How one Llama of the zoo is trained.

    Attributes:
        shape: Sizes of the network.
        objective: `causal` (next token), `masked` (masked diffusion), `block` (block diffusion), `distilled` (next
            token, taught by the parent), `parallel` (next token, and through masks the tokens after it), `sorted`
            (next token, after several layers), `unrolled` (masked diffusion, taught by several of the parent's steps),
            `consistent` (masked diffusion, taught by what the parent says of a less masked text), `residual` (masked
            diffusion that reads what the parent said one step before), `set-block` (next token, and sets of a block's
            tokens from its masks), `windows` (next token, and tokens from what stands before and behind them),
            `backspace` (next token, and the backspace behind tokens of the network's own: SequenceMatch) or `codes`
            (next token, by a network with codebooks).
        from_scratch: Take the parent's tokenizer alone and start from random weights.
        anneal: Share of the steps in which causal attention is opened to full attention (`masked`).
        responses_after: Texts that end a prompt; with them only what follows, to the end of its document, is masked
            (`masked`): fine-tuning on responses alone.
        has_prefix: Never mask the beginning of a row, to a place drawn anew (`masked`): the prefix-LM objective.
        uniform: Share of the hidden tokens that are replaced by random ones in place of masks (`masked`): hybrid noise,
            under which every token is asked.
        complementary: Show each row twice, every token masked in exactly one of the two views (`block`).
        levels: Masks behind a token (`parallel`), or places of a block (`set-block`).
        exits: Layers after which the next token is learned, ascending (`sorted`).
        kept: Share of the tokens with so many masks that have one more (`parallel`).
        rollout: Steps that the parent takes (`unrolled`).
        stride: Share of the text that each of them writes (`unrolled`), or that the step before had yet to write
            (`residual`).
        asked: Places that are taught in a batch (`unrolled`, `consistent`, `residual`); windows of a row (`windows`);
            draws of a row (`backspace`).
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
    has_prefix: bool = False
    uniform: float = 0.0
    complementary: bool = False
    levels: int = 0
    exits: tuple[int, ...] = ()
    kept: float = 0.7
    rollout: int = 0
    stride: float = 0.0
    asked: int = 384
    rows: int = 16
    length: int = 512
    long_share: float = 0.15
    sources: tuple[Source, ...] = SOURCES


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
        keeps_all: Keep the weights of every checkpoint, to look into the training later, and write further ones early
            in it, where most is learnt.
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

    def is_checkpoint(self, step: int) -> bool:
        """Tell whether a checkpoint is written after a step."""
        return AnyRecipe.is_checkpoint(self, step) or (self.keeps_all and step in _EARLY)

    def __post_init__(self) -> None:
        """Refuse a student without a parent."""
        if self.parent is None and (self.is_deepened or self.objective in ("written", "distilled")):
            raise ConfigError(f"The recipe {self.name} learns from a parent, but names none.", "Give it a parent.")
        if self.objective != "written" and (self.has_own_tokenizer or (self.start and self.parent)):
            reason = f"The recipe {self.name} takes its tokenizer from its parent {self.parent}."
            raise ConfigError(reason, "Leave the parent out, or learn from the texts that it writes (`written`).")
        if self.start and (self.has_own_tokenizer or self.is_deepened):
            raise ConfigError(f"The recipe {self.name} starts from {self.start}.", "Leave other beginnings out.")
