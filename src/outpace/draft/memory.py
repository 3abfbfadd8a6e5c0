"""What outlives a run: objects that a caller passes as `Request.memory`, bound to one vocabulary at first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from outpace.draft.datastore import vocabulary_mark
from outpace.errors import ConfigError
from outpace.types import Context

__all__ = ["Memory", "claim"]


class Memory:
    """Base of all memories.

    Attributes:
        vocab_size: of the vocabulary whose ids the memory holds; None until first used.
    """

    def __init__(self) -> None:
        self.vocab_size: int | None = None
        self._mark: bytes | None = None  # which tokenizer
        self._highest = -1  # of the ids that the caller added

    def note(self, tokens: Sequence[int]) -> None:
        """Check ids that the caller adds.

        Raises:
            ConfigError: an id is negative, or outside the vocabulary that the memory is tied to.
        """
        highest = max(tokens, default=-1)
        if min(tokens, default=0) < 0 or (self.vocab_size is not None and highest >= self.vocab_size):
            raise ConfigError(
                f"A text for the {type(self).__name__} holds an id outside the vocabulary.",
                "Encode it with the model's own tokenizer.",
            )
        self._highest = max(self._highest, highest)

    def bind(self, vocab_size: int, mark: bytes | None = None) -> None:
        """Tie the memory to a vocabulary.

        Args:
            vocab_size: its size.
            mark: what tells its tokenizer from others, None = unknown.

        Raises:
            ConfigError: the memory is tied to another one, or holds an id beyond it.
        """
        kind, hint = type(self).__name__, "Keep one memory per tokenizer."
        if self.vocab_size not in (None, vocab_size):
            raise ConfigError(f"The {kind} holds ids of {self.vocab_size} tokens, the model has {vocab_size}.", hint)
        if self._highest >= vocab_size:
            raise ConfigError(f"The {kind} holds the id {self._highest}, the model has {vocab_size} tokens.", hint)
        if self._mark is not None and mark is not None and mark != self._mark:
            raise ConfigError(f"The {kind} was filled with another tokenizer than the model's.", hint)
        self.vocab_size, self._mark = vocab_size, self._mark or mark


_Kind = TypeVar("_Kind", bound=Memory)


def claim(context: Context, name: str, kind: type[_Kind]) -> _Kind | None:
    """Return the memory that a method may use, bound to the target's vocabulary; None if the caller gave none.

    Args:
        context: of the joining rows; its memory is such an object, or a mapping from method names to objects.
        name: the method that asks.
        kind: the class that it needs.

    Raises:
        ConfigError: the memory is of another kind, or of another vocabulary.
    """
    given = context.memory
    own = given.get(name) if isinstance(given, Mapping) else given
    if own is None:
        return None
    if not isinstance(own, kind):
        raise ConfigError(
            f"The method {name!r} cannot use a memory of type {type(own).__name__}.",
            f"Give a {kind.__name__}, or leave memory out.",
        )
    tokenizer = context.tokenizers.get("target")
    own.bind(context.target.capabilities.vocab_size, None if tokenizer is None else vocabulary_mark(tokenizer))
    return own
