"""Grammars in Lark's syntax, read for a canvas."""

from __future__ import annotations

from typing import Any

from outpace.constrain.grammar import Grammar, Terminal
from outpace.constrain.reading import library
from outpace.constrain.syntax import read_pattern
from outpace.errors import ConfigError

__all__ = ["read_lark"]

# Lark's ready-made string ends at a quote that no backslash precedes, said by looking behind: here without.
_KNOWN = {r'".*?(?<!\\)(\\\\)*?"': r'"(?:[^"\\\n]|\\.)*"'}


def read_lark(text: str) -> Grammar:
    """Return a grammar written in Lark's syntax, beginning at the rule `start`; ignored terminals may follow any other.

    Raises:
        ConfigError: lark is missing, or the grammar cannot be read.
    """
    lark = library("lark", "Grammars on a canvas")
    try:
        parser = lark.Lark(text, parser="earley", lexer="dynamic", start="start", keep_all_tokens=True)
    except lark.exceptions.LarkError as error:
        raise _unreadable(str(error)) from None
    except Exception as error:  # faults that the library meets while it compiles patterns
        raise _unreadable(f"{type(error).__name__}: {error}") from None
    patterns = {terminal.name: _pattern(terminal) for terminal in parser.terminals}
    blank = "".join(f"(?:{patterns[name]})|" for name in parser.ignore_tokens)[:-1]
    rules: dict[str, list[tuple[str, ...]]] = {}
    for rule in parser.rules:
        names = tuple(_name(symbol) for symbol in rule.expansion)
        alternatives = rules.setdefault(rule.origin.name, [])
        if names not in alternatives:
            alternatives.append(names)
    used = {name.removeprefix(_MARK) for some in rules.values() for names in some for name in names}
    terminals = {
        _MARK + name: f"(?:{pattern})(?:{blank})*" if blank else pattern
        for name, pattern in patterns.items()
        if name in used
    }
    start = "start"
    if blank:
        start, terminals[f"{_MARK}%blank"] = "%text", f"(?:{blank})*"
        rules["%text"] = [(f"{_MARK}%blank", "start")]
    read = {name: Terminal((read_pattern(pattern, "terminal"),)) for name, pattern in terminals.items()}
    return Grammar(start, {name: tuple(some) for name, some in rules.items()}, read)


_MARK = "terminal "  # rules and terminals may bear one name


def _name(symbol: Any) -> str:
    return _MARK + str(symbol.name) if symbol.is_term else str(symbol.name)


def _pattern(terminal: Any) -> str:
    pattern = str(terminal.pattern.to_regexp())
    for known, same in _KNOWN.items():
        pattern = pattern.replace(known, same)
    return pattern


def _unreadable(reason: str) -> ConfigError:
    first = next((line.strip() for line in reason.splitlines() if line.strip()), "it is not a grammar")
    return ConfigError(
        f"The grammar cannot be used: {first.rstrip('.')}.", "Rules are in Lark's syntax and begin at `start`."
    )
