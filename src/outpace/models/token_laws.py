"""A causal model's next-token laws behind several token prefixes at once: two forwards, whatever the prefixes share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.errors import CapabilityError
from outpace.types import Adapter

__all__ = ["TokenLaws"]

_CHUNK = 256  # tokens per forward
_MOST_NODES = 256  # of a tree, behind what all prefixes share
Ids = tuple[int, ...]


@dataclass(slots=True)
class _Held:
    """A cache of one row, and the tokens whose entries it holds."""

    cache: Cache
    ids: Ids = ()


@dataclass(slots=True)
class _Tree:
    """Prefixes as nodes behind what they share: tokens, parents (-1 = the shared tokens), and each one's node."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    places: dict[Ids, int] = field(default_factory=dict)

    def add(self, ids: Ids) -> None:
        """Add the nodes of a prefix."""
        parent = -1
        for size in range(1, len(ids) + 1):
            if ids[:size] not in self.places:
                self.places[ids[:size]] = len(self.tokens)
                self.tokens.append(ids[size - 1])
                self.parents.append(parent)
            parent = self.places[ids[:size]]

    def path(self, node: int) -> list[int]:
        """Return the nodes from the top to one."""
        found: list[int] = []
        while node >= 0:
            found.append(node)
            node = self.parents[node]
        return found[::-1]


class TokenLaws:
    """Laws of a causal model by token prefix, computed once each while they are in use.

    Args:
        target: the model.
        slots: texts that are followed at once, each with a cache of its own.
        kept: laws that are remembered.

    Attributes:
        num_prefixes: prefixes whose laws were computed.
        num_forwards: forwards that took.
    """

    def __init__(self, target: Adapter, slots: int = 8, kept: int = 256) -> None:
        self.target, self.num_prefixes, self.num_forwards = target, 0, 0
        self._slots, self._kept = slots, kept
        self._known: OrderedDict[Ids, Tensor] = OrderedDict()
        self._caches: list[_Held] = []  # the one used last stands last

    @torch.no_grad()
    def after(self, prefixes: Sequence[Ids]) -> list[Tensor]:
        """Return log-probabilities [V] float64 of the token behind each prefix, which holds one token at least.

        Raises:
            CapabilityError: a prefix is longer than the model's context.
        """
        missing = sorted({ids for ids in prefixes if ids not in self._known}, key=lambda ids: (len(ids), ids))
        if missing:
            self._check(missing[-1])
            self.num_prefixes += len(missing)
            shared = _shared(missing)
            groups = [missing] if self.target.capabilities.has_tree else [[ids] for ids in missing]
            for group in groups:
                self._read(shared if len(groups) == 1 else group[0], group)
        found = [self._known[ids] for ids in prefixes]
        for ids in prefixes:
            self._known.move_to_end(ids)
        while len(self._known) > self._kept:
            self._known.popitem(last=False)
        return found

    def _check(self, ids: Ids) -> None:
        most = self.target.capabilities.max_positions
        if len(ids) > most:
            raise CapabilityError(f"The text has {len(ids)} tokens, but the context is {most}.", "Shorten the text.")

    def _read(self, shared: Ids, prefixes: Sequence[Ids]) -> None:
        """Read what the prefixes share, then all of them as one tree of tokens behind it."""
        held = self._held(shared)
        law = self._pending(held, shared)
        tree = _Tree()
        for ids in prefixes:
            if ids == shared:
                self._known[ids] = law
            elif len(tree.tokens) + len(ids) - len(shared) <= _MOST_NODES:
                tree.add(ids[len(shared) :])
            else:
                self._known[ids] = self._pending(held, ids)
                self._pending(held, shared)
        if not tree.tokens:
            return
        laws, nodes = self._nodes(held, tree), tree.places
        for ids in prefixes:
            if (node := nodes.get(ids[len(shared) :])) is not None and ids not in self._known:
                self._known[ids] = laws[node]
        longest = max(nodes, key=len)  # the next text most often goes on from it
        held.cache.keep([tree.path(nodes[longest])])
        held.ids = shared + longest

    def _held(self, ids: Ids) -> _Held:
        """Return the cache whose text has most in common with `ids`, or one more where that is too little."""
        best = max(self._caches, key=lambda one: _common(one.ids, ids), default=None)
        if best is None or (len(self._caches) < self._slots and _common(best.ids, ids) < len(ids) // 2):
            room = self.target.capabilities.max_positions + _CHUNK + _MOST_NODES
            best = _Held(self.target.new_cache(1, room))
        elif _common(best.ids, ids) < len(ids) // 2:
            best = self._caches[0]
        self._caches = [*(one for one in self._caches if one is not best), best]
        return best

    def _pending(self, held: _Held, ids: Ids) -> Tensor:
        """Forward what a cache lacks of a prefix, and return the law behind it."""
        same = min(_common(held.ids, ids), len(ids) - 1)
        if not self.target.capabilities.has_rollback and same < len(held.ids):
            same, held.cache = 0, self.target.new_cache(1, held.cache.capacity)
        held.cache.truncate([same])
        law = torch.empty(0)
        for at in range(same, len(ids), _CHUNK):
            piece = ids[at : at + _CHUNK]
            law = self._score(held.cache, piece, range(at, at + len(piece)), None, [len(piece) - 1])[0]
            held.cache.keep([range(len(piece))])
        held.ids = ids
        return law

    def _nodes(self, held: _Held, tree: _Tree) -> Tensor:
        """Return the laws behind all nodes [N, V]; what they stage is not kept."""
        visible = torch.zeros(1, len(tree.tokens), len(tree.tokens), dtype=torch.bool)
        for node in range(len(tree.tokens)):
            visible[0, node, tree.path(node)] = True
        places = [len(held.ids) + len(tree.path(node)) - 1 for node in range(len(tree.tokens))]
        return self._score(held.cache, tree.tokens, places, visible, None)

    def _score(
        self,
        cache: Cache,
        tokens: Sequence[int],
        places: Sequence[int],
        visible: Tensor | None,
        ask: Sequence[int] | None,
    ) -> Tensor:
        self.num_forwards += 1
        table = [torch.tensor([list(row)], device=cache.device) for row in (tokens, places)]
        asked = None if ask is None else torch.tensor([list(ask)], device=cache.device)
        sight = None if visible is None else visible.to(cache.device)
        logits = self.target.score(table[0], table[1], sight, cache, asked).logits[0]
        return logits.double().cpu().log_softmax(-1)


def _common(one: Ids, other: Ids) -> int:
    """Return how many leading tokens agree."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _shared(prefixes: Sequence[Ids]) -> Ids:
    """Return the tokens that all of some prefixes begin with: one at least, where they begin alike."""
    first = prefixes[0]
    return first[: min(_common(first, ids) for ids in prefixes)]
