"""A directed acyclic graph of places: each says a token and links to later ones; a text is a path, and all paths count.

Papers: Huang et al. (2022), arXiv 2205.07459 (the network, its loss, greedy decoding); Huang et al. (2023),
arXiv 2304.11791 (PreDAT), which pre-trains it (`outpace.train.nar.infilling`).
Differences: a place links to the next `reach` places, so that a row's links are [L, reach] however many places there
are; the first place and the last one say nothing (see `lattice`). A source token has a fixed number of places.

In training, what each place says is looked up for the target's tokens alone, a block of places at a time, and made
anew on the way back: neither [B, L, V] nor its gradient is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from outpace.errors import ConfigError

from .lattice import NEVER, best_paths, log_likelihood
from .network import UNSAID, NarConfig, NarNet, Pass
from .paths import beam_texts

__all__ = ["Dag", "DagConfig", "next_places", "said_of", "walk"]

_BEAM, _CANDIDATES = 12, 3  # of the texts that drafts are made of: prefixes and tokens at each place


@dataclass(frozen=True, slots=True, kw_only=True)
class DagConfig(NarConfig):
    """Sizes of a graph.

    Attributes:
        factor: places per source token.
        reach: M, how many places ahead a link can lead.
        link_heads: attentions whose mixture is the law of the next place.
        block: places whose laws over tokens are held at once in training.
    """

    factor: int = 8
    reach: int = 32
    link_heads: int = 4
    block: int = 512


class Dag(NarNet):
    """A network whose places form a graph.

    Raises:
        ConfigError: the longest source would have more places than there are positions.
    """

    Config = DagConfig
    kind: ClassVar[str] = "dag"
    config: DagConfig

    def __init__(self, config: DagConfig) -> None:
        if config.factor * config.max_source > config.max_positions or config.factor < 2 or config.reach < 1:
            raise ConfigError(
                f"A graph of {config.factor} places per source token, each with {config.reach} links, cannot have "
                f"sources of {config.max_source} tokens and at most {config.max_positions} places.",
                "Give it two places per token, a link and more, and max_positions of factor * max_source at least.",
            )
        super().__init__(config)
        width = config.width
        self.offsets = nn.Embedding(config.factor, width)
        nn.init.normal_(self.offsets.weight, std=width**-0.5)
        self.link_query, self.link_key = nn.Linear(2 * width, width), nn.Linear(2 * width, width)
        self.link_gate = nn.Linear(2 * width, config.link_heads)

    def places(self, run: Pass) -> tuple[Tensor, Tensor]:
        """Copy each source state to `factor` places, told apart by their offsets."""
        factor = self.config.factor
        inputs = (run.states[:, :, None] + self.offsets.weight).flatten(1, 2)
        return inputs, run.is_real.repeat_interleave(factor, 1)

    def finish(self, run: Pass) -> list[Tensor]:
        """Return log-probabilities [B, L, V] and links [B, L, M], log-probabilities of the next M places."""
        hidden = self.decode(run)
        return [self.head(hidden), self.links(hidden, run.is_place)]

    def links(self, hidden: Tensor, is_place: Tensor) -> Tensor:
        """Return the log-probabilities [B, L, M] of going on to each of the next M places, -inf behind the last one."""
        config, size = self.config, hidden.shape[1]
        # 1) Positions stand beside states, so that distance can be learnt whatever the layers made of it.
        both = torch.cat([hidden, self.place_positions.weight[:size].expand_as(hidden)], -1)
        parts = self.link_query(both), self.link_key(both)
        query, key = (part.unflatten(-1, (config.link_heads, -1)).transpose(1, 2) for part in parts)
        scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        scores = scores if scores.dtype == torch.float64 else scores.float()
        # 2) Of all pairs, those with the next places; a mixture of laws over those is a law.
        ahead, is_link = next_places(is_place, config.reach)
        taken = ahead.clamp(max=size - 1).expand(*scores.shape[:2], -1, -1)
        laws = scores.gather(3, taken).masked_fill(~is_link[:, None], NEVER).log_softmax(-1)
        gates = self.link_gate(both).to(scores.dtype).log_softmax(-1).transpose(1, 2)
        mixed: Tensor = (laws + gates[..., None]).logsumexp(1)
        return mixed.masked_fill(~is_link, float("-inf"))

    def loss(self, run: Pass) -> Tensor:
        """Return `nll`, with blocks of places in place of all log-probabilities."""
        hidden = self.decode(run)
        said = said_of(self, hidden, run.targets, self.config.block)
        return self._nll(said, self.links(hidden, run.is_place), run)

    def nll(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Sum over all paths; a target without one gets 1e30."""
        return self._nll(_emissions(outputs[0], run.targets), outputs[1], run)

    def _nll(self, said: Tensor, links: Tensor, run: Pass) -> Tensor:
        return -log_likelihood(said, links, run.is_place.sum(1), run.lengths)

    def glance(self, run: Pass) -> tuple[Tensor, Tensor]:
        """Return what each place should say and what it says, a block of places at a time, as in `loss`."""
        hidden, parts = self.decode(run), list[tuple[Tensor, Tensor]]()
        for part, wanted in _blocks(hidden, run.targets, self.config.block):
            found = self.head(part)
            parts.append((found.gather(1, wanted), found.argmax(-1)))
        said, tops = (torch.cat(side).unflatten(0, run.is_place.shape) for side in zip(*parts, strict=True))
        return self._on_path(said.transpose(1, 2), self.links(hidden, run.is_place), run), tops

    def aligned(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return each target token at its place on the likeliest path; rows without one are UNSAID throughout."""
        return self._on_path(_emissions(outputs[0], run.targets), outputs[1], run)

    def _on_path(self, said: Tensor, links: Tensor, run: Pass) -> Tensor:
        path, _ = best_paths(said, links, run.is_place.sum(1), run.lengths)
        found = run.targets.new_full(run.is_place.shape, UNSAID)
        # Place 0 is on no path: it takes what has none, and is cleared.
        found.scatter_(1, path, run.targets)
        found[:, 0] = UNSAID
        return found

    def laws(self, outputs: Sequence[Tensor], is_place: Tensor) -> list[Tensor]:
        """Follow the likeliest link from place to place, and say what each says."""
        said, links = outputs
        following = next_places(is_place, links.shape[2])[0].expand(links.shape).gather(2, links.argmax(-1)[..., None])
        rows = zip(said, following[..., 0].tolist(), is_place.sum(1).tolist(), strict=True)
        return [law[walk(going, size)] for law, going, size in rows]

    def texts(self, outputs: Sequence[Tensor], is_place: Tensor, count: int) -> list[list[list[int]]]:
        """Return the best texts of a beam over prefixes, up to each one's first end token."""
        rows = zip(*outputs, is_place.sum(1).tolist(), strict=True)
        found = [beam_texts(said[:size], links[:size], _BEAM, _CANDIDATES) for said, links, size in rows]
        return [[_until(text, self.config.end_token) for _, text in texts[:count]] for texts in found]


def _until(text: Sequence[int], end: int) -> list[int]:
    return list(text[: text.index(end)] if end in text else text)


def walk(following: Sequence[int], size: int) -> list[int]:
    """Return the places between the first and the last of `size`, going from each to the one that follows it."""
    path, at = list[int](), following[0]
    while at < size - 1:
        path.append(at)
        at = following[at]
    return path


def next_places(is_place: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Return where each link leads, [1, L, M] int64, and which links there are, [B, L, M] bool."""
    size = is_place.shape[1]
    ahead = torch.arange(size, device=is_place.device)[:, None] + 1 + torch.arange(reach, device=is_place.device)
    return ahead[None], ahead < is_place.sum(1)[:, None, None]


def _emissions(log_probs: Tensor, targets: Tensor) -> Tensor:
    """Return how likely each place says each target token, [B, T, L]."""
    index = targets[:, None].expand(-1, log_probs.shape[1], -1)
    return log_probs.gather(2, index).transpose(1, 2)


def said_of(net: NarNet, hidden: Tensor, targets: Tensor, block: int) -> Tensor:
    """Return how likely last states [B, L, W] say each target token, [B, T, L], `block` places of a batch at a time."""
    blocks = _blocks(hidden, targets, block)
    parts = [checkpoint(_said_in, net, part, wanted, use_reentrant=False) for part, wanted in blocks]
    said: Tensor = torch.cat(parts).view(*hidden.shape[:2], -1)
    return said.transpose(1, 2)


def _blocks(hidden: Tensor, targets: Tensor, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield last states [N, W] of places, whatever their rows, and the tokens [N, T] of each one's row."""
    wanted = targets[:, None].expand(-1, hidden.shape[1], -1).flatten(0, 1)
    yield from zip(hidden.flatten(0, 1).split(block), wanted.split(block), strict=True)


def _said_in(net: NarNet, hidden: Tensor, wanted: Tensor) -> Tensor:
    return net.head(hidden).gather(1, wanted)
