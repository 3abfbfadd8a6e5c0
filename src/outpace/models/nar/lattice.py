"""Programs over lattices: a text is a path that jumps forward from place to place, and each place on it says a token.

A lattice of n places begins at place 0, which says nothing, and ends at place n - 1, the text's end. From place i a
path goes on to one of the next M places. Its probability is the product of its links and of what its places say; that
of a text is the sum over all its paths, so that all texts together have probability 1.

Source: Huang et al. (2022), arXiv 2205.07459, equations 3 to 6. There the ends say tokens of their own, which costs
nothing and teaches nothing, so here they say none.

Shapes: B rows, L places, M links of a place, T tokens. `links` [B, L, M] holds log-probabilities, -inf for none: entry
m of place i leads to place i + 1 + m. `emissions` [B, T, L]: how likely each place says each target token, in logs.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "NEVER",
    "Programs",
    "best_paths",
    "incoming",
    "log_likelihood",
    "plain_log_likelihood",
    "reached_from",
    "take",
]

NEVER = -1e30  # stands for -inf inside: a difference of two of them is a number


class Programs(Protocol):
    """The same programs in compiled form; `outpace.kernels.lattice` offers them (`take`)."""

    def fits(self, emissions: Tensor) -> bool:
        """Return whether they run on such tensors here."""
        ...

    def forward(self, emissions: Tensor, into: Tensor, sizes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums over all paths [B], and what was reached."""
        ...

    def best_paths(self, emissions: Tensor, into: Tensor, sizes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the likeliest paths and their log-probabilities."""
        ...

    def backward(
        self,
        emissions: Tensor,
        into: Tensor,
        sizes: Tensor,
        lengths: Tensor,
        reached: Tensor,
        found: Tensor,
        given: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of emissions and links."""
        ...


_offered: list[Programs] = []  # none until kernels are there


def take(programs: Programs) -> None:
    """Run on these programs from now on, wherever they fit."""
    _offered[:] = [programs]


def _compiled(emissions: Tensor) -> Programs | None:
    return next((programs for programs in _offered if programs.fits(emissions)), None)


def incoming(links: Tensor) -> Tensor:
    """Return the links by where they lead, [B, M, L]: entry m of place j comes from place j - 1 - m."""
    rows, size, reach = links.shape
    steps = torch.arange(reach, device=links.device)[:, None]
    source = torch.arange(size, device=links.device) - 1 - steps
    flat = source.clamp(min=0) * reach + steps
    found = links.flatten(1).gather(1, flat.flatten().expand(rows, -1)).view(rows, reach, size)
    return found.masked_fill(source < 0, NEVER).clamp(min=NEVER)


def log_likelihood(emissions: Tensor, links: Tensor, places: Tensor, lengths: Tensor) -> Tensor:
    """Return the log-probability [B] of the targets, the sum over all paths; below -1e20 where there is none.

    Memory is [B, T + 1, L] and [B, M, L]: the way back makes the sums over links anew, token by token.

    Args:
        emissions: [B, T, L].
        links: [B, L, M].
        places: [B] int64, n of each row, at least 2.
        lengths: [B] int64 of the targets.
    """
    found: Tensor = _Sum.apply(  # type: ignore[no-untyped-call]
        emissions, incoming(links), places, lengths
    )
    return found


def plain_log_likelihood(emissions: Tensor, links: Tensor, places: Tensor, lengths: Tensor) -> Tensor:
    """Return the same as `log_likelihood`, step by step under PyTorch's own differentiation: T times the memory."""
    into, reached = incoming(links), _start(emissions)
    for token in range(emissions.shape[1]):
        following = torch.logsumexp(reached_from(reached, into.shape[1]) + into, 1) + emissions[:, token]
        reached = torch.where((token < lengths)[:, None], following, reached)
    last = torch.logsumexp(reached_from(reached, into.shape[1]) + into, 1)
    return last.gather(1, places[:, None] - 1)[:, 0]


@torch.no_grad()
def best_paths(emissions: Tensor, links: Tensor, places: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the place of each target token on the likeliest path [B, T], and its log-probability [B].

    Places are 0 behind a target's end, and throughout a row without a path.
    """
    into = incoming(links)
    compiled = _compiled(emissions)
    if compiled is not None:
        return compiled.best_paths(emissions, into, places, lengths)
    reached, moves = _start(emissions), list[Tensor]()
    for token in range(emissions.shape[1]):
        following, move = (reached_from(reached, into.shape[1]) + into).max(1)
        is_on = (token < lengths)[:, None]
        reached = torch.where(is_on, following + emissions[:, token], reached)
        moves.append(torch.where(is_on, move + 1, 0))
    last, move = (reached_from(reached, into.shape[1]) + into).max(1)
    end = places[:, None] - 1
    found = last.gather(1, end)[:, 0]
    at = end - 1 - move.gather(1, end)
    path = [at]
    for move in reversed(moves[1:]):
        at = (at - move.gather(1, at.clamp(min=0))).clamp(min=0)
        path.append(at)
    path = path[::-1][: emissions.shape[1]]
    whole = torch.cat(path, 1) if path else emissions.new_zeros(len(emissions), 0, dtype=torch.int64)
    is_real = torch.arange(whole.shape[1], device=whole.device) < lengths[:, None]
    return torch.where(is_real & (found > NEVER / 1e10)[:, None], whole, 0), found


def _start(emissions: Tensor) -> Tensor:
    """Return the log-probabilities [B, L] of standing at each place before the first token."""
    reached = emissions.new_full((len(emissions), emissions.shape[2]), NEVER)
    reached[:, 0] = 0.0
    return reached


def reached_from(reached: Tensor, reach: int) -> Tensor:
    """Return [B, M, L]: entry m of place j is `reached` [B, L] at place j - 1 - m."""
    padded = F.pad(reached, (reach, 0), value=NEVER)
    # Windows begin at place j - M; the last of each is place j itself, which no link comes from.
    return padded.unfold(1, reach + 1, 1)[:, :, :-1].flip(-1).transpose(1, 2)


class _Sum(torch.autograd.Function):
    """The sum over paths with the way back written out: it keeps what was reached, and makes all else anew."""

    @staticmethod
    def forward(ctx: Any, emissions: Tensor, into: Tensor, places: Tensor, lengths: Tensor) -> Tensor:
        emissions, into = emissions.detach().clamp(min=NEVER), into.detach()
        compiled = _compiled(emissions)
        if compiled is not None:
            found, reached = compiled.forward(emissions, into, places, lengths)
        else:
            steps = [_start(emissions)]
            for token in range(emissions.shape[1]):
                following = torch.logsumexp(reached_from(steps[-1], into.shape[1]) + into, 1) + emissions[:, token]
                steps.append(torch.where((token < lengths)[:, None], following, steps[-1]))
            reached = torch.stack(steps, 1)
            last = torch.logsumexp(reached_from(steps[-1], into.shape[1]) + into, 1)
            found = last.gather(1, places[:, None] - 1)[:, 0]
        ctx.save_for_backward(emissions, into, places, lengths, reached, found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        emissions, into, places, lengths, reached, found = ctx.saved_tensors
        given = torch.where(found > NEVER / 1e10, given, 0.0)
        compiled = _compiled(emissions)
        if compiled is not None:
            return *compiled.backward(emissions, into, places, lengths, reached, found, given), None, None
        reach, end = into.shape[1], places[:, None] - 1
        emission_grad, into_grad = torch.zeros_like(emissions), torch.zeros_like(into)
        # What flows into the end comes from the last token's place, or from the start where there is no token.
        flow = torch.zeros_like(reached[:, 0]).scatter_(1, end, given[:, None])
        total = torch.zeros_like(flow).scatter_(1, end, found[:, None])
        for token in range(emissions.shape[1], -1, -1):
            # 1) Share out what arrives at each place among the places it can come from.
            before = reached_from(reached[:, token], reach)
            share = torch.exp(before + into - total[:, None]) * flow[:, None]
            share = share.masked_fill((flow == 0)[:, None], 0.0)
            is_on = (token < lengths) | (token == emissions.shape[1])
            share = torch.where(is_on[:, None, None], share, 0.0)
            into_grad += share
            # 2) Gather it there: entry m of place j belongs to place j - 1 - m.
            gathered = _gathered(share)
            flow = torch.where(is_on[:, None], gathered, flow)
            # 3) It passed through what those places say.
            if token:
                emission_grad[:, token - 1] = torch.where((token <= lengths)[:, None], flow, 0.0)
                total = reached[:, token] - emissions[:, token - 1]
        return emission_grad, into_grad, None, None


def _gathered(share: Tensor) -> Tensor:
    """Return [B, L]: the sum at place i of entries m of places i + 1 + m of `share` [B, M, L]."""
    rows, reach, size = share.shape
    steps = torch.arange(reach, device=share.device)[:, None]
    target = torch.arange(size, device=share.device) + 1 + steps
    flat = steps * size + target.clamp(max=size - 1)
    found = share.flatten(1).gather(1, flat.flatten().expand(rows, -1)).view(rows, reach, size)
    return found.masked_fill(target >= size, 0.0).sum(1)
