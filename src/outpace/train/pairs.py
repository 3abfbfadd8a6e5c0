"""Sentence pairs: where they come from, how they are read, and batches that depend on the step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from outpace.errors import ConfigError

from .data import EOS_ID, train_tokenizer
from .sources import END, PublicText, open_text

START = "<|start|>"
START_ID = 2
SHORT = 31  # bytes of a string, which has room for its end in 32 places
IGNORED = -100  # where a batch has no label
Pair = tuple[str, str]  # a sentence and its translation
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSource(PublicText):
    """One public text of sentence pairs.

    Attributes:
        splits: Files of each split inside the data folder.
        read: Returns the pairs of the named files, their sides in the order of `languages`.
        languages: What the two sides are.
        tags: Tokens of their own that the sources hold.
        is_spaced: Texts are cut as if a space stood before them, so that a word is the same tokens wherever it stands.
    """

    splits: dict[str, tuple[str, ...]]
    read: Callable[[Sequence[Path]], list[Pair]]
    languages: tuple[str, str] = ("de", "en")
    tags: tuple[str, ...] = ()
    is_spaced: bool = False

    @property
    def directions(self) -> tuple[str, str]:
        """Both directions, as "source-target"."""
        first, second = self.languages
        return f"{first}-{second}", f"{second}-{first}"

    def pairs(self, data: Path, split: str, direction: str = "") -> list[Pair]:
        """Return the pairs (source, target) of a split.

        Args:
            data: Folder of the texts.
            split: Name of the split.
            direction: One of `directions`; "" = the first.

        Raises:
            ConfigError: When it has no such split or direction, or a file is missing.
        """
        if split not in self.splits:
            raise ConfigError(f"{self.name} has no split {split!r}", f"Its splits: {', '.join(self.splits)}.")
        if direction and direction not in self.directions:
            raise ConfigError(f"{self.name} has no {direction!r}", f"Its directions: {', '.join(self.directions)}.")
        pairs = self.read(self.paths(self.splits[split], data))
        return [(b, a) for a, b in pairs] if direction == self.directions[1] else pairs


def _lines(path: Path) -> list[str]:
    return open_text(path).rstrip("\n").split("\n")


def _tsv(paths: Sequence[Path]) -> list[Pair]:
    rows = [line.split("\t") for path in paths for line in _lines(path)]
    return [(row[1].strip(), row[0].strip()) for row in rows]


def _aligned(paths: Sequence[Path]) -> list[Pair]:
    german, english = (_lines(path) for path in paths)
    if len(german) != len(english):
        raise ConfigError(
            f"{paths[0].name} has {len(german)} lines, {paths[1].name} {len(english)}: "
            f"line {min(len(german), len(english)) + 1} has no partner",
            "Line i of one file must translate line i of the other.",
        )
    return [(a.strip(), b.strip()) for a, b in zip(german, english, strict=True)]


def _tagged(paths: Sequence[Path]) -> list[Pair]:
    """Return the sources of the first file with the lines of each other one, behind a tag of its language."""
    first, *others = paths
    found = list[Pair]()
    for path in others:
        tag = f"<|{path.name.split('.')[-2]}|>"
        found += [(f"{tag}{source}", target) for source, target in _aligned((first, path))]
    return found


def _strings(paths: Sequence[Path]) -> list[Pair]:
    """Return each short English sentence with itself."""
    kept = dict.fromkeys(english for _, english in _tsv(paths) if 0 < len(english.encode()) <= SHORT)
    return [(text, text) for text in kept]


def _multi30k(name: str) -> tuple[str, str]:
    return f"multi30k/{name}.de.gz", f"multi30k/{name}.en.gz"


class PairBatch(NamedTuple):
    """Pairs side by side.

    Attributes:
        sources: Token ids, [B, S], padded at the end.
        mask: 1 where a source token stands, int64 [B, S].
        inputs: What the decoder reads, [B, T]: the start, then the target without its last token.
        labels: What it must say, [B, T]; -100 where there is nothing.
    """

    sources: Tensor
    mask: Tensor
    inputs: Tensor
    labels: Tensor

    @property
    def is_real(self) -> Tensor:
        """Where there is a label, bool [B, T]; its N true places are the rows of a network's logits [N, V]."""
        return self.labels != IGNORED

    def to(self, device: torch.device) -> PairBatch:
        """Return the batch on a device."""
        return PairBatch(*(tensor.to(device) for tensor in self))


def make_batch(sources: Sequence[Ints], targets: Sequence[Ints]) -> PairBatch:
    """Pad encoded sources and targets, each ending with its end of text."""
    shifted = [np.concatenate([[START_ID], target[:-1]]) for target in targets]
    padded = _pad(sources, EOS_ID)
    held = torch.tensor([len(source) for source in sources]).unsqueeze(1)
    mask = (torch.arange(padded.shape[1]) < held).long()
    return PairBatch(padded, mask, _pad(shifted, EOS_ID), _pad(targets, IGNORED))


TATOEBA = PairSource(
    name="tatoeba-pairs",
    splits={split: (f"tatoeba_pairs/en-de.{split}.tsv.gz",) for split in ("train", "valid", "test")},
    origin="tatoeba.org through www.manythings.org/anki, the copy in github.com/rioyshky/translation",
    licence="CC-BY-2.0",
    note="split by a hash of the English sentence",
    read=_tsv,
)
MULTI30K = PairSource(
    name="multi30k",
    splits={
        "train": _multi30k("train"),
        "valid": _multi30k("val"),
        "test": _multi30k("test_2016_flickr"),
        "test-2017": _multi30k("test_2017_mscoco"),
    },
    origin="github.com/multi30k/dataset",
    licence="none, research use only",
    note="captions",
    read=_aligned,
)
MULTI30K_TAGGED = PairSource(
    name="multi30k-tagged",
    splits={
        "train": tuple(f"multi30k/train.{language}.gz" for language in ("en", "de", "fr")),
        "valid": tuple(f"multi30k/val.{language}.gz" for language in ("en", "de", "fr")),
        **{
            f"test-{language}": tuple(f"multi30k/test_2016_flickr.{side}.gz" for side in ("en", language))
            for language in ("de", "fr")
        },
    },
    origin=MULTI30K.origin,
    licence=MULTI30K.licence,
    note="captions; a tag before each source names the language of its target",
    read=_tagged,
    languages=("en", "x"),
    tags=("<|de|>", "<|fr|>"),
)
STRINGS = PairSource(
    name="tatoeba-strings",
    splits=TATOEBA.splits,
    origin=TATOEBA.origin,
    licence=TATOEBA.licence,
    note=f"English sentences of at most {SHORT} bytes, each once; a sentence is its own target",
    read=_strings,
    languages=("string", "copy"),
)
PAIR_SOURCES = {source.name: source for source in (TATOEBA, MULTI30K, MULTI30K_TAGGED, STRINGS)}


def train_pair_tokenizer(
    pairs: Iterable[Pair], vocab: int, tags: Sequence[str] = (), is_spaced: bool = False
) -> Tokenizer:
    """A byte-level BPE shared by both languages, ending each text with `<|endoftext|>`.

    Id 2 starts the decoder; tags, which come next, are tokens of their own. Where it is spaced (see `PairSource`), tags
    take the blanks around them, and no text is written with a blank before it.
    """
    blank = " " * is_spaced
    tokenizer = train_tokenizer((blank + text for pair in pairs for text in pair), vocab, extra=(START, *tags))
    if is_spaced:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Prepend(" ")])
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
        tokenizer.add_special_tokens([AddedToken(tag, lstrip=True, rstrip=True, normalized=False) for tag in tags])
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, EOS_ID)])
    return tokenizer


def join_neighbours(pairs: Sequence[Pair], share: float, seed: int) -> list[Pair]:
    """Return the pairs and, for a share of them, the pair joined with one or two random others.

    Short sentences alone would teach a model to stop after the first one.
    """
    generator = np.random.default_rng(seed)
    num = int(len(pairs) * share)
    picked = generator.integers(0, len(pairs), size=(num, 3))
    counts = generator.integers(2, 4, size=num)
    joined = []
    for row, count in zip(picked.tolist(), counts.tolist(), strict=True):
        chosen = [pairs[index] for index in row[:count]]
        joined.append((" ".join(pair[0] for pair in chosen), " ".join(pair[1] for pair in chosen)))
    return [*pairs, *joined]


@dataclass(frozen=True, slots=True, eq=False)
class PairBatches:
    """Encoded pairs and the batches that a run sees.

    Every epoch holds each pair once, in batches of similar length. Which pairs a step holds is a pure function of
    (seed, step), so a resumed run goes on where the killed one stopped, without saved state.

    Attributes:
        sources: Token ids of each source, end of text included.
        targets: Those of each translation.
        budget: Most positions of a batch, padding included, on the longer side.
        seed: Of the order, and of the noise.
        spoil: Changes a source each time it comes up; None = sources stay as they are.
        split: Makes both sides from a target each time it comes up; None = sides stay as they are.
    """

    sources: tuple[Ints, ...]
    targets: tuple[Ints, ...]
    budget: int
    seed: int
    spoil: Callable[[Ints, np.random.Generator], Ints] | None = None
    split: Callable[[Ints, np.random.Generator], tuple[Ints, Ints]] | None = None

    @property
    def lengths(self) -> Ints:
        """Tokens of the longer side of each pair, [N]."""
        both = zip(self.sources, self.targets, strict=True)
        return np.array([max(len(source), len(target)) for source, target in both], dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold each pair once."""
        return len(_plan(self, 0))

    def batch(self, step: int) -> PairBatch:
        """Return the batch of a step."""
        per_epoch = self.steps_per_epoch
        members = _plan(self, step // per_epoch)[step % per_epoch]
        sources, targets = ([side[index] for index in members] for side in (self.sources, self.targets))
        if self.split is not None:
            generator = np.random.default_rng([self.seed, step, 2])
            both = [self.split(target, generator) for target in targets]
            sources, targets = [source for source, _ in both], [target for _, target in both]
        if self.spoil is not None:
            generator = np.random.default_rng([self.seed, step, 1])
            sources = [self.spoil(source, generator) for source in sources]
        return make_batch(sources, targets)


@lru_cache(maxsize=2)
def _plan(batches: PairBatches, epoch: int) -> list[list[int]]:
    """Return the pairs of each batch of an epoch, in a random order.

    Pairs of one length are shuffled among themselves before the cut, so borders lie alike in every epoch.
    """
    generator = np.random.default_rng([batches.seed, epoch])
    shuffled = generator.permutation(len(batches.sources))
    lengths = batches.lengths[shuffled]
    order = shuffled[np.argsort(lengths, kind="stable")]
    plan: list[list[int]] = []
    for index, length in zip(order.tolist(), np.sort(lengths).tolist(), strict=True):
        if not plan or (len(plan[-1]) + 1) * length > batches.budget:
            plan.append([])
        plan[-1].append(index)
    return [plan[at] for at in generator.permutation(len(plan))]


def _pad(rows: Sequence[Ints], filler: int) -> Tensor:
    padded = np.full((len(rows), max(len(row) for row in rows)), filler, dtype=np.int64)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(padded)


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[Pair], budget: int, longest: int, seed: int) -> PairBatches:
    """Encode pairs, leaving out those with a side longer than `longest` tokens."""
    sides = [tokenizer.encode_batch([pair[side] for pair in pairs]) for side in (0, 1)]
    kept = [(a.ids, b.ids) for a, b in zip(*sides, strict=True) if max(len(a.ids), len(b.ids)) <= longest]
    sources = tuple(np.array(source, dtype=np.int64) for source, _ in kept)
    return PairBatches(sources, tuple(np.array(target, dtype=np.int64) for _, target in kept), budget, seed)
