"""Words that a text has to hold, by way of a template: the model writes numbers in their place, and each must come.

Paper: Iso (2022), arXiv 2211.08387, AutoTemplate: A Simple Recipe for Lexically Constrained Text Generation.
Guarantee: a text that ends by an end token or at its greatest length holds every keyword once, in whatever order the
    model chose, drafted or not; without keywords it is plain decoding, token for token.
Cost: none per token but a mask over the numbers and the ends; no forward.
Differences: the paper checks nothing while it decodes, and drops texts that lack a number. Here a number that was
    written cannot come again, the end waits for all of them, and where the length runs out they are all that may come.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from outpace.errors import CapabilityError, ConfigError
from outpace.laws.base import Control, Site
from outpace.papers import Paper
from outpace.setting import setting
from outpace.text.tokenizer import Tokenizer

__all__ = ["MOST", "Coverage", "CoverageState", "Lexicalised", "Template", "placeholder", "template_source"]

PAPERS = (
    Paper(
        "AutoTemplate: A Simple Recipe for Lexically Constrained Text Generation",
        "Iso",
        2022,
        "2211.08387",
        4,
        "Entity-guided summarisation, and T5's weights.",
        "outpace train story-templates",
    ),
)
MOST = 6  # keywords of a text


def placeholder(number: int) -> str:
    """Return the token that stands in the place of a keyword."""
    return f"<{number}>"


def template_source(words: Sequence[str]) -> str:
    """Return what a model of templates reads: each keyword behind its number."""
    return " ".join(f"{placeholder(number)} {word}" for number, word in enumerate(words))


@dataclass(frozen=True, slots=True, eq=False)
class Coverage:
    """Which numbers a text has to hold: a `Guide`.

    Attributes:
        wanted: their tokens.
        others: tokens of numbers that stand for nothing.
    """

    wanted: tuple[int, ...]
    others: tuple[int, ...] = ()

    def start(self, prompt: Sequence[int], ends: Sequence[int], limit: int) -> CoverageState:
        """Return the state behind a prompt; see `outpace.sampling.guide.Guide`.

        Raises:
            ConfigError: there is no room for all numbers.
        """
        left = limit - len(prompt) if limit else 0
        if limit and left < len(self.wanted):
            raise ConfigError(f"{left} tokens are too few for {len(self.wanted)} keywords.", "Raise max_tokens.")
        return CoverageState(self, tuple(ends), left, self.wanted)


@dataclass(frozen=True, slots=True, eq=False)
class CoverageState:
    """Where one text stands: a `GuideState`.

    Attributes:
        coverage: the guide.
        ends: ids that end the text.
        left: tokens that may still come; 0 = no limit is known.
        missing: tokens of the numbers that were not written yet.
    """

    coverage: Coverage
    ends: tuple[int, ...]
    left: int
    missing: tuple[int, ...]

    def after(self, token: int) -> CoverageState:
        """Return the state of the text with one more token."""
        missing = tuple(other for other in self.missing if other != token)
        return replace(self, left=self.left - 1 if self.left else 0, missing=missing)

    def apply(self, logits: Tensor) -> None:
        """Forbid numbers that stand there or mean nothing, ends that come too soon, and all but numbers at last."""
        missing = list(self.missing)
        barred = {*self.coverage.wanted, *self.coverage.others} - {*missing}
        barred |= {*self.ends} if missing else set()
        if missing and self.left and self.left <= len(missing):
            rest = logits[missing].clone()
            logits.fill_(-torch.inf)
            logits[missing] = rest
        elif barred:
            logits[sorted(token for token in barred if token < len(logits))] = -torch.inf


class Lexicalised(Tokenizer):
    """A tokenizer that reads keywords with their numbers behind a prompt, and spells each number as its keyword.

    Args:
        own: the model's tokenizer.
        numbers: token of each number.
        keywords: what each stands for.
    """

    def __init__(self, own: Tokenizer, numbers: Sequence[int], keywords: Sequence[str]) -> None:
        self.__dict__.update(copy.copy(own).__dict__)
        self._source = template_source(keywords)
        self._spelled = {number: own.encode(word, False) for number, word in zip(numbers, keywords, strict=True)}

    def encode(self, text: str, is_special: bool = True) -> list[int]:
        """Return the ids of a prompt with the keywords behind it, or of a text that is written."""
        return Tokenizer.encode(self, f"{text} {self._source}".strip() if is_special else text, is_special)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of ids, keywords in the place of their numbers."""
        pieces, run = list[str](), list[int]()
        for token in [*ids, None]:
            if token is not None and token not in self._spelled:
                run.append(token)
                continue
            # Special tokens cut off what follows with a space; before a mark it is none, and may yet come to be so.
            text = self._behind(run, skip_special)
            pieces.append(re.sub(r"^ (?=[.,!?;:']|$)", "", text) if pieces else text)
            run = []
            if token is not None:
                pieces.append(self._behind(self._spelled[token], skip_special))
        return "".join(pieces).removeprefix(" ")

    def _behind(self, ids: Sequence[int], skip_special: bool) -> str:
        """Return the text of ids that are not the first."""
        lead = next(iter(self._spelled.values()))
        known = Tokenizer.decode(self, lead, skip_special)
        return Tokenizer.decode(self, [*lead, *ids], skip_special)[len(known) :]


@dataclass(frozen=True)
class Template(Control):
    """Keywords parted by "+", each of which the text holds once, where the model put its number."""

    name: ClassVar[str] = "template"
    summary: ClassVar[str] = "words that the text will hold, in an order that the model chooses (AutoTemplate)"
    is_model: ClassVar[bool] = True
    keywords: str = setting("", note="parted by +")

    @cached_property
    def words(self) -> list[str]:
        """The keywords.

        Raises:
            ConfigError: one is empty, or there are more than a model has numbers.
        """
        found = [word.strip() for word in self.keywords.split("+")] if self.keywords else []
        if not all(found) or len(found) > MOST:
            raise ConfigError(f"{self.keywords!r} is no list of 1 to {MOST} keywords.", "Part them by +: dog+park.")
        return found

    def numbers(self, site: Site) -> list[int]:
        """Return the token of each number that the model has.

        Raises:
            CapabilityError: it has none, or fewer than keywords, and so was not trained on templates.
        """
        known = site.tokenizer.token_id if site.tokenizer is not None else lambda _: None
        found = [token for number in range(MOST) if (token := known(placeholder(number))) is not None]
        if len(found) < len(self.words) or not site.target.capabilities.is_encoder_decoder:
            hint = "Train one: outpace train story-templates."
            raise CapabilityError(f"{site.name} writes no templates of {len(self.words)} keywords.", hint)
        return found

    def tokenizer(self, site: Site) -> Tokenizer | None:
        """Return the tokenizer that writes keywords for numbers."""
        if not self.words or site.tokenizer is None:
            return site.tokenizer
        return Lexicalised(site.tokenizer, self.numbers(site)[: len(self.words)], self.words)

    def guide(self, site: Site) -> Coverage | None:
        """Return what has every number written once; None where there are no keywords."""
        if not self.words:
            return None
        numbers, size = self.numbers(site), len(self.words)
        return Coverage(tuple(numbers[:size]), tuple(numbers[size:]))
