"""Context-free grammars over terminals that are expressions: what JSON schemas and Lark's grammars are brought into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from outpace.constrain.expression import Node, to_rust

__all__ = ["Grammar", "Terminal", "single"]


@dataclass(frozen=True, slots=True)
class Terminal:
    """The texts that match every one of some expressions, and none of others.

    Attributes:
        all_of: one or more.
        none_of: any number.
    """

    all_of: tuple[Node, ...]
    none_of: tuple[Node, ...] = ()

    def to_lark(self) -> str:
        """Return the terminal in the Lark dialect of llguidance."""
        return " & ".join(
            [*(f"/{to_rust(node)}/" for node in self.all_of), *(f"~/{to_rust(node)}/" for node in self.none_of)]
        )


@dataclass(frozen=True, slots=True)
class Grammar:
    """A context-free grammar.

    A text belongs to it if it can be cut into terminals in some way; there is no separate lexer.

    Attributes:
        start: name of the first rule.
        rules: alternatives of each rule, each a sequence of names of rules and terminals.
        terminals: by name.
    """

    start: str
    rules: Mapping[str, tuple[tuple[str, ...], ...]]
    terminals: Mapping[str, Terminal]

    def productive(self, is_empty: Callable[[Terminal], bool], *, is_endless: bool = False) -> frozenset[str]:
        """Return the symbols that derive a text.

        Args:
            is_empty: tells a terminal that no text matches.
            is_endless: count texts without an end too.
        """
        texts = {name for name, terminal in self.terminals.items() if not is_empty(terminal)}
        found = texts | set(self.rules) if is_endless else texts
        while True:
            derived = {name for name, some in self.rules.items() if any(found.issuperset(parts) for parts in some)}
            if texts | derived == found:
                return frozenset(found)
            found = texts | derived

    def without(self, kept: frozenset[str]) -> Grammar:
        """Return the grammar of some symbols alone, as far as the start reaches them."""
        rules = {
            name: tuple(parts for parts in some if kept.issuperset(parts))
            for name, some in self.rules.items()
            if name in kept
        }
        reached, waiting = {self.start}, [self.start]
        while waiting:
            for part in {part for parts in rules.get(waiting.pop(), ()) for part in parts} - reached:
                reached.add(part)
                waiting.append(part)
        return Grammar(
            self.start,
            {name: some for name, some in rules.items() if name in reached},
            {name: terminal for name, terminal in self.terminals.items() if name in reached},
        )

    def to_lark(self) -> str:
        """Return the grammar in the Lark dialect of llguidance."""
        names = {name: f"r{number}" for number, name in enumerate(self.rules)} | {self.start: "start"}
        names |= {name: f"T{number}" for number, name in enumerate(self.terminals)}
        lines = [
            f"{names[name]}: " + " | ".join(" ".join(names[part] for part in parts) for parts in some)
            for name, some in self.rules.items()
        ]
        lines += [f"{names[name]}: {terminal.to_lark()}" for name, terminal in self.terminals.items()]
        return "\n".join(lines)


def single(node: Node) -> Grammar:
    """Return the grammar of one expression."""
    return Grammar("start", {"start": (("text",),)}, {"text": Terminal((node,))})
