"""A model that writes bytes: one token model, or several with tokenizers of their own, in the place of any model.

Token 0 to 255 are the bytes, 256 ends a text. Its laws are the exact byte laws of `byte_covers`, so that every method,
sampler and constraint of the project decodes bytes, several models write one text together, and any model drafts for
any other (`draft-model`, whose rejection rule needs laws over the same tokens).

Source: Phan et al. (2024), arXiv 2410.09303, sections on byte-level sampling and on ensembles.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from outpace.cache import Cache
from outpace.errors import CapabilityError, ConfigError
from outpace.models.byte_covers import CoverRules, Covers
from outpace.models.token_laws import TokenLaws
from outpace.text.byte_index import END, ByteIndex
from outpace.text.byte_pairs import byte_alphabet
from outpace.text.speller import Speller, speller
from outpace.text.tokenizer import Tokenizer
from outpace.types import NO_OUTPUTS, Adapter, Capabilities, Counter, Outputs, Scores

__all__ = ["ByteModel", "ByteNames", "Voice", "byte_tokenizer", "cover_rules"]

PREFIX = "bytes:"
_WIDTH = 64  # prefixes that are followed at once; "valid" covers have fewer
_KEPT = 512  # texts whose covers are remembered
_END_TOKEN = "<|end|>"


@dataclass(frozen=True, slots=True)
class Voice:
    """One model of an ensemble: how it covers bytes, and how much it counts."""

    rules: CoverRules
    weight: float = 1.0
    adds_space: bool = False


@dataclass(frozen=True, slots=True)
class ByteNames:
    """What a name of a byte model says: "bytes:A", "bytes:A@0.3+B@0.7" (a mixture) or "bytes:A@1*B@0.5" (a product).

    Attributes:
        names: of the models.
        weights: of a mixture they sum to 1, of a product they are exponents; None given = equal shares.
        is_product: laws are multiplied, not averaged.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    is_product: bool = False

    @staticmethod
    def is_one(name: str) -> bool:
        """Return whether a name is of this kind."""
        return name.startswith(PREFIX)

    @staticmethod
    def read(name: str) -> ByteNames:
        """Return what a name says.

        Raises:
            ConfigError: no model is named, sums and products are mixed, or a weight is none.
        """
        said = name.removeprefix(PREFIX)
        if "+" in said and "*" in said:
            raise ConfigError(f"{name} mixes + and *.", "Average with +, or multiply with *.")
        parts = [part.strip() for part in said.replace("*", "+").split("+")]
        pairs = [part.rpartition("@") if "@" in part else (part, "", "") for part in parts]
        if not all(model for model, _, _ in pairs):
            raise ConfigError(f"{name} leaves a model out.", "Write bytes:MODEL, or bytes:MODEL@0.3+MODEL@0.7.")
        weights = [_weight(name, text) for _, _, text in pairs]
        is_product = "*" in said
        total = 1.0 if is_product and any(text for _, _, text in pairs) else sum(weights)
        return ByteNames(tuple(model for model, _, _ in pairs), tuple(each / total for each in weights), is_product)


def _weight(name: str, text: str) -> float:
    try:
        found = float(text or 1)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise ConfigError(f"A weight in {name} is {text!r}.", "Weights are numbers above 0.")
    return found


def byte_tokenizer() -> Tokenizer:
    """Return the tokenizer of byte models: id 0 to 255 for the bytes, 256 for the end."""
    vocab = {letter: byte for letter, byte in byte_alphabet().items()}
    engine = Engine(models.BPE(vocab, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([_END_TOKEN])
    return Tokenizer(engine, {"eos_token": _END_TOKEN})


def cover_rules(
    target: Adapter, tokenizer: Tokenizer, end_tokens: Sequence[int], *, is_all: bool = False, width: int = _WIDTH
) -> tuple[CoverRules, bool]:
    """Return how a model's tokens cover bytes, and whether its tokenizer puts a space before every text.

    Args:
        target: a causal model.
        tokenizer: its own.
        end_tokens: ids that end a text.
        is_all, width: as `CoverRules` has them.

    Raises:
        CapabilityError: the model writes in another way, its tokenizer does more than join bytes, or there is no token
            that texts begin behind.
    """
    offered = target.capabilities
    if offered.attention != "causal" or offered.is_encoder_decoder:
        raise CapabilityError("Exact bytes need a causal model.", "Use one, such as stories.")
    spells = speller(tokenizer, offered.vocab_size)
    if not spells.ids:
        raise CapabilityError(
            "Exact bytes need a tokenizer that joins bytes, and this model's does more.",
            "Use a model with a byte-level or sentencepiece tokenizer.",
        )
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    opening = tuple(spells.opening or start or list(end_tokens[:1]))
    if not opening:
        raise CapabilityError("The model has no token that a text begins behind.", "Use one with a start or end token.")
    index = _index(spells, tuple(end for end in end_tokens if end < offered.vocab_size))
    return CoverRules(index, TokenLaws(target), opening, spells.canonical, is_all, width), spells.adds_space


@functools.lru_cache(maxsize=8)
def _index(spells: Speller, ends: tuple[int, ...]) -> ByteIndex:
    """Return a vocabulary by its bytes, made once for each in use."""
    return ByteIndex(spells.bytes, ends)


class ByteModel(Adapter):
    """Byte laws of one or several models, with the bytes read so far as their cache.

    Args:
        voices: the models; their weights are those of `ByteNames`.
        is_product: laws are multiplied, not averaged.
    """

    path, dtype = "bytes", torch.float64

    def __init__(self, voices: Sequence[Voice], is_product: bool = False) -> None:
        self.voices, self.is_product = list(voices), is_product
        # A byte takes one token at the most, with the opening before it.
        most = min(voice.rules.laws.target.capabilities.max_positions - len(voice.rules.opening) for voice in voices)
        self.capabilities = Capabilities(END + 1, most)
        self.tokenizer = byte_tokenizer()
        self._laws: OrderedDict[bytes, Tensor] = OrderedDict()
        self._covers: list[OrderedDict[bytes, Covers]] = [OrderedDict() for _ in voices]
        self.notes = [note for voice in voices for note in voice.rules.laws.target.notes]

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return an empty cache: what it holds are the bytes themselves, [rows, capacity, 1]."""
        return Cache([torch.full((rows, capacity, 1), END, dtype=torch.int64)], 1, counter)

    def embed(self, tokens: Tensor) -> Tensor:
        """Refuse: bytes have no embeddings."""
        raise CapabilityError("A byte model has no embeddings.", "Use a method that needs none.")

    def head(self, hidden: Tensor) -> Tensor:
        """Refuse: a byte's law is made of several laws over tokens."""
        raise CapabilityError("A byte model has no output matrix.", "Use a method that needs none.")

    def score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS,
        inputs: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Scores:
        """Return the logarithms of byte laws; see `outpace.types.Adapter`."""
        self.check(outputs, skip)
        if inputs is not None:
            self.embed(tokens)
        cache.stage(position)
        rows, size = tokens.shape
        cache.counter.add(rows * size, 0)
        with cache.dense(size) as dense:
            buffer = dense.buffers[0]
            for row, held in enumerate(dense.lengths):
                buffer[row, held : held + size, 0] = tokens[row]
            before = [bytes_behind_end(buffer[row, :held, 0].tolist()) for row, held in enumerate(dense.lengths)]
        asked = [range(size)] * rows if ask is None else ask.tolist()
        sight = torch.ones(size, size, dtype=torch.bool).tril().expand(rows, -1, -1) if visible is None else visible
        laws = [
            self._law(bytes_behind_end([*before[row], *tokens[row][sight[row, node]].tolist()]))
            if int(position[row, node]) >= 0
            else torch.zeros(END + 1, dtype=torch.float64)
            for row in range(rows)
            for node in asked[row]
        ]
        return Scores(torch.stack(laws).view(rows, -1, END + 1) if laws else torch.zeros(rows, 0, END + 1))

    def _law(self, text: Sequence[int]) -> Tensor:
        """Return the law behind bytes, [257] float64."""
        key = bytes(text)
        if key not in self._laws:
            laws = torch.stack([self._covered(at, key).law() for at in range(len(self.voices))])
            weights = torch.tensor([voice.weight for voice in self.voices], dtype=torch.float64).unsqueeze(1)
            if self.is_product:  # 0 to any power is 0
                sums = (laws * weights).sum(0)
                self._laws[key] = sums - sums.logsumexp(0)
            else:
                self._laws[key] = (laws + weights.log()).logsumexp(0)
        _recent(self._laws, key)
        return self._laws[key]

    def _covered(self, number: int, text: bytes) -> Covers:
        """Return one model's covers of a text: from those of its beginning, where they are known."""
        known, voice = self._covers[number], self.voices[number]
        own = b" " + text if voice.adds_space else text
        if own not in known:
            before = known.get(own[:-1]) if own else None
            known[own] = voice.rules.read(own) if before is None else before.extend(own[-1])
        _recent(known, own)
        return known[own]


def bytes_behind_end(tokens: Sequence[int]) -> list[int]:
    """Return the bytes behind the last end: what stands before it is another text."""
    first = next((at for at in range(len(tokens), 0, -1) if tokens[at - 1] >= END), 0)
    return list(tokens[first:])


def _recent(known: OrderedDict[bytes, Any], key: bytes) -> None:
    known.move_to_end(key)
    while len(known) > _KEPT:
        known.popitem(last=False)
