"""Regular expressions, JSON schemas and Lark grammars as constraints, through the library llguidance.

A token is allowed if some text of the grammar begins with what is written and the token's bytes: the whole of that
set, not only the usual spelling of a forced word, so that masks depend on nothing but the grammar and the text.
End tokens and padding of the vocabulary are never allowed; the sampler adds end tokens where a text is complete.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from outpace.constrain.reading import Asked, allows_nothing, library, read_asked
from outpace.constrain.vocabulary import vocabulary
from outpace.errors import ConfigError

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["Compiler", "TextConstraint", "TextState", "check", "compile"]

# By default the library allows only the tokenizer's own spelling where the grammar leaves no choice.
_EVERY_SPELLING = '\n%llguidance {"no_forcing": true}\n'

_TRIALS = 128  # tokens tried when a constraint is compiled, to see whether a text can end: a few milliseconds


def compile(tokenizer: Tokenizer, *, vocab_size: int | None = None, **asked: Unpack[Asked]) -> TextConstraint:
    """Return the constraint of a regular expression, a JSON schema or a grammar in Lark's syntax (one of them).

    Args:
        tokenizer: the model's.
        vocab_size: the model's, which may be padded; None = the tokenizer's.
        **asked: regex, json_schema or grammar; see `Asked`.

    Raises:
        ConfigError: llguidance is missing, the tokenizer has no bytes of its own, or the constraint cannot be read or
            allows no text.
    """
    return Compiler(tokenizer, vocab_size).compile(**asked)


def check(**asked: Unpack[Asked]) -> None:
    """Raise what `compile` would raise about the text of a constraint; needs no tokenizer.

    Raises:
        ConfigError: llguidance is missing, several are given, or it cannot be read.
    """
    kind, wrapped = _wrapped(asked)
    fault = library("llguidance", "Constraints").LLMatcher.validate_grammar(wrapped)
    if fault:
        raise _unreadable(kind, fault)


class Compiler:
    """Compiles constraints over one vocabulary, which is read once.

    Args:
        tokenizer: the model's.
        vocab_size: the model's V; None = the tokenizer's.

    Raises:
        ConfigError: llguidance is missing, or the tokenizer has no bytes of its own.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None = None) -> None:
        guidance = library("llguidance", "Constraints")
        self.vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        words = _Words(tokenizer, self.vocab_size)
        self._vocabulary = guidance.LLTokenizer(guidance.TokenizerWrapper(words))

    def compile(self, **asked: Unpack[Asked]) -> TextConstraint:
        """Return a constraint; arguments and errors as for `outpace.constrain.compile`."""
        kind, wrapped = _wrapped(asked)
        matcher = library("llguidance", "Constraints").LLMatcher(self._vocabulary, wrapped, log_level=0)
        if matcher.is_error():
            raise _unreadable(kind, matcher.get_error())
        constraint = TextConstraint(kind, matcher, self.vocab_size)
        start = constraint.start()
        if not bool(start.allowed().any()) or not _can_end(start):
            raise allows_nothing(kind, start.is_complete)
        return constraint


@dataclass(frozen=True, slots=True, eq=False)
class TextConstraint:
    """A compiled constraint.

    Attributes:
        kind: what it was made of: "regular expression", "JSON schema" or "grammar".
        matcher: the library's matcher of an empty text; never advanced.
        vocab_size: V.
    """

    kind: str
    matcher: Any
    vocab_size: int

    def start(self) -> TextState:
        """Return the state of an empty text."""
        return TextState(self.matcher.deep_copy(), [], self.vocab_size)


class TextState:
    """Where a text stands in a `TextConstraint`; see `ConstraintState`."""

    def __init__(self, matcher: Any, tokens: list[int], vocab_size: int) -> None:
        self.tokens = tokens
        self._matcher, self._vocab_size = matcher, vocab_size
        self._allowed: Tensor | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def is_final(self) -> bool:
        """Whether the text may end here and nothing may follow."""
        return bool(self._matcher.is_accepting() and self._matcher.is_stopped())

    def allowed(self) -> Tensor:
        """Return the mask, [V] bool; nothing is allowed past the end, or where the grammar became too complex."""
        if self._allowed is None:
            # Computing a mask that turns out empty puts a matcher into an error state for good.
            packed = np.frombuffer(self._matcher.deep_copy().compute_bitmask(), np.uint8)
            bits = np.unpackbits(packed, count=self._vocab_size, bitorder="little")
            self._allowed = torch.from_numpy(bits.view(np.bool_))
        return self._allowed

    def push(self, token: int) -> bool:
        """Append a token, unless it is forbidden."""
        if not 0 <= token < self._vocab_size or self._matcher.try_consume_tokens([token]) != 1:
            return False
        self.tokens.append(token)
        self._allowed = None
        return True

    def back(self, count: int) -> None:
        """Take the last tokens back."""
        if count > 0:
            self._matcher.rollback(count)
            del self.tokens[-count:]
            self._allowed = None

    def fork(self) -> TextState:
        """Return an independent copy."""
        return TextState(self._matcher.deep_copy(), list(self.tokens), self._vocab_size)


def _can_end(start: TextState) -> bool:
    """Return False if a text can be shown never to be complete: every way on was tried, and there were few."""
    waiting, left = [start], _TRIALS
    while waiting:
        state = waiting.pop()
        if state.is_complete:
            return True
        tokens = state.allowed().nonzero().flatten().tolist()
        left -= len(tokens)
        if left < 0:
            return True
        for token in tokens:
            fork = state.fork()
            fork.push(token)
            waiting.append(fork)
    return False


class _Words:
    """A vocabulary in the form that the library reads; its end token lies behind the last id, so that none is ours."""

    eos_token_id = None
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokens, self.special_token_ids = vocabulary(tokenizer, vocab_size)
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.decode() if isinstance(text, bytes) else text, is_special=False)


def _wrapped(asked: Asked) -> tuple[str, str]:
    """Return what kind of constraint is given, and its grammar in the library's form."""
    kind, found = read_asked(asked)
    lark = found if isinstance(found, str) else found.to_lark()
    return kind, json.dumps({"grammars": [{"lark_grammar": lark + _EVERY_SPELLING}]})


def _unreadable(kind: str, fault: str) -> ConfigError:
    """Return the library's complaint as one sentence: its first line, or the last "error:" that a regex adds."""
    lines = [line.strip() for line in fault.splitlines()]
    details = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    first = lines[0].removeprefix("at ").split("failed to compile JSON schema: ")[-1]
    reason = details[-1] if details else first
    return ConfigError(f"The {kind} cannot be used: {reason.rstrip('.')}.", _HINTS[kind])


_HINTS = {
    "regular expression": "Lookaround and back references are not known; escape characters that stand for themselves.",
    "JSON schema": "Leave out, or correct, the keyword that is named.",
    "grammar": "Positions are LINE(COLUMN); rules are in Lark's syntax and begin at `start`.",
}
