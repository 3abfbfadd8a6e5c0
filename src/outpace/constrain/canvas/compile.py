"""From a regular expression, a JSON schema or a grammar to a constraint on a canvas."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Unpack

from outpace.constrain.canvas.automaton import DEAD, Automaton, Trie
from outpace.constrain.canvas.chart import Chart
from outpace.constrain.canvas.contextfree import ContextFreeConstraint, parts
from outpace.constrain.canvas.lark import read_lark
from outpace.constrain.canvas.network import as_automaton
from outpace.constrain.canvas.numbered import number_symbols
from outpace.constrain.canvas.regular import RegularConstraint
from outpace.constrain.grammar import Grammar
from outpace.constrain.machine import Budget
from outpace.constrain.reading import Asked, allows_nothing, read_asked
from outpace.constrain.vocabulary import vocabulary

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["CanvasCompiler", "compile_canvas"]

_MOST_KNOWN = 16


def compile_canvas(
    tokenizer: Tokenizer,
    *,
    vocab_size: int | None = None,
    end_tokens: Collection[int] = (),
    **asked: Unpack[Asked],
) -> RegularConstraint | ContextFreeConstraint:
    """Return the constraint of a regular expression, a JSON schema or a grammar in Lark's syntax (one of them).

    Args:
        tokenizer: the model's.
        vocab_size: the model's, which may be padded; None = the tokenizer's.
        end_tokens: ids that end a text; without any, a text fills its canvas.
        **asked: regex, json_schema or grammar; see `Asked`.

    Raises:
        ConfigError: a package is missing, the tokenizer has no bytes of its own, or the constraint cannot be read or
            allows no text.
    """
    return CanvasCompiler(tokenizer, vocab_size, end_tokens).compile(**asked)


class CanvasCompiler:
    """Compiles constraints on canvases over one vocabulary, which is read once.

    Args:
        tokenizer: the model's.
        vocab_size: the model's V; None = the tokenizer's.
        end_tokens: ids that end a text.

    Raises:
        ConfigError: the tokenizer has no bytes of its own.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None = None, end_tokens: Collection[int] = ()) -> None:
        spelled, special = vocabulary(tokenizer, vocab_size)
        self._ends = tuple(sorted({token for token in end_tokens if 0 <= token < len(spelled)}))
        self._known: dict[str, RegularConstraint | ContextFreeConstraint] = {}
        self._trie = Trie(spelled, {*special, *self._ends})

    def compile(self, **asked: Unpack[Asked]) -> RegularConstraint | ContextFreeConstraint:
        """Return a constraint, the same for the same arguments; they, and errors, as for `compile_canvas`."""
        key = repr(sorted(asked.items()))
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = self._compile(*read_asked(asked))
        return self._known[key]

    def _compile(self, kind: str, found: Grammar | str) -> RegularConstraint | ContextFreeConstraint:
        budget, whole = Budget(kind), read_lark(found) if isinstance(found, str) else found
        # A grammar that is regular on its face gets an exact regular constraint.
        automaton = as_automaton(whole, budget)
        return self._context_free(budget, whole) if automaton is None else self._regular(budget, automaton)

    def _regular(self, budget: Budget, automaton: Automaton) -> RegularConstraint:
        if not (automaton.next[automaton.start] != DEAD).any():
            raise allows_nothing(budget.kind, bool(automaton.accept[automaton.start]))
        table = self._trie.walk(automaton, budget)
        return RegularConstraint(kind=budget.kind, ends=self._ends, automaton=automaton, table=table)

    def _context_free(self, budget: Budget, grammar: Grammar) -> ContextFreeConstraint:
        numbered = number_symbols(grammar, budget)
        if not numbered.is_productive:
            raise allows_nothing(budget.kind, numbered.nullable[numbered.start])
        table = self._trie.walk(numbered.automaton, budget)
        return ContextFreeConstraint(
            kind=budget.kind,
            ends=self._ends,
            chart=Chart(numbered, table.successors(), bool(self._ends)),
            table=table,
            spelled=self._trie.spelled,
            is_part=parts(numbered, self._trie),
        )
