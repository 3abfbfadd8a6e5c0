"""A request's constraint, compiled over a model's vocabulary: each vocabulary is read once."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from outpace.api.request import Request
from outpace.errors import ConfigError
from outpace.sampling import Sampling
from outpace.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from outpace.constrain import Compiler
    from outpace.constrain.canvas import CanvasCompiler

__all__ = ["Constraints"]


class Constraints:
    """The compilers of one model.

    Args:
        tokenizer: spells its vocabulary; None = only constraints over tokens are possible.
        vocab_size: rows of its head.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._causal: Compiler | None = None
        self._canvas: dict[tuple[int, ...], CanvasCompiler] = {}  # by the ids that end a text
        self._lock = threading.Lock()  # an engine checks several asks at once

    def apply(self, settings: Sampling, request: Request, ends: tuple[int, ...], is_canvas: bool) -> Sampling:
        """Return the settings with the request's constraint.

        Args:
            settings: may hold a constraint over tokens already.
            request: what was asked for.
            ends: ids that end a text.
            is_canvas: texts are written in any order.

        Raises:
            ConfigError: two constraints, one of another vocabulary, or one on text without a tokenizer.
        """
        asked, given = request.constraints, settings.constraint
        if asked and given is not None:
            raise ConfigError("Two constraints were given.", f"Leave out {next(iter(asked))} or constraint.")
        if not asked:
            if given is not None and given.vocab_size != self._vocab_size:
                raise ConfigError(
                    f"The constraint was made for {given.vocab_size} tokens, but the model has {self._vocab_size}.",
                    f"Compile it with vocab_size={self._vocab_size}.",
                )
            return settings
        if self._tokenizer is None:
            raise ConfigError("Constraints on text need a tokenizer.", "Give a constraint over tokens.")
        with self._lock:
            return self._compiled(self._tokenizer, settings, request, ends, is_canvas)

    def _compiled(
        self, tokenizer: Tokenizer, settings: Sampling, request: Request, ends: tuple[int, ...], is_canvas: bool
    ) -> Sampling:
        asked = request.constraints
        # Compilers are imported by the first constraint: a start without one is sooner by a tenth.
        if not is_canvas:
            from outpace.constrain import Compiler

            self._causal = self._causal or Compiler(tokenizer, self._vocab_size)
            return replace(settings, constraint=self._causal.compile(**asked))
        # Between given pieces no text may end; nor may one that is to go on past end tokens.
        ends = () if request.canvas or request.ignore_eos else ends
        if ends not in self._canvas:
            from outpace.constrain.canvas import CanvasCompiler

            self._canvas[ends] = CanvasCompiler(tokenizer, self._vocab_size, ends)
        return replace(settings, canvas_constraint=self._canvas[ends].compile(**asked))
