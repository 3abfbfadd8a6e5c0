"""How trained drafters answer `Drafter`'s questions: what comes after the text, and after nodes on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from outpace.draft.features import Features
from outpace.draft.reading import Drafter
from outpace.heads.model import HeadModel
from outpace.run.tree import TokenTree, ancestors
from outpace.types import Context, Outcome, View

__all__ = ["HeadDrafter", "SlotDrafter", "Slots"]


@dataclass
class HeadDrafter(Drafter):
    """A trained drafter, and the target's states that it has not read yet.

    Subclasses give `texts`, `nodes` and `token`. What they keep per row has to be in dataclass fields that know rows
    (`outpace.run.state`).
    """

    adapter: HeadModel
    features: Features

    @property
    def ids(self) -> Tensor | None:
        """The tokens that the drafter was trained to draft; None = all."""
        return self.adapter.ids

    @staticmethod
    def features_for(model: HeadModel, context: Context) -> Features:
        """Return those of the joining rows, of which nothing is known yet."""
        config = model.net.config
        return Features.begin(config.outputs, len(context.texts), config.states_size, model.dtype, model.device)

    def is_ready(self, view: View) -> list[bool]:
        """Return which rows' states are known up to the token before the last one."""
        return [0 < end == length - 1 for end, length in zip(self.features.ends(), view.lengths, strict=True)]

    def reach(self, view: View, most: int | Sequence[int]) -> list[int]:
        """Return how many tokens ahead each row may draft; 0 where the states before its last token are not known."""
        reach = super().reach(view, most)
        return [n if is_on else 0 for n, is_on in zip(reach, self.is_ready(view), strict=True)]

    def observe(self, outcome: Outcome, view: View) -> None:
        """Take in the states of what became text; what was drafted is forgotten."""
        self.features.observe(outcome, view)
        if outcome.proposal is not None:
            self.forget(outcome, view)

    def forget(self, outcome: Outcome, view: View) -> None:
        """Do nothing: what a step drafted is not kept unless a kind says so."""


class Slots(Protocol):
    """A network whose drafts are laws of places ahead, all made at once."""

    def slots(self, model: HeadModel, states: Tensor, token: Tensor) -> Tensor:
        """Return hidden states or whatever `after` reads, [B, D, ...].

        Args:
            model: whose network it is.
            states: [B, F] of the token before the last one.
            token: [B] the last token of the text.
        """
        ...

    def after(self, model: HeadModel, slots: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return logits [B, N, K] of the next token.

        Args:
            model: whose network it is.
            slots: what `slots` returned.
            depth: [B, N] int64, how many drafted tokens stand before it, 0 to D - 1.
            path: [B, N, P] int64 drafted tokens before it, the text's last token first, -1 = none; P > depth.
        """
        ...


@dataclass
class SlotDrafter(HeadDrafter):
    """Drafts from laws of places ahead, and of the path to each where the network reads it.

    Attributes:
        made: what the network made of the text as it is now; None before it was asked.
        chain: the text's last token and the running chain, [B, 1 + n].
    """

    made: Tensor | None = field(default=None, init=False)
    chain: Tensor | None = field(default=None, init=False)

    @classmethod
    def begin_with(cls, model: HeadModel, context: Context) -> SlotDrafter:
        """Return the drafter of the joining rows."""
        cache = model.new_cache(len(context.texts), 1, context.counters["draft"])
        return cls(model, cache, cls.features_for(model, context))

    @property
    def _net(self) -> Slots:
        return self.adapter.net  # type: ignore[return-value]

    def reach(self, view: View, most: int | Sequence[int]) -> list[int]:
        """Return how many tokens ahead each row may draft, as many as there are places at most."""
        return [min(n, self.adapter.net.config.depth) for n in super().reach(view, most)]

    def observe(self, outcome: Outcome, view: View) -> None:
        """Keep the states of the token before the last one alone."""
        super().observe(outcome, view)
        for row, held in enumerate(self.features.held):
            if len(held) > 1:
                self.features.starts[row] += len(held) - 1
                self.features.held[row] = held[-1:]

    def texts(self, view: View, reach: Sequence[int]) -> Tensor:
        """Make the laws of all places, and return the first, [B, K]."""
        width = self.adapter.net.config.states_size
        none = torch.zeros(1, width, dtype=self.adapter.dtype, device=self.device)
        held = [held if ahead else none for held, ahead in zip(self.features.held, reach, strict=True)]
        last = torch.tensor([text[-1] for text in view.texts], device=self.device)
        self.made = self._net.slots(self.adapter, torch.cat(held), last)
        self.cache.counter.add(len(held), 0)
        self.chain = last.unsqueeze(1)
        depth = torch.zeros(len(held), 1, dtype=torch.int64, device=self.device)
        return self._net.after(self.adapter, self.made, depth, self.chain.unsqueeze(1))[:, 0]

    def nodes(self, tree: TokenTree, nodes: Tensor, is_real: Tensor) -> Tensor:
        """Return the laws after some nodes of a tree, [B, F, K]; no forward is run."""
        del is_real
        assert self.made is not None and self.chain is not None  # texts came first
        sees = ancestors(tree.parent).gather(1, nodes.unsqueeze(-1).expand(-1, -1, tree.parent.shape[1]))
        depth = sees.sum(-1)
        # Ancestors stand in order of depth, so that a path is what is left when the others are taken out.
        order = (~sees).to(torch.int8).sort(dim=-1, stable=True).indices[..., : int(depth.max())]
        tokens = tree.tokens.unsqueeze(1).expand(-1, nodes.shape[1], -1).gather(2, order)
        tokens = tokens.masked_fill(torch.arange(tokens.shape[-1], device=tokens.device) >= depth.unsqueeze(-1), -1)
        first = self.chain[:, :1].unsqueeze(1).expand(-1, nodes.shape[1], -1)
        path = torch.cat([first, tokens], -1)
        return self._net.after(self.adapter, self.made, self._within(depth), path)

    def token(self, token: Tensor, place: Tensor, running: Sequence[bool]) -> Tensor:
        """Lengthen the chains by a token each, and return the laws after it, [B, K]."""
        del place, running
        assert self.made is not None and self.chain is not None  # texts came first
        self.chain = torch.cat([self.chain, token.unsqueeze(1)], 1)
        depth = torch.full_like(self.chain[:, :1], self.chain.shape[1] - 1)
        return self._net.after(self.adapter, self.made, self._within(depth), self.chain.unsqueeze(1))[:, 0]

    def _within(self, depth: Tensor) -> Tensor:
        return depth.clamp(max=self.adapter.net.config.depth - 1)
