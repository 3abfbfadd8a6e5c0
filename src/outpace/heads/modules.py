"""Drafting with multi-token modules: one decoder layer each, which reads a token and the state before it.

Module k turns (state of place i, token i + 1 + k) into the state that the target's output matrix turns into the law of
token i + 2 + k; what it returns, normed, is the next module's state. Where more is drafted than there are modules, they
take turns: step s is module s mod n. The layers are adapters of one layer with soft inputs, so that caches, trees,
ragged rows and every family's attention are theirs.

Differences: beyond the text, a module sees what it drafted itself and nothing else; with three modules or more, those
of transformers also see the tokens that the modules between drafted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.heads.draft import HeadDrafter
from outpace.heads.model import HeadModel
from outpace.run.tree import TokenTree, ancestors, kept_order
from outpace.types import Adapter, Context, Outputs, View

__all__ = ["Module", "ModuleDrafter", "Modules"]

Map = Callable[[Tensor], Tensor]
_CHUNK = 256  # tokens of a text that are read in one forward
_LAST = Outputs(has_last=True)


@dataclass(frozen=True, slots=True, eq=False)
class Module:
    """One module.

    Attributes:
        token_norm, hidden_norm: of the embedding and of the state, [..., hidden] each.
        project: [..., 2 * hidden] to [..., hidden].
        body: a decoder of one layer that reads soft inputs; its last state, after its norm, is what is drafted from.
        embed: embeddings of its own; None = the target's.
        head: logits [..., V] of states; None = the target's output matrix.
    """

    token_norm: Map
    hidden_norm: Map
    project: Map
    body: Adapter
    embed: Map | None = None
    head: Map | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Modules:
    """All modules, and their conventions.

    Attributes:
        parts: in the order of use.
        hidden_first: what is projected is [state; embedding], not [embedding; state].
        zero_first: the embedding at the text's first pair counts as zero.
    """

    parts: tuple[Module, ...]
    hidden_first: bool = False
    zero_first: bool = False

    def inputs(self, module: Module, embedded: Tensor, hidden: Tensor, position: Tensor) -> Tensor:
        """Return what enters a module's layer, [B, T, hidden], at places [B, T]."""
        if self.zero_first:
            embedded = embedded.masked_fill((position == 0).unsqueeze(-1), 0)
        pair = [module.token_norm(embedded), module.hidden_norm(hidden)]
        return module.project(torch.cat(pair[::-1] if self.hidden_first else pair, -1))


class HasModules(Protocol):
    """A network whose parts are such modules."""

    def modules_for(self, model: HeadModel) -> Modules:
        """Return them, ready to draft."""
        ...


@dataclass
class ModuleDrafter(HeadDrafter):
    """Drafts with multi-token modules. `cache` is the first one's.

    Attributes:
        later: the caches of the other modules.
        held: per later module and row, states [n, hidden] of the one before it that it has not read.
        roots: per row, the first module's state [hidden] after the text.
        bank, known: states [N, hidden] of all nodes asked so far in this step, and per row where each path's is.
        tip, step: the running chain's state [B, hidden], and its length.
    """

    later: dict[int, Cache]
    held: dict[int, list[Tensor]]
    roots: list[Tensor]
    bank: Tensor | None = field(default=None, init=False)
    known: list[dict[tuple[int, ...], int]] = field(default_factory=list, init=False)
    tip: Tensor | None = field(default=None, init=False)
    step: int = field(default=0, init=False)

    @classmethod
    def begin_with(cls, model: HeadModel, context: Context) -> ModuleDrafter:
        """Return the drafter of the joining rows."""
        parts = _modules(model).parts
        rows, counter = len(context.texts), context.counters["draft"]
        caches = [part.body.new_cache(rows, context.capacity, counter) for part in parts]
        none = torch.zeros(0, model.net.config.hidden_size, dtype=model.dtype, device=model.device)
        later = range(1, len(parts))
        return cls(
            model,
            caches[0],
            cls.features_for(model, context),
            {k: caches[k] for k in later},
            {k: [none] * rows for k in later},
            [none.new_zeros(none.shape[1])] * rows,
        )

    def texts(self, view: View, reach: Sequence[int]) -> Tensor:
        """Let every module read what the text brought, and return the logits after it, [B, K]."""
        modules, whole = _modules(self.adapter), list(self.features.whole)
        for k in range(len(modules.parts)):
            self._cache(k).truncate([max(0, n - k) for n in whole])
        states = self.features.take([row for row, ahead in enumerate(reach) if ahead > 0])
        for k in range(len(modules.parts)):
            if k:
                gone = [old[:0] if not n else old for old, n in zip(self.held[k], whole, strict=True)]
                both = [torch.cat(pair) for pair in zip(gone, states, strict=True)]
                # The last state waits: the token that it goes with is not written yet.
                states, self.held[k] = [one[:-1] for one in both], [one[-1:] for one in both]
            states = self._read(k, view.texts, states, is_last=k + 1 == len(modules.parts))
            if not k:
                self.roots = [s[-1] if len(s) else old for s, old in zip(states, self.roots, strict=True)]
        self.tip = self.bank = torch.stack(self.roots)
        self.known, self.step = [{(): row} for row in range(len(reach))], 0
        return self._logits(0, self.tip)

    def _read(self, k: int, texts: Sequence[list[int]], states: list[Tensor], is_last: bool) -> list[Tensor]:
        """Let a module read states with the last tokens of the texts; return its own, or the last of them alone."""
        cache, found = self._cache(k), [[one[:0]] for one in states]
        for at in range(0, max(map(len, states)), _CHUNK):
            parts = [one[at : at + _CHUNK] for one in states]
            counts = [len(part) for part in parts]
            tokens = [text[len(text) - len(one) + at :][:n] for text, one, n in zip(texts, states, counts, strict=True)]
            ids = torch.tensor([t + [0] * (max(counts) - len(t)) for t in tokens], device=self.device)
            hidden = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
            order = torch.arange(ids.shape[1], device=self.device)
            held, number = torch.tensor([cache.lengths, counts], device=self.device).unsqueeze(-1)
            position = torch.where(order < number, held + order, -1)
            out = self._run(k, ids, hidden, position, None, (number - 1).clamp(min=0) if is_last else None)
            cache.keep([range(n) for n in counts])
            for row, n in enumerate(counts):
                found[row].append(out[row, : min(n, 1) if is_last else n])
        return [torch.cat(parts) for parts in found]

    def token(self, token: Tensor, place: Tensor, running: Sequence[bool]) -> Tensor:
        """Lengthen the chain of each running row by a token [B]; return the logits after it, [B, K]."""
        del place
        assert self.tip is not None  # texts came first
        self.step += 1
        count = len(_modules(self.adapter).parts)
        k, is_on = self.step % count, torch.tensor(running, device=self.device)
        position = torch.where(is_on, self._whole() - 1 + self.step - k, -1).unsqueeze(1)
        sees = None if count == 1 else torch.ones(len(running), 1, 1, dtype=torch.bool, device=self.device)
        out = self._run(k, token.unsqueeze(1), self.tip.unsqueeze(1), position, sees)[:, 0]
        self._cache(k).keep([[0] if on else [] for on in running])
        self.tip = torch.where(is_on.unsqueeze(1), out, self.tip)
        return self._logits(k, self.tip)

    def nodes(self, tree: TokenTree, nodes: Tensor, is_real: Tensor) -> Tensor:
        """Return the logits after some nodes of a tree, [B, F, K]; what was asked before in this step is not again."""
        sees = ancestors(tree.parent)
        depth, width = sees.sum(-1), sees.shape[2]
        is_needed = (sees.gather(1, nodes.unsqueeze(-1).expand(-1, -1, width)) & is_real.unsqueeze(-1)).any(1)
        paths, needed = _paths(tree), is_needed.tolist()
        new = {
            len(path)
            for row, is_in in enumerate(needed)
            for node, path in enumerate(paths[row])
            if is_in[node] and path not in self.known[row]
        }
        for level in sorted(new):
            self._level(tree, sees, depth, is_needed & (depth <= level), paths, level)
        index = self._at(paths, nodes, is_real)
        assert self.bank is not None  # texts came first
        states, count = self.bank[index], len(_modules(self.adapter).parts)
        logits = self._logits(0, states)
        if any(part.head is not None for part in _modules(self.adapter).parts[1:]):
            turn = depth.gather(1, nodes) % count
            for k in range(1, count):
                logits = torch.where((turn == k).unsqueeze(-1), self._logits(k, states), logits)
        return logits

    def _level(
        self,
        tree: TokenTree,
        sees: Tensor,
        depth: Tensor,
        is_needed: Tensor,
        paths: list[list[tuple[int, ...]]],
        level: int,
    ) -> None:
        """Run the module of a level over its nodes, with the nodes above them that it drafted too."""
        k = level % len(_modules(self.adapter).parts)
        chosen = is_needed & (depth % len(_modules(self.adapter).parts) == k)
        order, _ = kept_order(chosen)
        is_node, size = chosen.gather(1, order), order.shape[1]
        sees = sees.gather(1, order.unsqueeze(-1).expand(-1, -1, sees.shape[2]))
        sees = sees.gather(2, order.unsqueeze(1).expand(-1, size, -1))
        place = depth.gather(1, order)
        position = (self._whole().unsqueeze(1) - 1 + place - k).masked_fill(~is_node, -1)
        above = [[path[:-1] for path in row] for row in paths]
        assert self.bank is not None  # texts came first
        hidden = self.bank[self._at(above, order, is_node)]
        out = self._run(k, tree.tokens.gather(1, order), hidden, position, sees)
        is_new = is_node & (place == level)
        for at, (row, slot) in enumerate(is_new.nonzero().tolist(), len(self.bank)):
            self.known[row][paths[row][int(order[row, slot])]] = at
        self.bank = torch.cat([self.bank, out[is_new]])

    def _at(self, paths: list[list[tuple[int, ...]]], nodes: Tensor, is_real: Tensor) -> Tensor:
        """Return [B, F] where the states of nodes' paths lie in the bank; of padding those of the row's text."""
        found = [
            [self.known[row][paths[row][node]] if is_on else row for node, is_on in zip(*pair, strict=True)]
            for row, pair in enumerate(zip(nodes.tolist(), is_real.tolist(), strict=True))
        ]
        return torch.tensor(found, dtype=torch.int64, device=self.device).view(nodes.shape)

    def _run(
        self, k: int, tokens: Tensor, hidden: Tensor, position: Tensor, sees: Tensor | None, ask: Tensor | None = None
    ) -> Tensor:
        """Stage tokens [B, T] with states [B, T, hidden] in a module's cache; return its states where asked."""
        modules = _modules(self.adapter)
        module = modules.parts[k]
        with torch.no_grad():
            embedded = (module.embed or self.adapter.embed)(tokens)
            inputs = modules.inputs(module, embedded, hidden, position)
        given = (torch.zeros_like(tokens), position, sees, self._cache(k), ask)
        last = module.body.score(*given, _LAST, inputs).last
        assert last is not None  # it was asked for
        return last

    def _logits(self, k: int, states: Tensor) -> Tensor:
        """Return a module's logits [..., K] of its states [..., hidden], of tokens that can be drafted."""
        head, ids = _modules(self.adapter).parts[k].head, self.adapter.ids
        if head is None:
            return self.adapter.logits(states)
        return head(states) if ids is None else head(states)[..., ids]

    def _cache(self, k: int) -> Cache:
        return self.later[k] if k else self.cache

    def _whole(self) -> Tensor:
        """Return [B] how many pairs of the text the first module has read."""
        return torch.tensor(self.features.whole, device=self.device)


def _modules(model: HeadModel) -> Modules:
    net: HasModules = model.net  # type: ignore[assignment]
    return net.modules_for(model)


def _paths(tree: TokenTree) -> list[list[tuple[int, ...]]]:
    """Return the tokens on the way to each node, itself included."""
    found = []
    for tokens, parents in zip(tree.tokens.tolist(), tree.parent.tolist(), strict=True):
        paths: list[tuple[int, ...]] = []
        for token, parent in zip(tokens, parents, strict=True):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        found.append(paths)
    return found
