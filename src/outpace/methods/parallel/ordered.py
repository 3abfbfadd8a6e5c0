"""What the methods on a network over shuffled places share: an order per row, bursts of drafts, and their test.

A burst takes two forwards: the laws of its places side by side, each as if it came next, then the law of each given
those before it. The first place has the same law in both, so it is not tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from outpace.accept.any_subset import keep_drafts
from outpace.errors import ConfigError
from outpace.methods.base import Method
from outpace.sampling import Sampler, Stream, uniform
from outpace.setting import setting
from outpace.types import Context, Decision, Guarantee, Needs, Outcome, Proposal, Scores, View

__all__ = ["OrderBatch", "OrderedMethod", "OrderedRow"]


@dataclass(slots=True)
class OrderedRow:
    """A row between two forwards.

    Attributes:
        tokens: by place; anything at open ones.
        order: the places, known ones first.
        known: how many are known.
        prompt: places of the prompt.
        log_probs: by place, of the law that a place was tested against, 0 where it was given.
        banned: [K] tokens that may not be written.
        stop: where the burst under test ends in the order; 0 = none is.
        drafts: laws [N, V] of the burst's places behind its first; None = no burst is under test.
        tried: orders of those N places that are tested side by side, each with its own sight; the first is as drawn.
        is_broken: a law was none.
    """

    tokens: list[int]
    order: list[int]
    known: int
    prompt: int
    log_probs: list[float]
    banned: Tensor
    stop: int = 0
    drafts: Tensor | None = None
    tried: tuple[tuple[int, ...], ...] = ()
    is_broken: bool = False

    def inputs(self, most: int, start: tuple[int, int]) -> tuple[list[tuple[int, int, int]], int]:
        """Return token, place and next place of each input of the next forward, and which is the first one asked.

        A burst under test is laid once for each of its orders, behind what is known.
        """
        before = [start, *((self.tokens[place], place) for place in self.order)]
        if self.stop:
            laid = [(*before[at], self.order[at]) for at in range(self.known)]
            for ranks in self.tried:
                tested = [self.order[self.known + rank] for rank in ranks]
                own = [before[self.known], *((self.tokens[place], place) for place in tested)]
                laid += [(*own[at], place) for at, place in enumerate(tested)]
            return laid, self.known
        stop = min(len(self.order), self.known + most) if most else len(self.order)
        laid = [(*before[min(at, self.known)], self.order[at]) for at in range(stop)]
        return laid or [(*start, 0)], self.known


@dataclass
class OrderBatch:
    """The rows, and the network that lays their inputs."""

    ordered: list[OrderedRow]
    target: Any


@dataclass(frozen=True)
class OrderedMethod(Method):
    """Base of the methods; a subclass says what becomes of a rejected draft.

    Attributes:
        most: places in a burst; 1 = ordinary sampling in the order, 0 = all that are open.
        order: "random", drawn per row, or "plain", from left to right.
    """

    most: int = setting(0, least=0, note="0 drafts all open places")
    order: str = setting("random", among=("random", "plain"))

    redraws: ClassVar[bool] = True
    """What is rejected is drawn anew from the residual; False = the next burst drafts it."""

    @property
    def needs(self) -> Needs:
        """A network over shuffled places; siblings do not see each other."""
        return Needs(attention="any-order", has_tree=True)

    @property
    def guarantee(self) -> Guarantee:
        """As `redraws` tells."""
        return Guarantee.DISTRIBUTION if self.redraws or self.most == 1 else Guarantee.APPROXIMATE

    def start(self, context: Context) -> OrderBatch:
        """Return the rows with their orders.

        Raises:
            ConfigError: a law that looks at what stands before.
        """
        settings, found = context.sampler.settings, list[OrderedRow]()
        if settings.is_stateful or settings.canvas_constraint is not None:
            raise ConfigError(
                f"{self.name} writes out of order: no penalty, bad word, min_tokens or constraint holds.",
                "Leave them out, or use a causal model.",
            )
        ends = context.sampler.end_tokens
        for row, (text, rest) in enumerate(zip(context.texts, context.canvases, strict=True)):
            is_open = [*([False] * len(text)), *(token < 0 for token in rest)]
            order, known = self._ordered(context.sampler.rows([row]), is_open), is_open.count(False)
            banned = torch.tensor(ends[row] if any(token >= 0 for token in rest) else (), dtype=torch.int64)
            tokens = [max(0, token) for token in (*text, *rest)]
            found.append(
                OrderedRow(tokens, order, known, len(text), [0.0] * len(tokens), banned.to(context.target.device))
            )
        return OrderBatch(found, context.target)

    def _ordered(self, sampler: Sampler, is_open: Sequence[bool]) -> list[int]:
        places = range(len(is_open))
        if self.order == "plain":
            return sorted(places, key=lambda place: (is_open[place], place))
        ranks = uniform(sampler.noise(Stream.ORDER, torch.zeros(1, dtype=torch.int64)), torch.arange(len(is_open)))[0]
        return sorted(places, key=lambda place: (is_open[place], float(ranks[place])))

    def propose(self, view: View, state: OrderBatch) -> Proposal:
        """Lay out the next forward of every row: drafts side by side, or a burst under test."""
        net = state.target.net.config
        laid = [row.inputs(self.most, (net.vocab, net.places)) for row in state.ordered]
        width = max(len(inputs) for inputs, _ in laid)
        table = torch.zeros(len(laid), width, 3, dtype=torch.int64)
        visible = torch.eye(width, dtype=torch.bool).repeat(len(laid), 1, 1)
        ask = torch.zeros(len(laid), max(1, *(len(inputs) - first for inputs, first in laid)), dtype=torch.int64)
        for at, (row, (inputs, first)) in enumerate(zip(state.ordered, laid, strict=True)):
            size = len(inputs)
            table[at, :size] = torch.tensor(inputs)
            sight = torch.ones(size, size, dtype=torch.bool).tril()
            if not row.stop:
                sight[first:, first:] = torch.eye(size - first, dtype=torch.bool)
            elif len(row.tried) > 1:  # orders do not see each other
                ways = torch.arange(size - first) // (row.stop - first)
                sight[first:, first:] &= ways[:, None] == ways
            visible[at, :size, :size] = sight
            ask[at, : size - first] = torch.arange(first, size)
        soft = state.target.laid(*table.to(view.device).unbind(-1))
        shown = table[..., 0] % net.vocab
        position = torch.arange(width, device=view.device).expand(len(laid), -1)
        lengths = [len(inputs) for inputs, _ in laid]
        return Proposal(
            shown.to(view.device),
            lengths,
            None,
            position,
            visible.to(view.device),
            origin=self.name,
            ask=ask.to(view.device),
            inputs=soft,
            is_whole=True,
        )

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: OrderBatch) -> Decision:
        """Advance every row; a text that is whole is emitted."""
        rows = [self._advanced(view.sampler.rows([at]), row, scores.logits[at]) for at, row in enumerate(state.ordered)]
        emitted, chances = list[list[int]](), list[list[float]]()
        for row in rows:
            is_whole = row.known == len(row.order) and not row.stop
            emitted.append([-1] if row.is_broken else row.tokens[row.prompt :] if is_whole else [])
            chances.append([0.0] if row.is_broken else row.log_probs[row.prompt :] if is_whole else [])
        width = max(map(len, emitted))
        tokens = torch.tensor([[*one, *[0] * (width - len(one))] for one in emitted], dtype=torch.int64)
        log_probs = torch.tensor([[*one, *[0.0] * (width - len(one))] for one in chances], dtype=torch.float64)
        shape, num = (len(rows), width), torch.tensor([len(one) for one in emitted])
        path = torch.arange(width).expand(shape)
        keep: list[list[int]] = [[] for _ in rows]
        return Decision(tokens.view(shape), num, path, keep, log_probs=log_probs.view(shape), carry=rows)

    def observe(self, outcome: Outcome, view: View, state: OrderBatch) -> OrderBatch:
        """Take the rows as they are after the step."""
        del view
        return state if outcome.decision is None else OrderBatch(outcome.decision.carry, state.target)

    def _advanced(self, sampler: Sampler, row: OrderedRow, logits: Tensor) -> OrderedRow:
        """Return a row after a forward."""
        before = row.known
        stop = row.stop or (min(len(row.order), before + self.most) if self.most else len(row.order))
        if before == stop:  # everything was given
            return row
        count = (stop - before) * (len(row.tried) if row.stop else 1)
        law = sampler.law(sampler.process(logits[:count].index_fill(-1, row.banned, float("-inf")), None))
        after = replace(row, tokens=list(row.tokens), log_probs=list(row.log_probs))
        if not bool(law.is_sound.all()):
            after.is_broken = True
            return after
        # Draws of a burst are keyed by place, and by how many places were known when it began.
        places, visit = torch.tensor([row.order[before:stop]]), (before - 1) if row.stop else before
        probs = law.probs()
        if row.stop:
            return self._tested(sampler, after, probs, places, visit)
        drawn = sampler.draw(law, sampler.noise(Stream.DRAFT, places.to(logits.device), visit)[0]).tolist()
        for place, token in zip(row.order[before:stop], drawn, strict=True):
            after.tokens[place] = token
        after.log_probs[row.order[before]] = float(probs[0, drawn[0]].log())
        after.known += 1
        after.stop, after.drafts = (stop, probs[1:]) if stop > after.known else (0, None)
        after.tried = self._tried(sampler, stop - after.known, after.known) if after.stop else ()
        return after

    def _tried(self, sampler: Sampler, count: int, known: int) -> tuple[tuple[int, ...], ...]:
        """Return the orders in which a burst's places are tested."""
        del sampler, known
        return (tuple(range(count)),)

    def _tested(self, sampler: Sampler, row: OrderedRow, probs: Tensor, places: Tensor, visit: int) -> OrderedRow:
        """Keep the drafts of a burst up to the first rejection, in the order that keeps most."""
        assert row.drafts is not None
        tested = row.order[row.known : row.stop]
        chances = uniform(sampler.noise(Stream.ACCEPT, places, visit), torch.zeros(1, dtype=torch.int64))[0, :, 0]
        keys = sampler.noise(Stream.TARGET, places, visit)[0]

        def redraw(at: int, law: Tensor) -> int:
            noise = uniform(keys[at : at + 1], torch.arange(len(law)))[0].log().neg()  # the exponential race
            return int((law / noise.to(law.device)).argmax())

        drafts = torch.tensor([row.tokens[place] for place in tested], device=probs.device)
        best, kept, said = row.tried[0], list[int](), probs
        for ranks, laws in zip(row.tried, probs.split(len(tested)), strict=True):
            own = torch.tensor(ranks, device=probs.device)
            own_chances = chances[own.to(chances.device)].tolist()

            def is_kept(at: int, keep: float, own_chances: list[float] = own_chances) -> bool:
                return own_chances[at] < keep

            found = keep_drafts(drafts[own], laws, row.drafts[own], is_kept, redraw if self.redraws else None)
            if ranks is row.tried[0] or len(found) > len(kept):
                best, kept, said = ranks, found, laws
        row.order = [*row.order[: row.known], *(tested[rank] for rank in best), *row.order[row.stop :]]
        for at, (rank, token) in enumerate(zip(best, kept, strict=False)):
            row.tokens[tested[rank]], row.log_probs[tested[rank]] = token, float(said[at, token].log())
        row.known += len(kept)
        row.stop, row.drafts, row.tried = 0, None, ()
        return row
