"""A language model beside another model: in every step of a search (shallow fusion), or over its best texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outpace.api.scoring import check_causal, score_tokens
from outpace.errors import CapabilityError, ConfigError
from outpace.models.fused import FusedTarget
from outpace.text.fingerprint import fingerprint

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = ["Candidate", "fuse", "read_nbest", "rescore_nbest"]

_BAR = " ||| "


def fuse(lm: LanguageModel, other: LanguageModel, weight: float) -> LanguageModel:
    """Return a model whose next-token scores are summed with `weight` times those of a causal language model.

    A search sums them as they are; with a weight of 0 its texts and scores are those without the language model.

    Raises:
        CapabilityError: the models have other vocabularies, or one does not write from left to right.
        ConfigError: the weight is no finite number.
    """
    spelled = {fingerprint(model.tokenizer) for model in (lm, other) if model.tokenizer is not None}
    if len(spelled) > 1 and lm.target.capabilities.vocab_size == other.target.capabilities.vocab_size:
        raise CapabilityError(
            "The language model's tokens are spelled otherwise than the target's.",
            "Train it in the target's vocabulary (`outpace train english-no-positions`).",
        )
    fused = lm.ending_with(lm.end_tokens)
    fused.target = FusedTarget(lm.target, other.target, weight, first_token(other))
    return fused


def first_token(lm: LanguageModel) -> int:
    """Return what a text begins with under a language model: its start token, or what ends texts.

    Raises:
        ConfigError: it has neither.
    """
    begins = None if lm.tokenizer is None else lm.tokenizer.bos_id
    if begins is None and not lm.end_tokens:
        raise ConfigError("The language model has no token that begins a text.", "Use one with an end token.")
    return lm.end_tokens[0] if begins is None else begins


@dataclass(frozen=True, slots=True)
class Candidate:
    """A line of an n-best list.

    Attributes:
        source: what names its source, as the line has it.
        text: the candidate.
        features: fields between the text and the score, as the line has them.
        score: what it was ranked by, larger is better.
    """

    source: str
    text: str
    features: tuple[str, ...]
    score: float

    def __str__(self) -> str:
        return _BAR.join([self.source, self.text, *self.features, f"{self.score:.4f}"])


def read_nbest(text: str, name: str) -> list[Candidate]:
    """Return the candidates of an n-best list: `source ||| text ||| score` a line, with features before the score.

    Raises:
        ConfigError: a line holds something else; `name` is the file's.
    """
    found = []
    for number, line in enumerate(text.rstrip("\n").split("\n"), 1):
        fields = [field.strip() for field in line.split("|||")]
        try:
            if len(fields) < 3 or not fields[1]:
                raise ValueError
            score = float(fields[-1])
            if score - score != 0:
                raise ValueError
        except ValueError as error:
            told = f"Line {number} of {name} is no candidate."
            raise ConfigError(told, "Write a source's number ||| a text ||| a score.") from error
        found.append(Candidate(fields[0], fields[1], tuple(fields[2:-1]), score))
    return found


def rescore_nbest(lm: LanguageModel, candidates: Sequence[Candidate], weight: float) -> list[Candidate]:
    """Return candidates with `score + weight * log p(text)`, the best of each source first; sources keep their order.

    The log-probability, of the text and its end, becomes one more feature.

    Args:
        lm: a causal model.
        candidates: of any number of sources.
        weight: of its log-probability.

    Raises:
        CapabilityError: the model does not write from left to right.
        ConfigError: the weight is no finite number, or a text is longer than the context.
    """
    check_causal(lm.target.capabilities)
    if weight - weight != 0:
        raise ConfigError(f"The weight of the language model is {weight}.", "Give a finite number.")
    begins, most = first_token(lm), lm.target.capabilities.max_positions
    found = list[Candidate]()
    for one in candidates:
        ids = [begins, *lm.encode(one.text, is_special=False), *lm.end_tokens[:1]]
        if len(ids) > most:
            raise ConfigError(f"A candidate has {len(ids)} tokens, the model's context {most}.", "Shorten it.")
        told = score_tokens(lm.target, ids).log_prob
        found.append(Candidate(one.source, one.text, (*one.features, f"{told:.4f}"), one.score + weight * told))
    order = {source: at for at, source in enumerate(dict.fromkeys(one.source for one in candidates))}
    return sorted(found, key=lambda one: (order[one.source], -one.score))
