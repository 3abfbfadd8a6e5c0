"""Words that the text will hold, and what it will be like, seen ahead by a hidden Markov model.

Papers: GeLaTo, Zhang, Dang, Peng, Van den Broeck (2023), "Tractable Control for Autoregressive Language Generation",
    arXiv 2304.07438 (keywords); TRACE, Yidou-Weng, Wang, Van den Broeck (2025), "TRACE Back from the Future",
    arXiv 2504.18535 (attributes).
Guarantee: a text that ends by an end token or at its greatest length holds every keyword, drafted or not; the chances
    are exact under the hidden Markov model. `weight=0` is plain decoding, token for token.
Cost: once per request a table of (tokens to come x automaton states x S) numbers; per token one product of S x S and
    one of S x the tokens within `reach` of the likeliest. No forward.
Differences: the tokens further than `reach` below the likeliest share one chance (the keywords' own tokens and end
    tokens never do): with `reach=inf` each has its own, as in the papers. A keyword may be spelled in several ways, and
    counts where it is written after the prompt. Stop strings know nothing of keywords.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from outpace.errors import ConfigError
from outpace.laws.automaton import Automaton
from outpace.laws.base import Control, Site
from outpace.laws.future import Future
from outpace.laws.markov import Floats, Markov, read_factors
from outpace.papers import Paper
from outpace.sampling.settings import Sampling
from outpace.setting import setting

__all__ = ["Hmm"]

PAPERS = (
    Paper(
        "Tractable Control for Autoregressive Language Generation",
        "Zhang, Dang, Peng, Van den Broeck",
        2023,
        "2304.07438",
        320,
        command='outpace generate "Once upon a time" --law hmm:keywords=dog+park',
    ),
    Paper(
        "TRACE Back from the Future: A Probabilistic Reasoning Approach to Controllable Language Generation",
        "Yidou-Weng, Wang, Van den Broeck",
        2025,
        "2504.18535",
        310,
        "Detoxification and the personas of the paper were not run.",
        command="python -m outpace.bench.laws --attribute DIR",
    ),
)


@dataclass(frozen=True)
class Hmm(Control):
    """Keywords parted by "+" (spellings of one by "|"), and an attribute's factors, under a distilled model."""

    name: ClassVar[str] = "hmm"
    summary: ClassVar[str] = "words that the text will hold, and its attribute, by exact look-ahead"
    files: ClassVar[tuple[str, ...]] = ("model", "attribute")
    keywords: str = setting("", note="parted by +")
    attribute: str = setting("", note="a directory of outpace.train.attribute")
    model: str = "auto"
    weight: float = setting(1.0, least=0, is_finite=True)
    reach: float = setting(6.0, above=0)

    def words(self, site: Site) -> list[list[list[int]]]:
        """Return the tokens of every keyword's spellings, as they stand in running text and at its beginning.

        Raises:
            ConfigError: a keyword without a letter, or no tokenizer to spell it with.
        """
        if self.keywords and site.tokenizer is None:
            raise ConfigError("Keywords need a tokenizer.", "Use a model that has one.")
        found = []
        for word in self.keywords.split("+") if self.keywords else ():
            spellings = [text.strip() for text in word.split("|")]
            if not all(spellings):
                raise ConfigError(f"A keyword in {self.keywords!r} is empty.", "Part keywords by +, such as dog+park.")
            assert site.tokenizer is not None
            texts = [lead + text for text in spellings for lead in (" ", "")]
            found.append([site.tokenizer.encode(text, is_special=False) for text in texts])
        return found

    def guide(self, site: Site) -> Future | None:
        """Return the look-ahead; None where nothing is asked for, or with no weight."""
        words = self.words(site)
        if self.weight == 0 or not (words or self.attribute):
            return None
        model = Markov.read(site.companion("hmm") if self.model == "auto" else Path(self.model))
        size = site.target.capabilities.vocab_size
        if model.vocab_size != size:
            raise ConfigError(
                f"The hidden Markov model knows {model.vocab_size} tokens, the target {size}.",
                "Distil it from the target.",
            )
        what = f"the keywords {self.keywords.replace('+', ', ')}" if words else "the attribute"
        return Future(model, Automaton.of_words(words), self._factors(model), self.weight, self.reach, what)

    def _factors(self, model: Markov) -> Floats | None:
        if not self.attribute:
            return None
        factors = read_factors(Path(self.attribute))
        if len(factors) != model.vocab_size:
            raise ConfigError(
                f"The attribute's classifier knows {len(factors)} tokens, the model {model.vocab_size}.",
                "Train it on the target's own texts.",
            )
        return factors

    def check_beside(self, settings: Sampling, site: Site) -> None:
        """Refuse keywords of which no spelling may be written."""
        barred = [list(word) for word in settings.bad_words] + [[token] for token in settings.suppress_tokens]
        named = self.keywords.split("+") if self.keywords and self.weight else []
        for word, spellings in zip(named, self.words(site), strict=False):
            if all(any(_holds(spelling, part) for part in barred) for spelling in spellings):
                raise ConfigError(f"The keyword {word!r} is wanted and forbidden.", "Leave out one of both.")


def _holds(tokens: list[int], part: list[int]) -> bool:
    return any(tokens[at : at + len(part)] == part for at in range(len(tokens)))
