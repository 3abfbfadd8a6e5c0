"""What networks that complete sketches share: sources read, places laid out, states of training, passes taken up again.

What is given is never deleted, moved or split: it stands in a `Sketch`, whose slots within phrases are closed whatever
the network says, and nothing that goes on with a given word may follow it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.errors import ConfigError

from . import stages
from .network import NarConfig, NarNet, Pass
from .planner import Planner
from .sketch import SPECIAL, Sketch, phrases_of

__all__ = ["NEVER", "Sketched", "SketchedConfig", "certain_laws"]

NEVER = -1e9  # a logit that no temperature brings back


@dataclass(frozen=True, slots=True, kw_only=True)
class SketchedConfig(NarConfig):
    """Sizes of a network that completes sketches.

    Attributes:
        plan: who says what is given where the source has no double bar: the source itself (""), or a pointer network
            that picks among the source's tokens ("source") or among what often goes with them ("graph").
        neighbours: of each token in the graph; 0 = there is no graph.
        candidates: most tokens of the graph that are picked among.
        longest_plan: most tokens picked.
        ungiven: share of the rows that are trained with nothing given.
    """

    plan: Literal["", "source", "graph"] = ""
    neighbours: int = 0
    candidates: int = 32
    longest_plan: int = 24
    ungiven: float = 0.0


class Sketched(NarNet):
    """Base of the networks whose places are the tokens of a sketch, between a start and an end."""

    Config = SketchedConfig
    importance: Tensor
    starts: Tensor
    joins: Tensor

    def __init__(self, config: SketchedConfig) -> None:
        super().__init__(config)
        self.register_buffer("importance", torch.ones(config.vocab_size))
        self.register_buffer("starts", torch.ones(config.vocab_size, dtype=torch.bool))
        self.register_buffer("joins", torch.zeros(config.vocab_size, dtype=torch.bool))
        self.planner = Planner(config) if config.plan else None

    def prepare(
        self,
        sources: Sequence[list[int]],
        targets: Sequence[list[int]],
        starts: Sequence[bool],
        joins: Sequence[bool] | None = None,
    ) -> None:
        """Count once what training texts tell: how rare each token is, and which go together.

        Args:
            sources, targets: tokens, without ends.
            starts: per token of the vocabulary, whether it begins a word.
            joins: whether it goes on with the word before it, so that it may not follow a given one; None = none does.
        """
        counts = torch.ones(self.config.vocab_size)
        for target in targets:
            counts[torch.tensor(sorted(set(target)), dtype=torch.int64)] += 1
        self.importance.copy_((len(targets) / counts).log().clamp(min=0))
        self.starts.copy_(torch.tensor(starts, dtype=torch.bool))
        self.joins.copy_(torch.tensor(joins or [False] * self.config.vocab_size, dtype=torch.bool))
        if self.planner is not None and self.config.plan == "graph":
            self.planner.connect(sources, targets, self.starts)

    # Sketches.

    def given(self, run: Pass) -> list[Sketch]:
        """Return what stands in each row's text from the beginning.

        Raises:
            ConfigError: nothing is given where the source should give it, or more than there are places.
        """
        starts, found = self.starts.tolist(), list[Sketch]()
        rows = [row[:count] for row, count in zip(run.sources.tolist(), run.is_real.sum(1).tolist(), strict=True)]
        plans = self.planner.plan(self, run) if self.planner is not None else [[] for _ in rows]
        for row, plan in zip(rows, plans, strict=True):
            phrases, has_bar = phrases_of(row, starts)
            if not has_bar and not self.config.plan and not phrases:
                raise ConfigError("No word is given.", "Give at least one, or what is to be read and || behind it.")
            found.append(Sketch.of(phrases if has_bar or not self.config.plan else plan))
        self.check_room(found, self.config.max_positions - 2)
        return found

    def check_room(self, sketches: Sequence[Sketch], room: int) -> None:
        """Refuse sketches that hold more than `room` tokens.

        Raises:
            ConfigError: one does.
        """
        longest = max((len(sketch.tokens) for sketch in sketches), default=0)
        if longest > room:
            raise ConfigError(
                f"{longest} tokens are given, but the text may have {room}.", "Give fewer words, or allow more tokens."
            )

    def lay_out(self, run: Pass, sketches: Sequence[Sketch]) -> None:
        """Make sketches the places of a pass; `extra` gets tokens [B, L], is_open and is_given [B, L]."""
        start, end, device = self.config.start_token, self.config.end_token, run.sources.device
        size = max(len(sketch.tokens) for sketch in sketches) + 2
        rows = [[start, *sketch.tokens, end] for sketch in sketches]
        opened = [sketch.is_open for sketch in sketches]
        given = [[False, *sketch.is_given] for sketch in sketches]
        tokens = torch.tensor([row + [end] * (size - len(row)) for row in rows], device=device)
        flags = [[row + [False] * (size - len(row)) for row in each] for each in (opened, given)]
        run.extra["tokens"] = tokens
        run.extra["is_open"], run.extra["is_given"] = (torch.tensor(flag, device=device) for flag in flags)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        run.is_place = torch.arange(size, device=device) < lengths[:, None]
        run.inputs = self.embed_tokens(tokens)

    def told(self, run: Pass) -> list[tuple[list[int], Sketch, list[int]]]:
        """Return per row of a training batch its target, what is given of it, and where that stands."""
        starts, found = self.starts.tolist(), []
        lengths, counts = run.lengths.tolist(), run.is_real.sum(1).tolist()
        plans = self.planner.gold(self, run) if self.planner is not None else None
        is_bare = (torch.rand(len(lengths)) < self.config.ungiven).tolist()
        for row, (source, target) in enumerate(zip(run.sources.tolist(), run.targets.tolist(), strict=True)):
            text = target[: lengths[row]]
            phrases = phrases_of(source[: counts[row]], starts)[0] if plans is None else plans[row]
            places = None if is_bare[row] else stages.matched(phrases, text)
            found.append((text, Sketch.of(phrases if places else []), places or []))
        return found

    def plan_loss(self, run: Pass) -> Tensor:
        """Return what the planner has to learn of a training batch, [B] nats; 0 without one."""
        return run.states.new_zeros(len(run.sources)) if self.planner is None else run.extra["plan_loss"]

    def places(self, run: Pass) -> tuple[Tensor, Tensor]:
        """Lay the given tokens out, or in training a state between them and the target."""
        sketches = self.trained(run) if run.targets.shape[1] else self.given(run)
        self.lay_out(run, sketches)
        return run.inputs, run.is_place

    @abstractmethod
    def trained(self, run: Pass) -> list[Sketch]:
        """Return a state for each row of a training batch; `extra` keeps what it should become."""

    def kept(self, run: Pass) -> list[Tensor]:
        """Return what rounds behind the first need of a pass, to be kept beside its outputs."""
        extra = run.extra
        return [extra["tokens"], extra["is_open"], extra["is_given"], run.states, run.is_real]

    def resume(self, outputs: Sequence[Tensor], is_place: Tensor) -> tuple[Pass, list[Sketch]]:
        """Return a pass and its sketches again, from what `finish` gave."""
        tokens, is_open, is_given, states, is_real = outputs[-5:]
        sketches = []
        for row, count in enumerate((is_place.sum(1) - 2).tolist()):
            glued = (~is_open[row, :count]).tolist()
            sketches.append(Sketch(tokens[row, 1 : count + 1].tolist(), is_given[row, 1 : count + 1].tolist(), glued))
        none = tokens[:, :0]
        run = Pass(is_real.long(), is_real, states, states[:, :0], is_place, none, none.sum(1))
        return run, sketches

    def laid(self, run: Pass, sketches: Sequence[Sketch], rows: Sequence[int]) -> Pass:
        """Return a pass of some rows, with the sketches of those rows as its places."""
        at = torch.tensor(rows, device=run.sources.device)
        part = [each.index_select(0, at) for each in (run.sources, run.is_real, run.states)]
        none = part[0][:, :0]
        found = Pass(part[0], part[1], part[2], part[2][:, :0], none.bool(), none, none.sum(1))
        self.lay_out(found, [sketches[row] for row in rows])
        return found

    def slots(self, hidden: Tensor) -> Tensor:
        """Return the two states on both sides of each slot, [B, L, 2W]; behind the last place is no slot."""
        return torch.cat([hidden, F.pad(hidden[:, 1:], (0, 0, 0, 1))], -1)

    def bordered(self, found: Tensor, is_behind: Tensor) -> Tensor:
        """Return log-probabilities [B, L, V or more] where nothing goes on with a given word.

        Args:
            found: before.
            is_behind: [B, L] bool, where the token before is a given one.
        """
        joins = F.pad(self.joins, (0, found.shape[-1] - len(self.joins)))
        return found.masked_fill(is_behind[:, :, None] & joins, NEVER)

    def written(self, hidden: Tensor) -> Tensor:
        """Return the log-probabilities [..., V + extra symbols] without tokens that no text holds."""
        found = hidden @ self.embed_tokens.weight.T if self.fast is None else self.fast.head(hidden)
        found = found if found.dtype == torch.float64 else found.float()
        special = torch.arange(found.shape[-1], device=found.device) < SPECIAL
        return found.masked_fill(special, NEVER).log_softmax(-1)


def certain_laws(tokens: Sequence[int], vocab_size: int, like: Tensor) -> Tensor:
    """Return logits [N, V] under which nothing else can come than these tokens, whatever the temperature."""
    laws = like.new_full((len(tokens), vocab_size), NEVER)
    at = torch.tensor(tokens, dtype=torch.int64, device=like.device)
    return laws.scatter(1, at[:, None], 0.0)
