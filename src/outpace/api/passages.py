"""A language model as a search engine: it writes n-grams of a collection for a query, and they point to passages.

Source: Bevilacqua et al. (2022), arXiv 2204.10628 (SEAL).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from outpace.errors import CapabilityError, ConfigError
from outpace.papers import Paper
from outpace.retrieve.fm_index import FmIndex
from outpace.retrieve.ngrams import Found, NGram, best_passages, weigh
from outpace.retrieve.substrings import Substrings

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = ["PAPERS", "PROMPT", "PassageFinder"]

PAPERS = (
    Paper(
        "Autoregressive Search Engines: Generating Substrings as Document Identifiers",
        "Bevilacqua et al.",
        2022,
        "2204.10628",
        302,
        "A model trained to write a query's n-grams, and the rule that overlapping occurrences count once.",
        'outpace retrieve "Who went to the park?" --corpus CORPUS',
    ),
)
PROMPT = "Question: {query}\nAnswer:"


class PassageFinder:
    """A collection, indexed in a model's tokens.

    Args:
        lm: a causal model with a tokenizer.
        passages: their texts.
        prompt: what the model continues with n-grams of the collection; {query} stands for the query.
        beams: n-grams that are written side by side, in pairs: beams of one search alone would differ in their ends.
        length: tokens of each; all of its beginnings count, too.

    Raises:
        CapabilityError: the model is not causal, or has no tokenizer.
        ConfigError: the collection is empty, a number is below 1, or the prompt leaves the query out.
    """

    def __init__(
        self, lm: LanguageModel, passages: Sequence[str], prompt: str = PROMPT, beams: int = 24, length: int = 8
    ) -> None:
        offered = lm.target.capabilities
        if offered.attention != "causal" or offered.is_encoder_decoder or lm.tokenizer is None:
            raise CapabilityError("Passages are found by a causal model with a tokenizer.", "Use stories or smollm2.")
        if "{query}" not in prompt:
            raise ConfigError("The prompt leaves the query out.", "Write {query} where it belongs.")
        if length < 1:
            raise ConfigError(f"length is {length}.", "length must be 1 or more.")
        if beams < 2 or beams % 2:
            raise ConfigError(f"beams is {beams}.", "beams must be an even number, 2 or more.")
        self._lm, self._prompt, self._beams, self._length = lm, prompt, beams, length
        # Behind a prompt, words begin with a space.
        encoded = [lm.encode(" " + text, is_special=False) for text in passages]
        self.index = FmIndex(encoded, offered.vocab_size)
        self._constraint = Substrings(self.index, offered.vocab_size)

    def ngrams(self, query: str) -> list[NGram]:
        """Return the n-grams that the model writes for a query, the heaviest first."""
        options = {"beams": self._beams, "n_best": self._beams, "groups": max(1, self._beams // 2)}
        given: dict[str, Any] = {"method": "diverse-beam-search", "options": options, "constraint": self._constraint}
        given |= {"max_tokens": self._length, "ignore_eos": True, "record": ["log_probs"], "sampling": "plain"}
        found = self._lm.generate(self._prompt.replace("{query}", query), **given)
        texts = found if isinstance(found, list) else [found]
        return weigh(self.index, [(text.tokens, text.log_probs) for text in texts])

    def find(self, query: str, count: int = 10) -> list[Found]:
        """Return the best passages for a query, best first; fewer, where the n-grams point to fewer."""
        return best_passages(self.index, self.ngrams(query), count)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of an n-gram."""
        assert self._lm.tokenizer is not None  # or there had been no collection
        return self._lm.tokenizer.decode(tokens)
