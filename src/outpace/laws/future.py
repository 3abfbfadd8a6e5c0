"""What a hidden Markov model says of a text's future: the exact chance that the text comes to be what is wanted.

Wanted is that all words stand in the written text, and with a factor per token, the expected product of the factors
(an attribute whose classifier is a product over tokens). Both are one sum over all futures, by dynamic programming
from the end: `Future.weights(q, n)[z]` is the expected weight of the n tokens to come, an end token among them or not,
where z emits the first of them and q is the automaton's state.

Sources: Zhang et al. (2023), arXiv 2304.07438 (keywords); Yidou-Weng et al. (2025), arXiv 2504.18535 (attributes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.laws.automaton import Automaton
from outpace.laws.markov import Floats, Markov

__all__ = ["Future", "FutureState"]

_MOST_BYTES = 1 << 30
Tokens = npt.NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Future:
    """Weights of futures under a model: a `Guide`.

    Attributes:
        model: the hidden Markov model.
        automaton: what words are wanted.
        factors: [V] log of what each token multiplies a text's weight by, 0 or less; None = all are 0.
        weight: how often the chance multiplies the next token's probability.
        reach: tokens this many nats below the likeliest, or more, share one chance; inf = every token has its own.
        what: what is wanted, in words.
    """

    model: Markov
    automaton: Automaton
    factors: Floats | None = None
    weight: float = 1.0
    reach: float = 6.0
    what: str = "what is wanted"
    _tables: dict[tuple[int, ...], list[tuple[Floats, Floats]]] = field(default_factory=dict)
    _ways: dict[tuple[int, tuple[int, ...]], tuple[Tokens, Tokens]] = field(default_factory=dict)

    def start(self, prompt: Sequence[int], ends: Sequence[int], limit: int) -> FutureState:
        """Return the state behind a prompt; see `outpace.sampling.guide.Guide`.

        Raises:
            ConfigError: no text of that length is what is wanted, or it takes too much memory to know.
        """
        law, left = self.model.first, limit - len(prompt)
        if left <= 0:
            raise ConfigError("A guide needs to know how long the text may be.", "Give max_tokens.")
        for token in prompt:
            law = self.model.after(law, token)
        state = FutureState(self, tuple(ends), 0, law, left)
        if state.chance == 0:
            raise ConfigError(f"{left} tokens are too few for {self.what}.", "Raise max_tokens, or ask for less.")
        return state

    def weights(self, ends: tuple[int, ...], left: int) -> tuple[Floats, Floats]:
        """Return the expected weight of `left` more tokens, by the automaton's state and the hidden state before them.

        Args:
            ends: ids that end the text.
            left: tokens that may still come.

        Returns:
            [Q, S] weights of each automaton state, its largest 1, and [Q] the log of what they were divided by.
        """
        if ends not in self._tables:
            self._tables[ends] = []
        known = self._tables[ends]
        size = (left + 1) * len(self.automaton.other) * self.model.num_states * self.model.emit.itemsize
        if size > _MOST_BYTES:
            raise ConfigError(
                f"{self.what} in {left} tokens takes {size >> 20} MiB to look ahead.", "Ask for fewer words or tokens."
            )
        if len(known) <= left:
            self._look_ahead(ends, left)
        return known[left]

    def ways(self, at: int, ends: tuple[int, ...]) -> tuple[Tokens, Tokens]:
        """Return the tokens that lead elsewhere than others from a state, ascending, and where; -1 = to the end."""
        if (at, ends) not in self._ways:
            known = {token: -1 for token in ends if 0 <= token < self.model.vocab_size}
            known = {**self.automaton.named[at], **known}
            ids = np.array(sorted(known), dtype=np.int64)
            self._ways[at, ends] = ids, np.array([known[token] for token in ids.tolist()], dtype=np.int64)
        return self._ways[at, ends]

    def _look_ahead(self, ends: tuple[int, ...], left: int) -> None:
        """Fill the tables up to `left` tokens, beginning with none."""
        automaton, known = self.automaton, self._tables[ends]
        known.clear()
        move, weighted = self.model.move.astype(np.float64), self._weighted()
        ends = tuple(end for end in ends if 0 <= end < self.model.vocab_size)
        final = np.array(automaton.is_accepting, dtype=np.float64)
        ahead = np.repeat(final[:, None], self.model.num_states, 1)  # by the state that emits the next token
        ending = [weighted(list(ends)).sum(0) * is_there for is_there in final]
        named = [{token: to for token, to in ways.items() if token not in ends} for ways in automaton.named]
        parts = [weighted(list(ways)) for ways in named]
        rest = [weighted(None) - part.sum(0) - weighted(list(ends)).sum(0) for part in parts]
        after: Floats = ahead
        for number in range(left + 1):
            if number:
                ahead = np.stack(
                    [
                        rest[q].clip(0) * after[automaton.other[q]]
                        + sum(p * after[to] for p, to in zip(parts[q], named[q].values(), strict=True))
                        + ending[q]
                        for q in range(len(named))
                    ]
                )
            after = ahead @ move.T
            most = after.max(1)
            scaled = after / np.where(most > 0, most, 1)[:, None]
            with np.errstate(divide="ignore"):
                known.append((scaled.astype(self.model.emit.dtype), np.log(most)))

    def _weighted(self) -> Callable[[list[int] | None], Floats]:
        """Return what gives [N, S] emissions of tokens, times their factors; of None, [S] those of all tokens."""
        emit, factors = self.model.emit, None if self.factors is None else np.exp(self.factors)
        ones = np.ones(self.model.num_states) if factors is None else factors @ emit.astype(np.float64)

        def weighted(tokens: list[int] | None) -> Floats:
            if tokens is None:
                return ones
            found = emit[tokens].astype(np.float64)
            return found if factors is None else found * factors[tokens, None]

        return weighted


@dataclass(frozen=True, slots=True, eq=False)
class FutureState:
    """Where a text stands: a `GuideState`.

    Attributes:
        future: the guide.
        ends: ids that end the text.
        at: the automaton's state; -1 = the text has ended.
        law: [S] law of the hidden state that emits the next token.
        left: tokens that may still come.
    """

    future: Future
    ends: tuple[int, ...]
    at: int
    law: Floats
    left: int

    @property
    def is_free(self) -> bool:
        """Whether nothing is left to be guided."""
        if self.at < 0 or self.left <= 0:
            return True
        return self.future.factors is None and self.future.automaton.is_accepting[self.at]

    @property
    def chance(self) -> float:
        """The expected weight of all futures: the chance that the text comes to hold all words, or to be so."""
        if self.is_free:
            return 1.0
        seen = self.ratios(np.arange(self.future.model.vocab_size))
        return float(np.exp(seen) @ (self.future.model.emit @ self.law).astype(np.float64))

    def after(self, token: int) -> FutureState:
        """Return the state behind one more token."""
        if self.is_free or token in self.ends:
            return replace(self, at=-1) if token in self.ends else self
        future = self.future
        at = future.automaton.after(self.at, token)
        return FutureState(future, self.ends, at, future.model.after(self.law, token), self.left - 1)

    def ratios(self, tokens: Tokens) -> Floats:
        """Return [C] log of the expected weight of all futures behind each token."""
        named, _ = self.future.ways(self.at, self.ends)
        is_named = np.isin(tokens, named)
        found = np.empty(len(tokens))
        ordered = np.concatenate([tokens[~is_named], named])
        told = self._ratios(ordered, len(ordered) - len(named))
        found[~is_named] = told[: len(told) - len(named)]
        found[is_named] = told[len(told) - len(named) :][np.searchsorted(named, tokens[is_named])]
        return found

    def _ratios(self, tokens: Tokens, first: int) -> Floats:
        """Return the same of tokens, of which those from `first` on are all that the automaton or an end names."""
        future, emit, law = self.future, self.future.model.emit[tokens], self.law
        table, scale = future.weights(self.ends, self.left - 1)
        _, ways = future.ways(self.at, self.ends)
        other = future.automaton.other[self.at]
        sums = emit @ np.stack([law, law * table[other]], 1)
        part, whole = sums[:, 1].astype(np.float64), sums[:, 0].astype(np.float64)
        instead = np.full(len(tokens), law @ table[other], dtype=np.float64)
        lift = np.full(len(tokens), scale[other])
        if first < len(tokens):
            kept = table[ways] * law  # of ends: anything, they are overwritten
            part[first:], instead[first:] = (emit[first:] * kept).sum(1), kept.sum(1)
            lift[first:] = scale[ways]
        found = _logs(part, whole, instead) + lift
        found[first:][ways < 0] = 0.0 if future.automaton.is_accepting[self.at] else -np.inf
        return found if future.factors is None else np.asarray(found + future.factors[tokens])

    def apply(self, logits: Tensor) -> None:
        """Multiply the next token's law [V] by the chances, but for a common factor, in place."""
        if self.is_free:
            return
        future, law = self.future, logits.detach().cpu().numpy()  # on the CPU, the logits' own memory
        named, _ = future.ways(self.at, self.ends)
        is_near = law >= law.max() - future.reach
        is_near[named] = False
        near = np.concatenate([np.flatnonzero(is_near), named])
        weights, scale = future.weights(self.ends, self.left - 1)
        other = future.automaton.other[self.at]
        shared = float(_logs(self.law @ weights[other], 1.0, 0.0) + scale[other])
        added = self._ratios(near, len(near) - len(named))
        if future.factors is not None:
            law += future.weight * future.factors
            added -= future.factors[near]
        if shared > -np.inf:
            added -= shared
        else:  # whatever is not named here comes too late
            is_near[named] = True
            law[~is_near] = shared
        law[near] += future.weight * added
        if logits.device.type != "cpu":
            logits.copy_(torch.from_numpy(law))


def _logs(part: Any, whole: Any, instead: Any) -> Any:
    """Return log(part / whole), or log(instead) where the whole is 0: the model thinks the token impossible."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(np.where(whole > 0, part / whole, instead))
