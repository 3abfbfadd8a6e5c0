"""How a translator learns: what its kept checkpoints write, along the steps.

    python -m outpace.train.translation.dynamics runs/captions-teacher --data DATA --plot curves.png

Source: Voita, Sennrich and Titov (2021, arXiv 2109.01396): a translator first learns to write its target language, then
to translate word by word, and last to reorder. Per checkpoint: the bits per token of its translations under an n-gram
model of the target side (low = fluent), their BLEU, and how they order words. The paper takes the fuzzy reordering
score for that. Where sources and targets are ordered alike, as captions are, it follows which words are right, so pairs
of words that the reference swaps are counted beside it (`swaps`). The paper aligns by fast_align and scores with
KenLM; here IBM model 1 with a diagonal aligns, learnt from the training pairs, and the n-gram model is ours.

At last: the steps from which each stays within 10% and 5% of its last value, with 95% intervals by a bootstrap over the
sentences.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.papers import Paper
from outpace.text.ngram import NGram
from outpace.train import checkpoint
from outpace.train.bleu import bleu_counts, bleu_of
from outpace.train.data import EOS_ID, find_data
from outpace.train.export import load_tokenizer
from outpace.train.nar.alignment import Aligner, Floats, Lexicon
from outpace.train.pairs import Ints, Pair
from outpace.train.recipes import TRANSLATIONS, TranslationRecipe

from .look import write_all
from .settled import later, settled
from .snapshots import load_snapshot, snapshots
from .swaps import Words, swapped

__all__ = ["Counts", "Order", "Stage", "fuzzy_reordering", "language_model", "main", "stages"]

PAPERS = (
    Paper(
        "Language Modeling, Lexical Translation, Reordering: The Training Process of NMT through the Lens of Classical "
        "SMT",
        "Voita et al.",
        2021,
        "2109.01396",
        101,
        "Alignments by fast_align with its diagonal, and scores by KenLM.",
        "python -m outpace.train.translation.dynamics runs/captions-teacher",
    ),
)
ORDERS = (2, 3, 5)  # of the n-gram models


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a network writes at one step.

    Attributes:
        step: Of the training.
        bits: Bits per token of its translations under the n-gram models, by order.
        bleu: Of its translations.
        monotone: Mean fuzzy reordering score: 1 = the source's order, 0 = every word elsewhere.
        swaps: Of the pairs of source words that the reference swaps, and whose words are both translated, the share
            that is swapped.
        tokens: Tokens per translation, the end with it.
    """

    step: int
    bits: dict[int, float]
    bleu: float
    monotone: float
    swaps: float
    tokens: float


@dataclass(frozen=True, slots=True)
class Counts:
    """What the figures of one step are made of, sentence by sentence.

    Attributes:
        fluency: [sentences, 2] bits under the longest n-grams, and tokens.
        quality: [sentences, 10] what BLEU counts.
        order: [sentences, 2] swapped pairs kept, and held.
    """

    fluency: Floats
    quality: Floats
    order: Floats


def fuzzy_reordering(aligned: Sequence[int]) -> float:
    """Return how far target words follow the order of their source words, from 0 to 1.

    Talbot et al. (2011): 1 - (C - 1) / (M - 1), where the M target words fall into C runs whose source places go on one
    after the other. Words of one source place belong to one run.

    Args:
        aligned: source place of each target word.
    """
    if len(aligned) < 2:
        return 1.0
    runs = 1 + sum(after - before not in (0, 1) for before, after in pairwise(aligned))
    return 1 - (runs - 1) / (len(aligned) - 1)


def language_model(tokenizer: Tokenizer, texts: Sequence[str], order: int) -> NGram:
    """Return an n-gram model of target texts, the end of text between them."""
    rows = tokenizer.encode_batch(list(texts))
    return NGram(_stream([row.ids[:-1] for row in rows]), order, tokenizer.get_vocab_size())


def _stream(rows: Sequence[Sequence[int]]) -> Ints:
    return np.array([EOS_ID, *(token for row in rows for token in (*row, EOS_ID))], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Order:
    """Tells how far translations follow the order of their sources.

    Attributes:
        lexicon: Which token translates which.
        aligner: What the lexicon was learnt with.
        tokenizer: Of both sides.
    """

    lexicon: Lexicon
    aligner: Aligner
    tokenizer: Tokenizer

    @staticmethod
    def learnt(tokenizer: Tokenizer, pairs: Sequence[Pair], most: int = 12_000) -> Order:
        """Learn the lexicon from pairs that people wrote, so that every checkpoint is aligned alike."""
        aligner, sides = Aligner(empty=0.0), zip(*pairs[:most], strict=True)
        sources, targets = ([np.array(ids[:-1]) for ids in _ids(tokenizer, side)] for side in sides)
        return Order(aligner.one_way(sources, targets)[0], aligner, tokenizer)

    def monotone(self, sources: Sequence[str], written: Sequence[Sequence[int]]) -> float:
        """Return the mean fuzzy reordering score of translations: tokens, the end left out."""
        scores = list[float]()
        for source, row in zip(_ids(self.tokenizer, sources), written, strict=True):
            if len(row) > 1 and len(source) > 1:
                tokens, length = torch.tensor([source[:-1]]), torch.tensor([len(row)])
                links = self.lexicon.links(
                    tokens, torch.ones_like(tokens, dtype=torch.bool), torch.tensor([list(row)]), length, self.aligner
                )
                scores.append(fuzzy_reordering(links[0].tolist()))
        return sum(scores) / max(len(scores), 1)


def _ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [row.ids for row in tokenizer.encode_batch(list(texts))]


def stages(
    out: Path, recipe: TranslationRecipe, train: Sequence[Pair], pairs: Sequence[Pair]
) -> tuple[list[Stage], list[Counts]]:
    """Look at every checkpoint that a run has kept in `out`.

    Args:
        out: the run's directory, with a tokenizer and kept checkpoints.
        recipe: how it was trained.
        train: its pairs; the targets make the n-gram models.
        pairs: held-out pairs that are translated.

    Raises:
        ConfigError: when nothing was kept.
    """
    kept = snapshots(out)
    if not kept:
        raise ConfigError(f"{out} holds no checkpoints of a training.", "Train with a recipe that keeps them all.")
    tokenizer, device = load_tokenizer(out), torch.device("cpu")
    models = {size: language_model(tokenizer, [target for _, target in train], size) for size in ORDERS}
    network, order, words = recipe.shape.build(recipe.vocab), Order.learnt(tokenizer, train), Words.learnt(train)
    sources, references = [source for source, _ in pairs], [target for _, target in pairs]
    wanted = [words.links(*pair) for pair in pairs]
    found, counted = list[Stage](), list[Counts]()
    for step, path in kept:
        load_snapshot(network, path)
        written = write_all(network, tokenizer, sources, device)
        stream, texts = _stream(written), tokenizer.decode_batch(written)
        bits = {size: model.bits(stream) for size, model in models.items()}
        links = [words.links(*pair) for pair in zip(sources, texts, strict=True)]
        counts = Counts(
            _by_sentence(bits[max(ORDERS)], written),
            np.array([bleu_counts(*pair) for pair in zip(texts, references, strict=True)], dtype=np.float64),
            np.array([swapped(*pair) for pair in zip(wanted, links, strict=True)], dtype=np.float64),
        )
        counted.append(counts)
        found.append(
            Stage(
                step=step,
                bits={size: float(own.mean()) for size, own in bits.items()},
                bleu=_bleu(counts.quality.sum(0)),
                monotone=order.monotone(sources, written),
                swaps=_share(counts.order.sum(0)),
                tokens=(len(stream) - 1) / len(pairs),
            )
        )
        print(_line(found[-1]), flush=True)
    return found, counted


def _by_sentence(bits: Floats, rows: Sequence[Sequence[int]]) -> Floats:
    """Return bits and tokens of each row, its end with it: [sentences, 2]."""
    sizes = np.array([len(row) + 1 for row in rows])
    return np.stack([np.add.reduceat(bits, np.cumsum(sizes) - sizes), sizes], 1)


def _share(counts: Floats) -> float:
    return float(counts[0] / max(counts[1], 1))


def _bleu(counts: Floats) -> float:
    return bleu_of(counts.tolist())


def _fluency(counts: Floats) -> float:
    return float(counts[1] / counts[0])  # tokens per bit, so that more is better


_HEAD = (
    f"| step | {' | '.join(f'bits per token, {order}-grams' for order in ORDERS)} | BLEU | monotone | swaps | tokens"
    " |\n"
    f"|{'---|' * (len(ORDERS) + 5)}"
)


def _line(stage: Stage) -> str:
    bits = " | ".join(f"{stage.bits[order]:.2f}" for order in ORDERS)
    return (
        f"| {stage.step} | {bits} | {stage.bleu:.2f} | {stage.monotone:.3f} | {stage.swaps:.3f} | {stage.tokens:.1f} |"
    )


def _arrivals(steps: Sequence[int], counted: Sequence[Counts], resamples: int) -> Iterator[str]:
    """Say when each figure settles, and how often order does so after BLEU."""
    for share in (0.9, 0.95):
        told = {
            "fluency": settled([own.fluency for own in counted], _fluency, steps, share=share, resamples=resamples),
            "BLEU": settled([own.quality for own in counted], _bleu, steps, share=share, resamples=resamples),
            "swaps": settled([own.order for own in counted], _share, steps, share=share, resamples=resamples),
        }
        for name, one in told.items():
            yield f"{name}: within {1 - share:.0%} of the last from step {one.step} on [{one.low}, {one.high}]"
        first, last = later(told["BLEU"], told["fluency"]), later(told["swaps"], told["BLEU"])
        yield f"BLEU later than fluency in {first:.0%} of resampled sets, swaps later than BLEU in {last:.0%}"


def draw(found: Sequence[Stage], path: Path) -> None:
    """Draw the three along the steps.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("Drawing needs matplotlib, which is not installed.", 'pip install "outpace[plot]"') from None
    figure = Figure(figsize=(10.4, 3.2), dpi=100, layout="constrained")
    steps = [stage.step for stage in found]
    fluency, quality, order = figure.subplots(1, 3)
    for size in ORDERS:
        fluency.plot(steps, [stage.bits[size] for stage in found], label=f"{size}-grams")
    fluency.set(ylabel="bits per token of the translations")
    fluency.legend(fontsize=8)
    quality.plot(steps, [stage.bleu for stage in found], color="#3a8f5c")
    quality.set(ylabel="BLEU")
    order.plot(steps, [stage.swaps for stage in found], color="#1b6ca8", label="swapped as the reference does")
    order.plot(steps, [stage.monotone for stage in found], color="#8aa9c4", label="fuzzy reordering score")
    order.set(ylabel="share")
    order.legend(fontsize=8)
    for axes in (fluency, quality, order):
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.translation.dynamics", description=__doc__)
    parser.add_argument("directory", type=Path, help="of a run that kept its checkpoints")
    parser.add_argument("--split", nargs="+", default=["valid"], help="what is translated (default: valid)")
    parser.add_argument("--count", type=int, default=0, help="sentences of each (default: all)")
    parser.add_argument("--resamples", type=int, default=1000, help="sets of sentences drawn for the intervals")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path, help="note the figures here")
    parser.add_argument("--plot", type=Path, help="draw the curves here")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return guarded(lambda _: _report(given), [])


def _report(given: argparse.Namespace) -> int:
    name = checkpoint.load(given.directory / "checkpoint.pt")["recipe"]
    if name not in TRANSLATIONS:
        raise ConfigError(f"{given.directory} was trained by {name}, which translates nothing.", "Give a translator.")
    recipe, folder = TRANSLATIONS[name], find_data(given.data)
    train = recipe.source.pairs(folder, "train", recipe.direction)
    pairs = [
        pair
        for split in given.split
        for pair in recipe.source.pairs(folder, split, recipe.direction)[: given.count or None]
    ]
    print(_HEAD)
    found, counted = stages(given.directory, recipe, train, pairs)
    for line in _arrivals([stage.step for stage in found], counted, given.resamples):
        print(line)
    if given.json:
        given.json.write_text(json.dumps([asdict(stage) for stage in found], indent=1) + "\n", encoding="utf-8")
    if given.plot:
        draw(found, given.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
