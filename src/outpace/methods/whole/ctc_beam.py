"""Find a likely text of CTC by a beam over prefixes, with a language model of n-grams and further features.

Paper: Kasner, Libovický and Helcl (2020), arXiv 2004.03227.
Guarantee: approximate: another text than that of the likeliest symbols.
Cost: 1 pass of the network; a search of as many steps as there are places, most of them with one or two symbols.
Differences: the weights are settings, not learnt by a perceptron; the feature against trailing blanks is left out,
    as the ratio of blanks includes them. Symbols less likely than `least` are not tried, so sure places cost little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.methods.whole.base import WholeMethod
from outpace.models.nar.language import read_language
from outpace.models.nar.model import NarModel, outputs_of
from outpace.models.nar.paths import Scorer
from outpace.models.nar.prefixes import Features, prefix_beam
from outpace.models.one_pass import end_law
from outpace.papers import Paper
from outpace.setting import setting
from outpace.types import Context

__all__ = ["CtcBeamSearch"]


@dataclass(frozen=True)
class CtcBeamSearch(WholeMethod):
    """Prefix beam search.

    Attributes:
        beam: prefixes kept at each place.
        candidates: symbols tried at each place.
        least: probability below which a symbol is not tried.
        language: a text file, one sentence a line, from which the n-grams are counted; "" = no language model.
        weight: of the language model's log-probability, the text's end included.
        bonus: nats for each token.
        blanks: nats against each place per token, beyond `ratio`, that says nothing new.
        ratio: such places per token that cost nothing.
    """

    beam: int = setting(5, least=1)
    candidates: int = setting(5, least=1)
    least: float = setting(1e-3, least=0, most=1)
    language: str = ""
    weight: float = setting(0.2, least=0)
    bonus: float = 0.0
    blanks: float = setting(0.0, least=0)
    ratio: float = setting(2.0, least=0)

    name: ClassVar[str] = "ctc-beam-search"
    draws: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = ("ctc",)
    summary: ClassVar[str] = "Finds a likely text of CTC by a beam over prefixes, with a model of n-grams."
    paper: ClassVar[Paper] = Paper(
        "Improving Fluency of Non-Autoregressive Machine Translation",
        "Kasner et al.",
        2020,
        "2004.03227",
        9,
        "Weights learnt by a perceptron, and the feature against trailing blanks.",
        'outpace generate "Ein Mann fährt Fahrrad." --model translate-fast --method ctc-beam-search',
    )

    def choose(self, model: NarModel, context: Context) -> Sequence[Tensor]:
        """Search each row by itself; see `WholeMethod.choose`."""
        assert context.cache is not None
        is_place, (said, *_) = outputs_of(context.cache)
        scorer, vocab, found = self._scorer(model, context), model.capabilities.vocab_size, []
        features = Features(self.weight, self.bonus, self.blanks, self.ratio)
        for row, size in enumerate(is_place.sum(1).tolist()):
            texts = prefix_beam(said[row, :size], self.beam, self.candidates, self.least, scorer, features)
            tokens = [token for token in texts[0][1] if token != model.end]
            found.append(torch.cat([end_law(vocab, token, model.dtype) for token in (*tokens, model.end)]))
        return found

    def _scorer(self, model: NarModel, context: Context) -> Scorer | None:
        if not self.language:
            return None
        if (tokenizer := context.tokenizers.get("target")) is None:
            raise ConfigError("The model has no tokenizer to read a text with.", "Leave `language` out.")
        return read_language(self.language, tokenizer, model.capabilities.vocab_size, model.end)
