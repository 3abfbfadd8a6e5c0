"""A hand-written constraint over token ids, for toy models: sums decide, so every token of a path counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ToyGrammar", "ToyState"]


@dataclass(frozen=True, slots=True)
class ToyGrammar:
    """No running sum of the written ids is divisible by `avoid`; a text may end from half the goal on, and must at it.

    Attributes:
        vocab_size: V.
        avoid: the forbidden divisor.
        goal: the sum that ends a text.
    """

    vocab_size: int = 13
    avoid: int = 4
    goal: int = 60

    def start(self) -> ToyState:
        """Return the state of an empty text."""
        return ToyState(self, [])


class ToyState:
    """Where a text stands in a `ToyGrammar`; see `outpace.constrain.ConstraintState`."""

    def __init__(self, grammar: ToyGrammar, tokens: list[int]) -> None:
        self.grammar, self.tokens = grammar, tokens

    @property
    def is_complete(self) -> bool:
        """Whether the text may end here."""
        return 2 * sum(self.tokens) >= self.grammar.goal

    @property
    def is_final(self) -> bool:
        """Whether nothing may follow."""
        return sum(self.tokens) >= self.grammar.goal

    def allowed(self) -> Tensor:
        """Return [V] bool."""
        sums = sum(self.tokens) + torch.arange(self.grammar.vocab_size)
        return (sums % self.grammar.avoid != 0) & (not self.is_final)

    def push(self, token: int) -> bool:
        """Append a token, unless it is forbidden."""
        is_allowed = 0 <= token < self.grammar.vocab_size and bool(self.allowed()[token])
        if is_allowed:
            self.tokens.append(token)
        return is_allowed

    def back(self, count: int) -> None:
        """Take the last tokens back."""
        del self.tokens[len(self.tokens) - count :]

    def fork(self) -> ToyState:
        """Return an independent copy."""
        return ToyState(self.grammar, list(self.tokens))
