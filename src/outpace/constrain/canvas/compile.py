"""From a regular expression, a JSON schema or a grammar to a constraint on a canvas."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from outpace.constrain.canvas.automaton import DEAD, Automaton, Trie
from outpace.constrain.canvas.chart import Chart
from outpace.constrain.canvas.contextfree import ContextFreeConstraint, parts
from outpace.constrain.canvas.lark import read_lark
from outpace.constrain.canvas.network import as_automaton
from outpace.constrain.canvas.plan import plan
from outpace.constrain.canvas.regular import RegularConstraint
from outpace.constrain.grammar import Grammar, Terminal
from outpace.constrain.machine import Budget
from outpace.constrain.schema import read_schema
from outpace.constrain.syntax import read_pattern
from outpace.constrain.vocabulary import vocabulary
from outpace.errors import ConfigError

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["CanvasCompiler", "compile_canvas"]

_MOST_KNOWN = 16


def compile_canvas(
    tokenizer: Tokenizer,
    *,
    regex: str | None = None,
    json_schema: str | Mapping[str, Any] | None = None,
    grammar: str | None = None,
    vocab_size: int | None = None,
    end_tokens: Collection[int] = (),
) -> RegularConstraint | ContextFreeConstraint:
    """Return the constraint of a regular expression, a JSON schema or a grammar in Lark's syntax (one of them).

    Args:
        tokenizer: the model's.
        regex: must match the whole text.
        json_schema: as a mapping or as JSON. The text is one line, as in {"a": 1, "b": [2, 3]}; see `read_schema`.
        grammar: Lark's syntax, beginning at the rule `start`.
        vocab_size: the model's, which may be padded; None = the tokenizer's.
        end_tokens: ids that end a text; without any, a text fills its canvas.

    Raises:
        ConfigError: a package is missing, the tokenizer has no bytes of its own, or the constraint cannot be read or
            allows no text.
    """
    compiler = CanvasCompiler(tokenizer, vocab_size, end_tokens)
    return compiler.compile(regex=regex, json_schema=json_schema, grammar=grammar)


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

    def compile(
        self,
        *,
        regex: str | None = None,
        json_schema: str | Mapping[str, Any] | None = None,
        grammar: str | None = None,
    ) -> RegularConstraint | ContextFreeConstraint:
        """Return a constraint, the same for the same arguments; they, and errors, as for `compile_canvas`."""
        key = repr((regex, json_schema, grammar))
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = self._compile(regex, json_schema, grammar)
        return self._known[key]

    def _compile(
        self, regex: str | None, json_schema: str | Mapping[str, Any] | None, grammar: str | None
    ) -> RegularConstraint | ContextFreeConstraint:
        given = [item for item in (regex, json_schema, grammar) if item is not None]
        if len(given) != 1:
            raise ConfigError(
                f"{len(given) or 'No'} constraints were given.", "Give one regular expression, JSON schema or grammar."
            )
        if regex is not None:
            budget = Budget("regular expression")
            return self._regular(budget, Automaton.of(Terminal((read_pattern(regex),)), budget))
        if json_schema is not None:
            return self._either(Budget("JSON schema"), read_schema(json_schema))
        assert grammar is not None
        return self._either(Budget("grammar"), read_lark(grammar))

    def _either(self, budget: Budget, grammar: Grammar) -> RegularConstraint | ContextFreeConstraint:
        """Return an exact regular constraint where the grammar is regular on its face."""
        automaton = as_automaton(grammar, budget)
        return self._context_free(budget, grammar) if automaton is None else self._regular(budget, automaton)

    def _regular(self, budget: Budget, automaton: Automaton) -> RegularConstraint:
        kind = budget.kind
        if not (automaton.next[automaton.start] != DEAD).any():
            raise _allows_nothing(kind, bool(automaton.accept[automaton.start]))
        return RegularConstraint(kind, automaton, self._trie.walk(automaton, budget), self._ends)

    def _context_free(self, budget: Budget, grammar: Grammar) -> ContextFreeConstraint:
        kind, layout = budget.kind, plan(grammar, budget)
        if not layout.is_productive:
            raise _allows_nothing(kind, layout.nullable[layout.start])
        table = self._trie.walk(layout.automaton, budget)
        chart = Chart(layout, table.successors(), bool(self._ends))
        return ContextFreeConstraint(kind, chart, table, self._trie.spelled, parts(layout, self._trie), self._ends)


def _allows_nothing(kind: str, is_empty_allowed: bool) -> ConfigError:
    extent = "only the empty text" if is_empty_allowed else "no text at all"
    return ConfigError(f"The {kind} allows {extent}.", "Check it for parts that exclude each other.")
