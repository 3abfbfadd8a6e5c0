"""How far decoding under a cache policy strays from decoding without one: laws, likeliest tokens, final texts.

Two measurements, because a stale entry changes the law, and a changed law changes what is written from there on:

- forced: both sides see the same tokens, those that uncached decoding writes. At every step the cached side keeps its
  own entries and its laws are compared with the exact ones, place by place.
- free: the cached side writes its own text; what share of its tokens equals the uncached text, place by place.

Cost: three decodings of the text, one row at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.canvas.advance import Advance, advance, keep, write
from outpace.canvas.parts import Parts
from outpace.canvas.policies import Policy
from outpace.canvas.reading import Reading, read
from outpace.canvas.row import CanvasRow
from outpace.canvas.window import CanvasWindow, lay_window, propose_windows
from outpace.errors import ModelError
from outpace.run.layout import lay_out
from outpace.run.prefill import catch_up
from outpace.sampling import Sampler
from outpace.types import Adapter

__all__ = ["Divergence", "divergence"]


@dataclass
class Divergence:
    """What a policy changed, summed over rows; the ratios are properties.

    Attributes:
        policy, refresh, radius: the policy.
        steps: forced steps, equal on both sides.
        laws: laws compared: one per asked place and step.
        kl: sum of KL(uncached || cached) over them, in nats.
        worst_kl: the greatest one.
        changed: laws whose likeliest token is another one.
        tokens, agreeing: final tokens compared between the free texts, and those that agree.
        positions, uncached_positions: positions forwarded by the forced sides after the prefill.
    """

    policy: str
    refresh: int = 0
    radius: int = 0
    steps: int = 0
    laws: int = 0
    kl: float = 0.0
    worst_kl: float = 0.0
    changed: int = 0
    tokens: int = 0
    agreeing: int = 0
    positions: int = 0
    uncached_positions: int = 0

    @property
    def mean_kl(self) -> float:
        """Nats per law."""
        return self.kl / max(1, self.laws)

    @property
    def changed_share(self) -> float:
        """Share of laws whose likeliest token is another one."""
        return self.changed / max(1, self.laws)

    @property
    def agreement(self) -> float:
        """Share of final tokens that are those of uncached decoding."""
        return self.agreeing / max(1, self.tokens)

    @property
    def positions_share(self) -> float:
        """Positions forwarded, as a share of the uncached ones."""
        return self.positions / max(1, self.uncached_positions)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, ratios included."""
        names = ("mean_kl", "changed_share", "agreement", "positions_share")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}

    def _compare(self, exact: Reading, cached: Reading) -> None:
        log_p, log_q = (reading.logits.double().log_softmax(-1) for reading in (exact, cached))
        # A forbidden token has -inf on both sides and weighs nothing.
        terms = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0)
        each = terms.sum(-1).clamp(min=0.0)
        self.laws += len(each)
        self.kl += float(each.sum())
        self.worst_kl = max(self.worst_kl, float(each.max()))
        self.changed += int((log_p.argmax(-1) != log_q.argmax(-1)).sum())


@dataclass
class _Lane:
    """One row being decoded by hand, with a cache of its own."""

    target: Adapter
    parts: Parts
    row: CanvasRow
    sampler: Sampler
    banned: Tensor
    cache: Cache = field(init=False)
    positions: int = 0

    def __post_init__(self) -> None:
        target, text = self.target, self.row.tokens[: self.row.prompt].tolist()
        self.cache = target.new_cache(1, 2 * len(self.row.tokens))
        if target.capabilities.attention != "full":
            for _ in catch_up(target, self.cache, [text]):
                pass
        self.row = replace(self.row, held=np.arange(self.cache.lengths[0]))

    @property
    def is_done(self) -> bool:
        return self.row.base >= self.row.live()

    def look(self) -> tuple[CanvasWindow, Reading]:
        """Forward what the cache lacks."""
        window = lay_window(self.row, self.parts)
        layout = lay_out([[]], [0], propose_windows([window], self.banned.device, ""))
        scores = self.target.score(layout.tokens, layout.position, layout.visible, self.cache, layout.ask)
        self.positions += len(window.tokens)
        reading = read(scores.logits[0], window.asked, self.row, self.parts.canvas, self.sampler, self.banned)
        if reading.is_broken:
            raise ModelError("The model produced NaN or infinite logits.", "Check its weights, or use float32.")
        return window, reading

    def take(self, step: Advance) -> None:
        """Go on from what a step left."""
        self.row = step.row
        self.cache.retain([step.slots.tolist()])

    def follow(self, window: CanvasWindow, after: CanvasRow) -> None:
        """Take the tokens of another lane, and the entries that this lane's policy keeps."""
        mine = replace(after, held=self.row.held, age=self.row.age)
        self.take(keep(self.row, mine, window, self.parts))

    def run(self) -> list[int]:
        """Decode to the end; return the text after the prompt."""
        while not self.is_done:
            window, reading = self.look()
            self.take(advance(self.row, reading, window, self.parts))
        return self.text()

    def text(self) -> list[int]:
        """Return what lies behind the prompt, up to the end of the text."""
        return [int(token) for token in self.row.tokens[self.row.prompt : self.row.live()]]


def divergence(
    target: Adapter,
    parts: Parts,
    texts: Sequence[Sequence[int]],
    num_tokens: int,
    policies: Sequence[Policy],
    sampler: Sampler,
) -> list[Divergence]:
    """Return what each policy changes.

    Args:
        target: a masked model.
        parts: how it is decoded; its policy is replaced.
        texts: prompts.
        num_tokens: places behind each prompt; an end token ends a text before them.
        policies: to be compared with no cache.
        sampler: one row per text, with its end tokens.

    Raises:
        ModelError: the model's logits are no numbers.
    """
    found = [Divergence(policy.name, policy.refresh, policy.radius) for policy in policies]
    for index, text in enumerate(texts):
        alone = sampler.rows([index])
        device = target.device
        banned = torch.tensor([parts.canvas.mask_id], device=device)
        row = CanvasRow.begin(text, [-1] * num_tokens, parts.canvas, alone.end_tokens[0])
        exact = _Lane(target, replace(parts, policy=Policy("none")), row, alone, banned)
        kinds = [replace(parts, policy=policy) for policy in policies]
        lanes = [_Lane(target, kind, row, alone, banned) for kind in kinds]
        _force(exact, lanes, found)
        wanted = exact.text()
        for kind, seen in zip(kinds, found, strict=True):
            got = _Lane(target, kind, row, alone, banned).run()
            seen.tokens += max(len(wanted), len(got))
            seen.agreeing += sum(ours == theirs for ours, theirs in zip(got, wanted, strict=False))
    return found


def _force(exact: _Lane, lanes: Sequence[_Lane], found: Sequence[Divergence]) -> None:
    """Let every lane see the tokens that the first one writes, and note how their laws differ."""
    while not exact.is_done:
        window, reading = exact.look()
        views = [lane.look() for lane in lanes]
        for (_, cached), seen in zip(views, found, strict=True):
            seen._compare(reading, cached)
            seen.steps += 1
        after = write(exact.row, reading, exact.parts)
        for lane, (theirs, _) in zip(lanes, views, strict=True):
            lane.follow(theirs, after)
        exact.follow(window, after)
    for lane, seen in zip(lanes, found, strict=True):
        seen.positions += lane.positions
        seen.uncached_positions += exact.positions
