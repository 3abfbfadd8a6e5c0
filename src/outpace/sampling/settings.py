"""Sampling settings: what a user may ask of the law that tokens are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict

from outpace.arguments import ids, number, settle, some_ids, whole
from outpace.errors import ConfigError
from outpace.setting import Option, check, setting

if TYPE_CHECKING:
    from outpace.constrain.canvas import CanvasConstraint
    from outpace.constrain.protocol import Constraint
    from outpace.sampling.guide import Walks

__all__ = ["Sampling", "SamplingOptions"]

_TOKENS = ("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id")
_COLDEST = 1e-30  # logits divided by less might overflow


def _law(default: Any, text: str, **bounds: Any) -> Any:
    """Return a finite number that the command line takes, and leaves to the model's files where it is not given."""
    return setting(default, is_finite=True, option=Option(text), **bounds)


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as arguments by name; None = not given. A test holds the two together."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    bad_words: Sequence[Sequence[int]] | None
    min_tokens: int | None
    constraint: Constraint | None
    canvas_constraint: CanvasConstraint | None
    min_length: int | None
    no_repeat_ngram_size: int | None
    encoder_no_repeat_ngram_size: int | None
    encoder_repetition_penalty: float | None
    sequence_bias: Mapping[tuple[int, ...], float] | None
    suppress_tokens: Sequence[int] | None
    begin_suppress_tokens: Sequence[int] | None
    forced_bos_token_id: Sequence[int] | None
    forced_eos_token_id: Sequence[int] | None
    exponential_decay_length_penalty: tuple[int, float] | None
    laws: Sequence[Walks] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How logits become a law.

    Sequence and encoder biases come first, then penalties and `logit_bias`, then what is forbidden (n-grams, bad words,
    ends that come too early, what the constraint rules out), then what is forced, then what is suppressed; the cuts
    (`top_k`, `top_p`, `min_p`, `typical_p`) come last. A text's prompt is, in an encoder-decoder, what its decoder
    starts with.

    Attributes:
        temperature: 0 (or below 1e-30) = greedy; else divides the logits.
        top_k: keep the k most likely tokens; 0 = all.
        top_p: keep the fewest likely tokens whose mass reaches p; 1 = all.
        min_p: keep tokens at least min_p times as likely as the likeliest; 0 = all.
        typical_p: keep the tokens nearest the entropy until their mass reaches p (Meister et al. 2022); 1 = all.
        repetition_penalty: divide positive and multiply negative logits of tokens seen in prompt or output
            (Keskar et al. 2019); 1 = none.
        presence_penalty: subtract once from tokens already written (output only).
        frequency_penalty: subtract per occurrence in the output.
        logit_bias: added to single tokens' logits.
        bad_words: token sequences that may not be completed.
        min_tokens: end tokens are impossible before this many tokens were written.
        constraint: what the written text must look like (see `outpace.constrain`); None = anything. End tokens are
            possible only where the text is complete, and a text to which nothing may be added ends at once.
        canvas_constraint: the same for a text that is written in any order (see `outpace.constrain.canvas`).
        min_length: end tokens are impossible before the text has this many tokens, prompt included.
        no_repeat_ngram_size: no sequence of this many tokens stands twice in prompt and text; 0 = off.
        encoder_no_repeat_ngram_size: none of the source (of the prompt, without an encoder) is written; 0 = off.
        encoder_repetition_penalty: multiply positive and divide negative logits of the source's tokens; 1 = none.
        sequence_bias: token sequences, and what is added to the logit of the last one where the others stand before it.
        suppress_tokens: are never written.
        begin_suppress_tokens: are not written first (behind a forced first token: not second).
        forced_bos_token_id: the only tokens possible where a text has one token (an encoder-decoder's start token).
        forced_eos_token_id: the only tokens possible as the last one before the text's greatest length.
        exponential_decay_length_penalty: (start, factor); end tokens gain, after `start` written tokens, a share of
            their logit's size that grows by this factor per token.
        laws: what else changes the next token's logits, one behind the other, behind penalties and biases and before
            what is forbidden; `generate(law=...)` makes them by name (see `outpace.laws`).

    Raises:
        ConfigError: a value is out of range; the sentence names it.
    """

    temperature: float = _law(0.0, "0 = always the likeliest token.", least=0, note="0 = greedy")
    top_k: int = _law(0, "Keep the K likeliest tokens; 0 = all.", least=0, note="0 = off")
    top_p: float = _law(1.0, "Keep the likeliest tokens up to mass P.", above=0, most=1)
    min_p: float = _law(0.0, "Keep tokens M times as likely as the likeliest.", least=0, most=1)
    typical_p: float = _law(1.0, "Keep the most typical tokens up to mass P.", above=0, most=1)
    repetition_penalty: float = _law(1.0, "Divides logits of tokens seen; 1 = none.", above=0)
    presence_penalty: float = _law(0.0, "Subtracted once from tokens written.")
    frequency_penalty: float = _law(0.0, "Subtracted per time a token was written.")
    logit_bias: Mapping[int, float] = setting(
        factory=dict, option=Option("Added to a token's logit (repeatable).", metavar="ID=VALUE")
    )
    bad_words: Sequence[Sequence[int]] = setting(
        (), option=Option("May not be written (repeatable).", "--bad-word", metavar="TEXT")
    )
    min_tokens: int = _law(0, "No end token before this many tokens.", least=0)
    constraint: Constraint | None = None
    canvas_constraint: CanvasConstraint | None = None
    min_length: int = setting(0, least=0)
    no_repeat_ngram_size: int = setting(0, least=0)
    encoder_no_repeat_ngram_size: int = setting(0, least=0)
    encoder_repetition_penalty: float = setting(1.0, above=0, is_finite=True)
    sequence_bias: Mapping[tuple[int, ...], float] = field(default_factory=dict)
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    forced_bos_token_id: Sequence[int] = ()
    forced_eos_token_id: Sequence[int] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    laws: Sequence[Walks] = ()

    def __post_init__(self) -> None:
        settle(self)
        self._read_tokens()
        check(self)
        if any(not math.isfinite(bias) for bias in self.logit_bias.values()):
            raise ConfigError("A logit bias is not a finite number.", "Use bad_words to forbid a token outright.")
        if any(len(word) == 0 for word in self.bad_words):
            raise ConfigError("A bad word is empty.", "Give each bad word at least one token.")
        self._check_tokens()
        if not isinstance(self.laws, list | tuple) or not all(hasattr(law, "at") for law in self.laws):
            raise ConfigError(f"laws is a {type(self.laws).__name__}.", "Give a list of them, or use law=NAME.")
        if self.constraint is not None and not hasattr(self.constraint, "start"):
            raise ConfigError(
                f"constraint is a {type(self.constraint).__name__}.", "Make one with outpace.constrain.compile."
            )

    def _check_tokens(self) -> None:
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced = getattr(self, name)
            if forced and set(forced) <= set(self.suppress_tokens):
                raise ConfigError(
                    f"Every token of {name} is also in suppress_tokens.", "A token cannot be forced and suppressed."
                )
        if any(len(words) == 0 or math.isnan(bias) for words, bias in self.sequence_bias.items()):
            raise ConfigError("A sequence bias has no tokens, or is not a number.", "Give tokens and a number.")
        decay = self.exponential_decay_length_penalty
        if decay is not None and not (decay[0] >= 0 and 0 < decay[1] < math.inf):
            raise ConfigError(
                f"exponential_decay_length_penalty is {decay}.", "Give a start of 0 or more and a factor above 0."
            )

    def within(self, vocab_size: int) -> Sampling:
        """Return the settings for a vocabulary: ids that do not exist need not be suppressed.

        Raises:
            ConfigError: an id that is forced, biased or part of a bad word does not exist.
        """
        named: dict[str, Sequence[Sequence[int]]] = {
            "A logit bias": [tuple(self.logit_bias)],
            "A bad word": self.bad_words,
            "A forced or biased token": [*self.sequence_bias, self.forced_bos_token_id, self.forced_eos_token_id],
        }
        for what, words in named.items():
            if any(not 0 <= token < vocab_size for word in words for token in word):
                raise ConfigError(f"{what} is outside the vocabulary.", f"Ids go from 0 to {vocab_size - 1}.")
        if not self.suppress_tokens and not self.begin_suppress_tokens:
            return self
        always, first = (
            [token for token in tokens if 0 <= token < vocab_size]
            for tokens in (self.suppress_tokens, self.begin_suppress_tokens)
        )
        return replace(self, suppress_tokens=always, begin_suppress_tokens=first)

    def _read_tokens(self) -> None:
        """Bring everything that names tokens to ints and floats."""
        if not isinstance(self.logit_bias, Mapping):
            raise ConfigError(f"logit_bias is a {type(self.logit_bias).__name__}.", "Give a dict from id to number.")
        bias = {_token(token): number("a logit bias", value) for token, value in self.logit_bias.items()}
        words = self.bad_words.tolist() if hasattr(self.bad_words, "tolist") else self.bad_words
        if isinstance(words, (str, bytes, Mapping)) or not isinstance(words, Sequence):
            raise ConfigError(f"bad_words is a {type(words).__name__}.", "Give a list of lists of token ids.")
        object.__setattr__(self, "logit_bias", bias)
        object.__setattr__(self, "bad_words", [ids("bad_words", word) for word in words])
        for name in _TOKENS:
            object.__setattr__(self, name, some_ids(name, getattr(self, name)))
        object.__setattr__(self, "sequence_bias", _sequence_bias(self.sequence_bias))
        decay = self.exponential_decay_length_penalty
        if decay is not None:
            object.__setattr__(self, "exponential_decay_length_penalty", _decay(decay))

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < _COLDEST

    @property
    def is_plain(self) -> bool:
        """Whether the model's own likeliest token is always taken."""
        return self.is_greedy and not (self.is_stateful or self.logit_bias or self.suppress_tokens)

    @property
    def is_stateful(self) -> bool:
        """Whether the law at a position depends on the tokens before it, beyond the model's logits."""
        penalties = self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return (
            bool(penalties or self.bad_words)
            or self.min_tokens > 0
            or self.constraint is not None
            or bool(self.laws)
            or self.min_length > 0
            or self.no_repeat_ngram_size > 0
            or self.encoder_no_repeat_ngram_size > 0
            or self.encoder_repetition_penalty != 1
            or bool(self.sequence_bias or self.begin_suppress_tokens)
            or bool(self.forced_bos_token_id or self.forced_eos_token_id)
            or self.exponential_decay_length_penalty is not None
        )

    @property
    def names_tokens(self) -> bool:
        """Whether a processor asks which token a logit belongs to; else some tokens' logits can stand by themselves."""
        return self.is_stateful or bool(self.logit_bias or self.suppress_tokens)


def _sequence_bias(given: Any) -> dict[tuple[int, ...], float]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"sequence_bias is a {type(given).__name__}.", "Give a dict from a tuple of ids to a number.")
    return {tuple(some_ids("sequence_bias", words)): number("a sequence bias", bias) for words, bias in given.items()}


def _decay(given: Any) -> tuple[int, float]:
    name = "exponential_decay_length_penalty"
    pair = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(pair, (str, bytes)) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise ConfigError(f"{name} is a {type(given).__name__}.", "Give a start and a factor.")
    return whole(name, pair[0]), number(name, pair[1])


def _token(key: Any) -> int:
    """Return the token that a key of `logit_bias` names; JSON has only text for keys."""
    return whole("a token of logit_bias", int(key) if isinstance(key, str) and key.isdecimal() else key)
