"""Exact byte laws of a token model: the next byte's law, summed over all covers of the bytes so far.

A cover of bytes is a sequence of tokens that writes them, and whose last token may write on. Which covers count:

- "valid": those whose tokens, but for a last one that writes on, are what the tokenizer itself writes for their bytes.
  A model that was trained on its tokenizer's output gives all others next to nothing, and there is at most one such
  prefix per byte, so that the work grows with the length of the text.
- "all": every sequence of tokens, which is the law of the bytes that the model writes; their number grows with every
  byte, and only the `width` likeliest prefixes are followed.

Sources: Phan et al. (2024), arXiv 2410.09303 (byte-token representation lemma and next-byte sampling); Phan et al.
(2024), arXiv 2406.16829 (the estimator for longest-match and byte-pair vocabularies).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outpace.errors import CapabilityError
from outpace.models.token_laws import Ids, TokenLaws
from outpace.papers import Paper
from outpace.text.byte_index import END, ByteIndex

__all__ = ["KINDS", "PAPERS", "CoverRules", "Covers", "Prefix", "num_shared"]

PAPERS = (
    Paper(
        "Understanding and Mitigating Tokenization Bias in Language Models",
        "Phan et al.",
        2024,
        "2406.16829",
        51,
        command='outpace score "Once upon a ti" --bytes',
    ),
    Paper(
        "Exact Byte-Level Probabilities from Tokenized Language Models for FIM-Tasks and Model Ensembles",
        "Phan et al.",
        2024,
        "2410.09303",
        170,
        "Fill-in-the-middle prompts, which no model here was trained for.",
        'outpace generate "Once upon a ti" --healed --method autoregressive',
    ),
)

KINDS = ("valid", "all")


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens that write the beginning of a text; some token may cover the rest.

    Attributes:
        ids: the tokens, those before the text included.
        start: bytes of the text that they write.
        weight: log-probability of the tokens, up to a constant that the prefixes of one text share.
    """

    ids: Ids
    start: int
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class CoverRules:
    """How one model's tokens cover bytes.

    Attributes:
        index: its vocabulary.
        laws: its next-token laws.
        opening: what stands before every text, one token at least.
        canonical: the tokenizer's own tokens of some bytes; None = it cannot be asked (half a character).
        is_all: every sequence of tokens counts, not only the tokenizer's own.
        width: prefixes that are followed at once, the likeliest; 0 = all.
    """

    index: ByteIndex
    laws: TokenLaws
    opening: Ids
    canonical: Callable[[bytes], Sequence[int] | None]
    is_all: bool = False
    width: int = 0

    def begin(self) -> Covers:
        """Return the covers of the empty text."""
        return Covers(self, b"", (Prefix(self.opening, 0, 0.0),))

    def read(self, text: bytes) -> Covers:
        """Return the covers of a text, from the tokenizer's own prefixes where only these count."""
        covers = self.begin() if self.is_all else self._jump(_whole(text))
        for at in range(len(covers.text), len(text)):
            covers = covers.extend(text[at])
        return covers

    def _jump(self, text: bytes) -> Covers:
        """Return the valid covers of whole characters at once; weights lack what all prefixes share."""
        found = self.prefixes(text)
        return self.begin() if found is None else self.weigh(text, found)

    def prefixes(self, text: bytes) -> list[tuple[Ids, int]] | None:
        """Return the valid prefixes of whole characters, and how many bytes each writes; no model is asked.

        Returns:
            None where the tokenizer cannot be asked about the text.
        """
        own, found, borders = self.canonical(text), list[tuple[Ids, int]](), dict[int, Ids]()
        if own is None:
            return None
        at = 0
        for count, token in enumerate(own):
            borders[at] = tuple(own[:count])
            at += self.index.size(token)
        for start in range(max(0, len(text) - self.index.longest), len(text) + 1):
            if start < len(text) and not self.index.begins(text[start:]):
                continue
            ids = own if start == len(text) else self.canonical(text[:start])
            written = borders.get(start) if ids is None else tuple(ids)  # inside a character: where it parts itself
            if written is not None:
                found.append((written, start))
        return found

    def weigh(self, text: bytes, prefixes: Sequence[tuple[Ids, int]]) -> Covers:
        """Return the covers of a text by given prefixes; weights lack what all of these share."""
        size = num_shared([ids for ids, _ in prefixes])
        behind = sorted({self.opening + ids[:end] for ids, _ in prefixes for end in range(size, len(ids))})
        laws = dict(zip(behind, self.laws.after(behind), strict=True))
        found = list[Prefix]()
        for ids, start in prefixes:
            steps = [float(laws[self.opening + ids[:at]][ids[at]]) for at in range(size, len(ids))]
            found.append(Prefix(self.opening + ids, start, math.fsum(steps)))
        return Covers(self, text, tuple(found))


@dataclass(frozen=True, slots=True, eq=False)
class Covers:
    """The prefixes of a text behind which a token may cover its end; never changed.

    Attributes:
        rules: of the model.
        text: the bytes.
        prefixes: by `start`.
    """

    rules: CoverRules
    text: bytes
    prefixes: tuple[Prefix, ...]

    @property
    def num_shared(self) -> int:
        """How many leading tokens all prefixes share, the opening among them."""
        return num_shared([one.ids for one in self.prefixes])

    def law(self) -> Tensor:
        """Return log-probabilities [257] float64 of the next byte, and of the end at 256, given the text.

        Raises:
            CapabilityError: no tokens write the text.
        """
        sums = self._sums()
        return sums - sums.logsumexp(0)

    def log_prob(self) -> float:
        """Return the log-probability that a text begins with these bytes, up to the constant of the weights."""
        law, whole = self._sums()[:END].logsumexp(0), [one for one in self.prefixes if one.start == len(self.text)]
        if not whole:
            return float(law)
        # Behind the whole text anything may come, special tokens too.
        partly = [one for one in self.prefixes if one.start < len(self.text)]
        rest = self._sums(partly)[:END].logsumexp(0) if partly else torch.tensor(float("-inf"), dtype=torch.float64)
        weights = torch.tensor([one.weight for one in whole], dtype=torch.float64)
        return float(torch.cat([rest.view(1), weights]).logsumexp(0))

    def _sums(self, prefixes: Sequence[Prefix] | None = None) -> Tensor:
        """Return the logarithms [257] of what covers of text and next byte come to."""
        chosen, index = self.prefixes if prefixes is None else prefixes, self.rules.index
        if not chosen:
            raise CapabilityError("No tokens of the model write these bytes.", "Follow more prefixes, or other bytes.")
        best = max(one.weight for one in chosen)
        sums = torch.zeros(END + 1, dtype=torch.float64)
        for one, law in zip(chosen, self.rules.laws.after([one.ids for one in chosen]), strict=True):
            chance = torch.tensor(one.weight - best, dtype=torch.float64).exp()
            ids, behind = index.following(self.text[one.start :])
            sums.index_add_(0, behind, chance * law[ids].exp())
            if one.start == len(self.text) and len(index.ends):
                sums[END] += chance * law[index.ends].exp().sum()
        return sums.log() + best

    def extend(self, byte: int) -> Covers:
        """Return the covers of the text with one more byte; none are left where no token can write it."""
        rules, text = self.rules, self.text + bytes([byte])
        is_known = None if rules.is_all else rules.canonical(text)
        laws = rules.laws.after([one.ids for one in self.prefixes]) if self.prefixes else []
        kept, written = list[Prefix](), list[Prefix]()
        for one, law in zip(self.prefixes, laws, strict=True):
            rest = text[one.start :]
            if rules.index.begins(rest):
                kept.append(one)
            for token in rules.index.exact(rest):
                ids = (*one.ids, token)
                if is_known is None or ids == rules.opening + tuple(is_known):
                    written.append(Prefix(ids, len(text), one.weight + float(law[token])))
        found = [one for one in (*kept, *written) if one.weight > float("-inf")]
        if rules.width and len(found) > rules.width:
            found = sorted(sorted(found, key=lambda one: -one.weight)[: rules.width], key=lambda one: one.start)
        return Covers(rules, text, tuple(found))


def _whole(text: bytes) -> bytes:
    """Return the beginning of bytes that is text of whole characters."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return text[: error.start]
    return text


def num_shared(prefixes: Sequence[Ids]) -> int:
    """Return how many leading tokens all prefixes share."""
    shortest = min(prefixes, key=len)
    return next((at for at, token in enumerate(shortest) if any(ids[at] != token for ids in prefixes)), len(shortest))
