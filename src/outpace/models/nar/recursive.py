"""A recursive convolutional auto-encoder: halve a text to a vector with one module, double it back with another.

Paper: Zhang and LeCun (2018), arXiv 1802.01817: the same group of convolutions and a pooling is applied again and again
until `code` features are left, and the decoder's group as often, each time twice as long; a linear code lies between.
The text is said at all places at once, its end and all behind it as ends. With a vocabulary of bytes it is the paper's.
Differences: a norm before each pair of convolutions, which the paper does without; what pads a text to a power of two
is the end, not a byte of zero; fewer and narrower layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.papers import Paper

from .network import UNSAID, NarConfig, NarNet, Pass

__all__ = ["PAPERS", "Recursive", "RecursiveConfig"]

PAPERS = (
    Paper(
        "Byte-Level Recursive Convolutional Auto-Encoder for Text",
        "Zhang and LeCun",
        2018,
        "1802.01817",
        155,
        "Depths of 160 layers, paragraphs, and languages beside English.",
        "outpace train bytes-recursive && outpace train bytes-gru"
        " && python -m outpace.train.byte_accuracy runs/bytes-recursive runs/bytes-gru",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecursiveConfig(NarConfig):
    """Sizes of a recursive auto-encoder; heads, ffn and layers of either side mean nothing here.

    Attributes:
        pairs: pairs of convolutions in a group.
        code: features that a text is halved to, a power of two; the vector has `code` * `width` numbers.
    """

    width: int = 128
    pairs: int = 2
    code: int = 4


class Pairs(nn.Module):
    """Pairs of convolutions over three neighbours, each with a residual connection around it."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(count))
        # A matrix over three neighbours side by side is a convolution of kernel size 3.
        self.first = nn.ModuleList(nn.Linear(3 * width, width) for _ in range(count))
        self.second = nn.ModuleList(nn.Linear(3 * width, width) for _ in range(count))

    def forward(self, state: Tensor) -> Tensor:
        """Return the next states [B, L, W]; what lies outside counts as zero."""
        for norm, first, second in zip(self.norms, self.first, self.second, strict=True):
            state = state + second(_neighbours(F.relu(first(_neighbours(norm(state))))))
        return state


def _neighbours(state: Tensor) -> Tensor:
    wide = F.pad(state, (0, 0, 1, 1))
    return torch.cat([wide[:, :-2], state, wide[:, 2:]], -1)


class Recursive(NarNet):
    """A network whose encoder and decoder each repeat one group of convolutions."""

    Config = RecursiveConfig
    kind: ClassVar[str] = "recursive"
    own_layers: ClassVar[bool] = True

    def __init__(self, config: RecursiveConfig) -> None:
        super(NarNet, self).__init__()  # nothing of a Transformer is needed
        self.config, width, pairs, size = config, config.width, config.pairs, config.code * config.width
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        nn.init.normal_(self.embed_tokens.weight, std=width**-0.5)
        self.reads, self.halves = Pairs(width, pairs), Pairs(width, pairs)
        self.into, self.out_of = nn.Linear(size, size), nn.Linear(size, size)
        self.expand, self.doubles = nn.Linear(width, 2 * width), Pairs(width, pairs)
        self.writes, self.norm = Pairs(width, pairs), nn.LayerNorm(width)
        self.output = nn.Linear(width, config.vocab_size)

    def begin(
        self,
        sources: Tensor,
        is_real: Tensor,
        targets: Tensor | None = None,
        lengths: Tensor | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Pass:
        """Read sources into their vectors, `Pass.states` [B, code, W]; places are as many as the padded source's."""
        none, held = sources.new_zeros(len(sources), 0), sources.new_zeros(len(sources))
        sizes = self._sizes(is_real.sum(1))
        is_place = torch.arange(int(sizes.max()), device=sources.device) < sizes[:, None]
        padded = sources.masked_fill(~is_real, self.config.end_token)
        padded = F.pad(padded, (0, max(0, is_place.shape[1] - padded.shape[1])), value=self.config.end_token)
        states = self._by_size(sizes, lambda rows, size: self.read(padded[rows, :size]))
        given, counts = none if targets is None else targets, held if lengths is None else lengths
        return Pass(sources, is_real, states, states[:, :0], is_place, given, counts, dict(extra or {}))

    def places(self, run: Pass) -> tuple[Tensor, Tensor]:
        """Return no inputs, and the places that `begin` has laid out: all that is read of a source is its vector."""
        return run.inputs, run.is_place

    def finish(self, run: Pass) -> list[Tensor]:
        """Return the log-probabilities [B, L, V] of all places."""
        sizes = run.is_place.sum(1)
        hidden = self._by_size(sizes, lambda rows, size: self.write(run.states[rows], size))
        return [self.head(hidden)]

    def head(self, hidden: Tensor) -> Tensor:
        """Return the log-probabilities [..., V] of states [..., W]."""
        logits: Tensor = self.output(self.norm(hidden))
        return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)

    def read(self, tokens: Tensor) -> Tensor:
        """Return the vectors [B, code, W] of texts [B, size], whose size is `code` times a power of two."""
        state: Tensor = self.reads(self.embed_tokens(tokens))
        while state.shape[1] > self.config.code:
            state = F.max_pool1d(self.halves(state).transpose(1, 2), 2).transpose(1, 2)
        vectors: Tensor = self.into(state.flatten(1))
        return vectors.view_as(state)

    def write(self, vectors: Tensor, size: int) -> Tensor:
        """Return the states [B, size, W] that the decoder makes of vectors [B, code, W]."""
        state: Tensor = self.out_of(vectors.flatten(1)).view_as(vectors)
        while state.shape[1] < size:
            state = self.doubles(self.expand(state).view(len(state), -1, state.shape[-1]))
        written: Tensor = self.writes(state)
        return written

    def wanted(self, run: Pass) -> Tensor:
        """Return what each place has to say, [B, L]: the target, then ends; rows without room for one are UNSAID."""
        size = run.is_place.shape[1]
        at = torch.arange(size, device=run.targets.device)
        found = F.pad(run.targets[:, :size], (0, max(0, size - run.targets.shape[1])))
        found = torch.where(at < run.lengths[:, None], found, self.config.end_token)
        return found.masked_fill(~(run.is_place & (run.lengths < run.is_place.sum(1))[:, None]), UNSAID)

    def nll(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return that of the target and its ends; 1e30 where there is no room for them."""
        wanted = self.wanted(run)
        said = outputs[0].gather(2, wanted.clamp(min=0)[:, :, None])[:, :, 0]
        return -(said * (wanted >= 0)).sum(1) + 1e30 * (wanted < 0).all(1)

    def aligned(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return what each place has to say."""
        del outputs
        return self.wanted(run)

    def laws(self, outputs: Sequence[Tensor], is_place: Tensor) -> list[Tensor]:
        """Return the laws of all places of each row; the text ends at the first end."""
        return [row[held] for row, held in zip(outputs[0], is_place, strict=True)]

    def _sizes(self, lengths: Tensor) -> Tensor:
        """Return the smallest `code` times a power of two that holds each length, [B] int64."""
        sizes = torch.full_like(lengths, self.config.code)
        while bool((sizes < lengths).any()):
            sizes = torch.where(sizes < lengths, 2 * sizes, sizes)
        return sizes

    @staticmethod
    def _by_size(sizes: Tensor, work: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Do work on the rows of each size, so that no row sees another's padding, and lay its results together."""
        order, parts = list[Tensor](), list[Tensor]()
        longest = 0
        for rows, size in _groups(sizes):
            order.append(rows)
            parts.append(work(rows, size))
            longest = max(longest, parts[-1].shape[1])
        padded = torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])
        return padded[torch.cat(order).argsort()]


def _groups(sizes: Tensor) -> Iterator[tuple[Tensor, int]]:
    for size in sorted(set(sizes.tolist())):
        yield (sizes == size).nonzero()[:, 0], size
