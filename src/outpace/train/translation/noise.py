"""Noise for denoising pre-training: a network learns to write a text from a spoilt copy of it.

Source: Lewis et al. (2019, arXiv 1910.13461), section 2.2: the five ways to spoil a text, alone or one after the other.
Differences: a sentence ends at a token that is a full stop, a question mark or an exclamation mark.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from outpace.errors import ConfigError
from outpace.papers import Paper
from outpace.train.data import EOS_ID, MASK_ID
from outpace.train.pairs import Ints

__all__ = ["Noise", "delete_tokens", "infill_text", "mask_tokens", "noiser", "permute_sentences", "rotate_text"]

PAPERS = (
    Paper(
        "BART: Denoising Sequence-to-Sequence Pre-training for Natural Language Generation, Translation, and "
        "Comprehension",
        "Lewis et al.",
        2019,
        "1910.13461",
        239,
        "Training at its scale; its published weights are run, not made.",
        "outpace train captions-denoising",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What is done to a text, in the order of the fields.

    Attributes:
        permute: Put the sentences into a random order.
        rotate: Begin at a random token, and go on with what stood before it at the end.
        delete: Share of the tokens that vanish.
        infill: Share of the tokens that vanish in spans, each of which leaves one mask.
        span: Mean length of a span (Poisson); spans of no length put a mask where nothing is missing.
        mask: Share of the tokens that become masks.
    """

    permute: bool = False
    rotate: bool = False
    delete: float = 0.0
    infill: float = 0.3
    span: float = 3.0
    mask: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if not all(0 <= share <= 1 for share in (self.delete, self.infill, self.mask)) or self.span <= 0:
            raise ConfigError(
                f"A text cannot be spoilt by delete={self.delete}, infill={self.infill}, mask={self.mask}, "
                f"span={self.span}.",
                "Shares are from 0 to 1, the mean span is above 0.",
            )


def noiser(noise: Noise, tokenizer: Tokenizer) -> Callable[[Ints, np.random.Generator], Ints]:
    """Return what spoils token ids [S], the end of text at the end, and leaves that end."""
    ends = {
        index for index in range(tokenizer.get_vocab_size()) if tokenizer.decode([index]).strip() in (".", "!", "?")
    }

    def spoil(tokens: Ints, generator: np.random.Generator) -> Ints:
        text = tokens[:-1].tolist()
        if noise.permute:
            text = permute_sentences(text, ends, generator)
        if noise.rotate:
            text = rotate_text(text, generator)
        text = delete_tokens(text, noise.delete, generator)
        text = infill_text(text, noise.infill, generator, noise.span)
        text = mask_tokens(text, noise.mask, generator)
        return np.array([*text, EOS_ID], dtype=np.int64)

    return spoil


def mask_tokens(tokens: Sequence[int], share: float, generator: np.random.Generator) -> list[int]:
    """Put the mask in place of each token with probability `share`."""
    return [MASK_ID if drawn < share else token for token, drawn in _with_draws(tokens, generator)]


def delete_tokens(tokens: Sequence[int], share: float, generator: np.random.Generator) -> list[int]:
    """Drop each token with probability `share`: which places are missing must be found out."""
    return [token for token, drawn in _with_draws(tokens, generator) if drawn >= share]


def infill_text(tokens: Sequence[int], share: float, generator: np.random.Generator, span: float = 3.0) -> list[int]:
    """Put one mask in place of each of some spans, which hold a share of the tokens (to the nearest token) in all."""
    missing, lengths = round(share * len(tokens)), list[int]()
    while sum(lengths) < missing:
        lengths.append(min(int(generator.poisson(span)), missing - sum(lengths)))
    # The kept tokens and the spans stand in a row; which places of the row are spans is drawn evenly.
    places = len(tokens) - missing + len(lengths)
    chosen = sorted(generator.choice(places, size=len(lengths), replace=False).tolist())
    order = dict(zip(chosen, generator.permutation(lengths).tolist(), strict=True))
    text, at = list[int](), 0
    for place in range(places):
        text.append(MASK_ID if place in order else tokens[at])
        at += order.get(place, 1)
    return text


def permute_sentences(tokens: Sequence[int], ends: Collection[int], generator: np.random.Generator) -> list[int]:
    """Put the sentences, cut after the tokens `ends`, into a random order."""
    sentences: list[list[int]] = [[]]
    for token in tokens:
        sentences[-1].append(token)
        if token in ends:
            sentences.append([])
    return [token for index in generator.permutation(len(sentences)).tolist() for token in sentences[index]]


def rotate_text(tokens: Sequence[int], generator: np.random.Generator) -> list[int]:
    """Begin at a token drawn evenly, and go on with what stood before it at the end."""
    start = int(generator.integers(len(tokens))) if tokens else 0
    return [*tokens[start:], *tokens[:start]]


def _with_draws(tokens: Sequence[int], generator: np.random.Generator) -> list[tuple[int, float]]:
    return list(zip(tokens, generator.random(len(tokens)).tolist(), strict=True))
