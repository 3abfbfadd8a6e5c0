"""Which word of a sentence belongs to which word of its translation: IBM model 1 with a prior for the diagonal.

Papers: Brown et al. (1993), model 1; Dyer, Chahuneau and Smith (2013), "A simple, fast, and effective
reparameterization of IBM model 2" (fast_align): the prior. Symmetrisation: Koehn, Och and Marcu (2003), section 3.1.
Differences: the prior's sharpness stays as given, and the table has no Dirichlet prior; fast_align fits both.

Texts are sequences of ids: of words (`word_ids`) or of tokens. In what follows a source has n words, a target m.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outpace.errors import ConfigError
from outpace.setting import check, setting

__all__ = ["Aligner", "Lexicon", "Link", "split_words", "symmetrised", "word_ids"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Link = tuple[int, int]  # (place in the source, place in the target)
UNALIGNED = -1
_WORD = re.compile(r"\s*(?:\w+|[^\w\s])")
_NEIGHBOURS = [(-1, 0), (0, -1), (1, 0), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lexicon:
    """How likely each word is the translation of each other one.

    Attributes:
        keys: [K] int64, ascending: source word * `words` + target word; the source `words - 1` is the empty word.
        law: [K] float64, p(target word | source word).
        words: one more than the largest id of either side, and one for the empty word.
    """

    keys: Ints
    law: Floats
    words: int

    def of(self, source: int, target: int) -> float:
        """Return p(target | source), 0 where the two never met."""
        return float(self.of_all(np.array([source]), np.array([target]))[0])

    def of_all(self, sources: Ints, targets: Ints) -> Floats:
        """Return p(target | source) of arrays of words, 0 where the two never met; the arrays are broadcast."""
        keys = sources * self.words + targets
        at = np.searchsorted(self.keys, keys).clip(max=max(len(self.keys) - 1, 0))
        if not len(self.keys):
            return np.zeros(keys.shape)
        is_known = (self.keys[at] == keys) & (targets < self.words) & (sources < self.words)
        return np.where(is_known, self.law[at], 0.0)

    def links(self, sources: Tensor, is_real: Tensor, targets: Tensor, lengths: Tensor, prior: Aligner) -> Tensor:
        """Return the likeliest source place of each target token; the empty word is none, words unseen go by place.

        Args:
            sources: [B, S] int64, padded.
            is_real: [B, S] bool.
            targets: [B, T] int64, padded.
            lengths: [B] of the targets.
            prior: what the lexicon was learnt with.

        Returns:
            int64 [B, T], a real place of the source everywhere, on padding too.
        """
        law = self.of_all(sources[:, None, :].cpu().numpy(), targets[:, :, None].cpu().numpy())
        found = np.zeros(law.shape)
        shape = zip(lengths.tolist(), is_real.sum(1).tolist(), strict=True)
        for row, (m, n) in enumerate(shape):
            found[row, :m, :n] = (law[row, :m, :n] + 1e-9) * prior.prior(m, n)[:, :n]
        return torch.from_numpy(found.argmax(-1)).to(targets.device)

    def best(self, most: int) -> tuple[Ints, Floats]:
        """Return each source word's likeliest translations: ids and laws, both [words, most], likeliest first.

        Missing ones have the id -1 and the law 0; those left out are not made up for, so a row sums to at most 1.
        """
        sources = self.keys // self.words
        order = np.lexsort((-self.law, sources))
        rank = np.arange(len(order)) - np.searchsorted(sources, sources[order])
        kept = order[rank < most]
        place = sources[kept], rank[rank < most]
        ids, law = np.full((self.words, most), UNALIGNED), np.zeros((self.words, most))
        ids[place], law[place] = self.keys[kept] % self.words, self.law[kept]
        return ids, law


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligner:
    """How pairs are aligned.

    Attributes:
        rounds: of expectation and maximisation.
        sharpness: how much the diagonal is preferred; 0 = model 1 itself.
        empty: prior of the empty word, which stands for what a target adds on its own.
        how: `grow-diag`, `intersection` or `union` of both directions' links.
    """

    rounds: int = setting(5, least=1)
    sharpness: float = setting(4.0, least=0)
    empty: float = setting(0.08, least=0, most=1)
    how: str = setting("grow-diag", among=("grow-diag", "intersection", "union"))

    def __post_init__(self) -> None:
        """Check the settings."""
        check(self)

    def align(self, sources: Sequence[Ints], targets: Sequence[Ints]) -> list[list[Link]]:
        """Return the links of each pair, sorted.

        Raises:
            ConfigError: there is not one target for each source.
        """
        forward = self.one_way(sources, targets)[1]
        backward = self.one_way(targets, sources)[1]
        there = [{(i, j) for j, i in enumerate(row) if i >= 0} for row in forward]
        back = [{(i, j) for i, j in enumerate(row) if j >= 0} for row in backward]
        return [symmetrised(a, b, self.how) for a, b in zip(there, back, strict=True)]

    def one_way(self, sources: Sequence[Ints], targets: Sequence[Ints]) -> tuple[Lexicon, list[list[int]]]:
        """Learn p(target word | source word).

        Returns:
            The lexicon, and per pair the likeliest place in the source of each target word, -1 = the empty word.

        Raises:
            ConfigError: there is not one target for each source.
        """
        if len(sources) != len(targets):
            raise ConfigError(f"There are {len(sources)} sources and {len(targets)} targets.", "Give pairs.")
        words = max((int(side.max(initial=-1)) for side in (*sources, *targets)), default=-1) + 2
        keys, prior, widths = self._laid_out(sources, targets, words)
        kept, entry = np.unique(keys, return_inverse=True)
        starts = np.concatenate([[0], np.cumsum(widths)[:-1]]).astype(np.int64)
        law = np.ones(len(kept))
        for _ in range(self.rounds if len(keys) else 0):
            # Expectation: how much of each target word is due to each source word. Maximisation: the shares of those.
            joint = prior * law[entry]
            due = joint / np.repeat(np.add.reduceat(joint, starts), widths)
            count = np.bincount(entry, due, len(kept))
            law = count / np.bincount(kept // words, count, words)[kept // words].clip(min=1e-300)
        return Lexicon(keys=kept, law=law, words=words), _likeliest(prior * law[entry], widths, starts, targets)

    def _laid_out(self, sources: Sequence[Ints], targets: Sequence[Ints], words: int) -> tuple[Ints, Floats, Ints]:
        """Return keys and priors of all possible links, target word after target word, and each one's count, n + 1."""
        priors: dict[tuple[int, int], Floats] = {}
        keys, found, widths = [np.empty(0, np.int64)], [np.empty(0)], [np.empty(0, np.int64)]
        for source, target in zip(sources, targets, strict=True):
            shape = len(target), len(source)
            if shape not in priors:
                priors[shape] = self.prior(*shape).ravel()
            row = np.append(source, words - 1) * words
            keys.append((row + target[:, None]).ravel())
            found.append(priors[shape])
            widths.append(np.full(len(target), len(row)))
        return np.concatenate(keys), np.concatenate(found), np.concatenate(widths)

    def prior(self, m: int, n: int) -> Floats:
        """Return how likely each target place belongs to each source place, [m, n + 1], the empty word last."""
        away = np.abs(np.arange(1, m + 1)[:, None] / max(m, 1) - np.arange(1, n + 1) / max(n, 1))
        near = np.exp(-self.sharpness * away)
        shares = (1 - self.empty) * near / near.sum(1, keepdims=True) if n else near
        return np.concatenate([shares, np.full((m, 1), self.empty)], 1)


def _likeliest(joint: Floats, widths: Ints, starts: Ints, targets: Sequence[Ints]) -> list[list[int]]:
    if not len(joint):
        return [[] for _ in targets]
    # Per target word the first of its likeliest links.
    is_best = joint == np.repeat(np.maximum.reduceat(joint, starts), widths)
    at = np.flatnonzero(is_best)
    word = np.repeat(np.arange(len(widths)), widths)[at]
    place = at[np.unique(word, return_index=True)[1]] - starts
    place = np.where(place == widths - 1, UNALIGNED, place)
    return [row.tolist() for row in np.split(place, np.cumsum([len(target) for target in targets])[:-1])]


def symmetrised(forward: set[Link], backward: set[Link], how: str = "grow-diag") -> list[Link]:
    """Return the links that both directions give, sorted, and more of those that one gives.

    Args:
        forward: links of one direction.
        backward: links of the other, likewise (source place, target place).
        how: `intersection`; `union`; `grow-diag`: links beside one that is there, of a word that has none yet.
    """
    union, links = forward | backward, forward & backward
    if how == "union":
        return sorted(union)
    sources, targets = {i for i, _ in links}, {j for _, j in links}
    todo = sorted(links) if how == "grow-diag" else []
    while todo:  # until nothing is added
        before = len(links)
        for i, j in todo:
            for di, dj in _NEIGHBOURS:
                link = i + di, j + dj
                if link in union and link not in links and (link[0] not in sources or link[1] not in targets):
                    links.add(link)
                    sources.add(link[0])
                    targets.add(link[1])
        todo = sorted(links) if len(links) > before else []
    return sorted(links)


def split_words(text: str) -> list[str]:
    """Return the words and marks of a text, each with the space before it; together they are the text."""
    return _WORD.findall(text.rstrip())


def word_ids(*sides: Sequence[Sequence[str]]) -> list[list[Ints]]:
    """Return the words of some texts as ids, in small letters and without spaces, all sides by one count from 0."""
    known: dict[str, int] = {}
    return [
        [np.array([known.setdefault(word.strip().lower(), len(known)) for word in text], np.int64) for text in side]
        for side in sides
    ]
