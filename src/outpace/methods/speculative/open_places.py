"""What the methods share that fill masks behind the text of a causal model: a window of places, decided in any order.

A forward holds the text's new tokens, then the window's decided tokens, then its masks, each at its own position; under
causal attention a mask so sees the text and all that is decided. The mask for a place stands one position before it,
where a causal model speaks of it. The first place, as long as nothing behind it is decided, is said by the text's own
last output, so that a window in which nothing else is near enough is written as by plain decoding.

A model that was taught blocks in both directions (`Adapter.own_mask`) sees all of the window from each of its places,
and masks stand at their own: that of the first place too, which completes the block and says nothing until some other
place is decided.

Where settings read the text so far (penalties, bad words, constraints), each place is drawn given those before it, and
places are decided from left to right: of what a method chooses, the front is decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.methods.base import Method, nothing
from outpace.sampling.measures import measure, plain_measure
from outpace.setting import setting
from outpace.types import Context, Decision, Guarantee, Needs, Outcome, Proposal, Scores, View

__all__ = ["OpenPlaces", "Windows"]

Place = tuple[int, float]  # a token and its log-probability when it was drawn; -1 = open
OPEN: Place = (-1, 0.0)


@dataclass
class Windows:
    """The windows of the rows.

    Attributes:
        places: per row, those behind its text; none = no window is open. The first one is never decided.
        mask: the mask token, -1 = the model has none.
        limit: positions of the model's context.
        is_block: a window sees all of itself, and its masks say their own places.
    """

    places: list[list[Place]] = field(default_factory=list)
    mask: int = -1
    limit: int = 0
    is_block: bool = False


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Of every output of a row: the token drawn, its log-probability, and the law's entropy where it counts."""

    tokens: list[list[int]]
    logs: list[list[float]]
    entropy: list[list[float]]


@dataclass(frozen=True)
class OpenPlaces(Method):
    """Base of the methods: subclasses say which places are decided (`choose`).

    Attributes:
        block: places of a window; 1 = plain decoding.
    """

    block: int = setting(4, least=1)

    slides: ClassVar[bool] = False
    """A place opens at the end as soon as one at the beginning is text; else a window opens when all is text."""

    @property
    def is_ordered(self) -> bool:
        """Whether places are decided from left to right, and what is decided is text at once."""
        return False

    @property
    def needs(self) -> Needs:
        """A causal target whose cache forgets the masks again, and that scores a window out of order."""
        return Needs(has_tree=self.block > 1 and not self.is_ordered, has_rollback=True, width=self.block)

    @property
    def tail(self) -> int:
        """What became text together is forwarded with the next window."""
        return self.block

    @property
    def guarantee(self) -> Guarantee:
        """Tokens decided together ignore each other."""
        return Guarantee.EXACT if self.block == 1 else Guarantee.APPROXIMATE

    @property
    def is_resumable(self) -> bool:
        """What is decided behind an open place is no text yet."""
        return self.is_ordered

    def choose(self, at: Sequence[int], chance: Sequence[float], entropy: Sequence[float]) -> Sequence[int]:
        """Return which open places are decided now, one at least.

        Args:
            at: the open places, ascending, the first one of the window first.
            chance: probability of the token drawn for each, under the model's own law.
            entropy: of that law, in nats.
        """
        raise NotImplementedError

    def start(self, context: Context) -> Windows:
        """Return rows without windows.

        Raises:
            ConfigError: the model has no mask.
        """
        target, mask = context.target, context.target.mask_token
        is_block = mask is None and target.own_mask is not None
        mask = target.own_mask if is_block else mask
        if mask is None and self.block > 1:
            reason = "The model names no mask token: its config.json has no pard_token."
            raise ConfigError(reason, "Train one (outpace train stories-sets), or use block=1.")
        limit = target.capabilities.max_positions
        return Windows([[] for _ in context.texts], -1 if mask is None else int(mask), limit, is_block)

    def propose(self, view: View, state: Windows) -> Proposal:
        """Lay out each row's window: what is decided, then masks."""
        if self.block == 1:
            return nothing(view)
        tokens, position = list[list[int]](), list[list[int]]()
        for row, length in enumerate(view.lengths):
            places = self._window(view, state, row)
            shown = [at for at, (token, _) in enumerate(places) if token >= 0]
            # The text itself says a lone place, which needs no block.
            has_first = bool(shown) or (state.is_block and len(places) > 1)
            masked = [at for at, (token, _) in enumerate(places) if token < 0 and (at or has_first)]
            tokens.append([places[at][0] for at in shown] + [state.mask] * len(masked))
            position.append([length + at for at in shown] + [length + at - (not state.is_block) for at in masked])
        width = max(map(len, tokens))
        if not width:
            return nothing(view)
        table = torch.tensor([row + [0] * (width - len(row)) for row in tokens], device=view.device)
        at = visible = None  # masks alone stand where a chain would
        if state.is_block:
            visible = torch.ones(len(tokens), width, width, dtype=torch.bool, device=view.device)
        if state.is_block or any(token >= 0 for places in state.places for token, _ in places):
            at = torch.tensor([row + [0] * (width - len(row)) for row in position], device=view.device)
        counts = [len(row) for row in tokens]
        return Proposal(table, counts, position=at, visible=visible, origin=self.name, drafts=[0] * len(counts))

    def _window(self, view: View, state: Windows, row: int) -> list[Place]:
        """Return a row's places in this step; one at least."""
        places = state.places[row]
        if places and not self.slides:
            return places
        count = max(1, min(self.block, view.room[row], state.limit - len(view.texts[row])))
        return places + [OPEN] * (count - len(places))

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Windows) -> Decision:
        """Decide places; what is decided at the front of a window becomes text."""
        if self.block == 1:
            return super().accept(proposal, scores, view, state)
        windows = [self._window(view, state, row) for row in range(len(view.texts))]
        pairs = zip(windows, proposal.length, strict=True)
        asked = [_asked(places, count, state.is_block) for places, count in pairs]
        found = self._draw(asked, scores.logits, view, state.mask)
        is_ordered = self.is_ordered or view.sampler.settings.is_stateful
        texts, rest = list[list[Place]](), list[list[Place]]()
        for row, places in enumerate(windows):
            tokens, logs = found.tokens[row], found.logs[row]
            index = {at: output for at, output in asked[row] if tokens[output] >= 0}
            if 0 not in index:  # nothing can be drawn at the first place: the row ends here
                texts.append([OPEN])
                rest.append([])
                continue
            chance = [math.exp(logs[output]) for output in index.values()]
            entropy = [found.entropy[row][output] for output in index.values()] if found.entropy else []
            after = list(places)
            for at in self.choose(list(index), chance, entropy):
                after[at] = (tokens[index[at]], logs[index[at]])
            if is_ordered and after[0] == OPEN:
                after[0] = (tokens[0], logs[0])
            count = next((at for at, (token, _) in enumerate(after) if token < 0), len(after))
            texts.append(after[:count])
            rest.append([] if is_ordered else after[count:])
        return _decision(texts, rest, scores.logits.device)

    def _draw(self, asked: Sequence[Sequence[tuple[int, int]]], logits: Tensor, view: View, mask: int) -> _Drawn:
        """Return what is drawn from every output, [B, A]; outputs that are not asked may hold anything."""
        sampler, found = view.sampler, measure(logits) or plain_measure(logits)
        entropy = [] if self.is_ordered else found.entropy.tolist()
        is_plain = sampler.is_greedy and not sampler.settings.is_stateful and sampler.process(logits, None) is logits
        if is_plain and not (found.tokens[:, 1:] == mask).any():  # masks were never taught to say a mask
            return _Drawn(found.tokens.tolist(), (-np.log(found.mass)).tolist(), entropy)
        laws, device = logits.clone(), logits.device
        laws[:, 1:, mask] = float("-inf")
        place = torch.zeros(laws.shape[:2], dtype=torch.int64)
        for row, own in enumerate(asked):
            for at, index in own:
                place[row, index] = at
        position = torch.tensor(view.lengths, device=device).unsqueeze(1) + place.to(device)
        history = sampler.history(view.texts, view.prompts, logits.shape[-1])
        drawn = torch.full_like(position, -1)
        if history is None:
            drawn = sampler.pick(sampler.process(laws, None), position)
        else:
            every = torch.arange(len(asked), device=device)
            for k in range(max(map(len, asked))):
                output = torch.tensor([own[min(k, len(own) - 1)][1] for own in asked], device=device)
                one = sampler.pick(sampler.process(laws[every, output], history), position[every, output])
                is_next = [row for row, own in enumerate(asked) if k < len(own)]
                drawn[is_next, output[is_next]] = one[is_next]
                tokens = one.tolist()
                history.push(tokens, [row for row in is_next if tokens[row] >= 0])
        drawn_at = logits.gather(-1, drawn.clamp(min=0).unsqueeze(-1)).squeeze(-1).double().cpu().numpy()
        return _Drawn(drawn.tolist(), (drawn_at - found.top - np.log(found.mass)).tolist(), entropy)

    def observe(self, outcome: Outcome, view: View, state: Windows) -> Windows:
        """Take the windows as they are after the step."""
        del view
        return state if outcome.decision is None else replace(state, places=outcome.decision.carry)


def _asked(places: Sequence[Place], count: int, is_block: bool) -> list[tuple[int, int]]:
    """Return the open places of a window, each with where its law stands among the asked outputs.

    Args:
        places: of the window.
        count: nodes that were forwarded; the last ones may have been left out.
        is_block: of `Windows`.
    """
    num_shown = sum(token >= 0 for token, _ in places)
    is_open = [at for at, (token, _) in enumerate(places) if token < 0]
    first = 1 + num_shown if num_shown or is_block else 0  # index of the first mask, or of the text's own output
    found = [(at, first + number) for number, at in enumerate(is_open)]
    if is_block and not num_shown:
        found[0] = (0, 0)
    return [(at, index) for at, index in found if index <= count] or [(0, 0)]


def _decision(texts: Sequence[Sequence[Place]], rest: list[list[Place]], device: torch.device) -> Decision:
    width = max(1, *map(len, texts))
    padded = [[*text, *[OPEN] * (width - len(text))] for text in texts]
    tokens = torch.tensor([[token for token, _ in text] for text in padded], device=device)
    logs = torch.tensor([[log for _, log in text] for text in padded], dtype=torch.float64)
    num = torch.tensor([len(text) for text in texts], device=device)
    return Decision(tokens, num, torch.full_like(tokens, -1), log_probs=logs, carry=rest)
