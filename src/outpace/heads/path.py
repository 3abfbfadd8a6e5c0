"""What the drafted path adds to the laws of a block's places: nothing, a bigram, a recurrent state, or a selector.

All read the tokens before a place and leave the body's one pass as it is, so that every chain and tree over the places
is drafted without another forward of the body.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.heads.net import HeadConfig

__all__ = ["Confidence", "GruPath", "MarkovPath", "PathNet", "SelectorPath"]


class Embeds(Protocol):
    """The target, while a drafter is trained or drafts."""

    ids: Tensor | None

    def embed(self, tokens: Tensor) -> Tensor:
        """Return embeddings [..., hidden]."""
        ...


class PathNet(nn.Module):
    """Nothing: laws that do not know the path."""

    has_confidence = False

    def teach(self, target: Embeds, hidden: Tensor, logits: Tensor, before: Tensor) -> Tensor:
        """Return the laws of all places of whole blocks, the text being the path.

        Args:
            target: the target.
            hidden: [B, A, D, H].
            logits: [B, A, D, K].
            before: [B, A, D] int64, the token before each place, the anchor first.
        """
        del target, hidden, before
        return logits

    def after(self, target: Embeds, hidden: Tensor, logits: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return the laws after paths, [B, N, K].

        Args:
            target: the target.
            hidden: [B, N, H] of the places.
            logits: [B, N, K] of the places.
            depth: [B, N] int64, drafted tokens on the path.
            path: [B, N, P] int64, the anchor and the path; -1 = none.
        """
        del target, hidden, depth, path
        return logits

    def confidence(self, target: Embeds, hidden: Tensor, before: Tensor) -> Tensor:
        """Return logits [...] of the chance that a place's draft is kept, its path being right.

        Raises:
            NotImplementedError: it has no such part.
        """
        raise NotImplementedError


class Confidence(nn.Module):
    """A linear map to one number."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [...] of [..., size], in float32 at least."""
        kind = torch.promote_types(x.dtype, torch.float32)
        bias = self.proj.bias.to(kind)
        return F.linear(x.to(kind), self.proj.weight.to(kind), bias)[..., 0]


class Previous(nn.Module):
    """A short vector of the token before: from a table of the vocabulary, or by a matrix from the embeddings."""

    def __init__(self, config: HeadConfig, rank: int, is_table: bool) -> None:
        super().__init__()
        self.is_table = is_table
        shape = (config.vocab_size, rank) if is_table else (rank, config.hidden_size)
        self.weight = nn.Parameter(torch.randn(shape) * (0.02 if is_table else config.hidden_size**-0.5))

    def forward(self, target: Embeds, before: Tensor) -> Tensor:
        """Return [..., rank] of tokens [...]."""
        before = before.clamp(min=0)
        if self.is_table:
            return F.embedding(before, self.weight)
        return F.linear(target.embed(before).to(self.weight.dtype), self.weight)


class MarkovPath(PathNet):
    """logits += W2 w1[token before]; DSpark's plain form. W2 begins at 0."""

    def __init__(self, config: HeadConfig, rank: int, is_table: bool, confidence: Confidence | None) -> None:
        super().__init__()
        self.markov_w1 = Previous(config, rank, is_table)
        self.markov_w2 = nn.Linear(rank, config.draft_vocab or config.vocab_size, bias=False)
        nn.init.zeros_(self.markov_w2.weight)
        self.confidence_head = confidence
        self.has_confidence = confidence is not None

    def teach(self, target: Embeds, hidden: Tensor, logits: Tensor, before: Tensor) -> Tensor:
        """Return the laws with the bigram's share."""
        del hidden
        found: Tensor = logits + self.markov_w2(self.markov_w1(target, before))
        return found

    def after(self, target: Embeds, hidden: Tensor, logits: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return the laws with the bigram's share."""
        return self.teach(target, hidden, logits, _last(depth, path))

    def confidence(self, target: Embeds, hidden: Tensor, before: Tensor) -> Tensor:
        """Return logits [...] of [..., H] hidden states and tokens [...]."""
        assert self.confidence_head is not None  # has_confidence says so
        before_is = self.markov_w1(target, before)
        found: Tensor = self.confidence_head(torch.cat([hidden, before_is.to(hidden.dtype)], -1))
        return found


class GruPath(PathNet):
    """logits += W2 SiLU(W1 [h; state]) with a GRU's state over the anchor and the path; Domino's. W2 begins at 0.

    The first `pure` places do not hear it.
    """

    def __init__(self, config: HeadConfig, rank: int, size: int, pure: int) -> None:
        super().__init__()
        self.pure = pure
        self.prefix_gru = nn.GRU(config.hidden_size, size, bias=False, batch_first=True)
        self.embed_proj = nn.Sequential(
            nn.Linear(config.hidden_size + size, rank, bias=False),
            nn.SiLU(),
            nn.Linear(rank, config.draft_vocab or config.vocab_size, bias=False),
        )
        nn.init.zeros_(self.embed_proj[2].weight)

    def _states(self, target: Embeds, path: Tensor) -> Tensor:
        """Return the states [N, P, size] after each token of paths [N, P]."""
        weight = self.prefix_gru.weight_ih_l0
        found: Tensor = self.prefix_gru(target.embed(path.clamp(min=0)).to(weight.dtype))[0]
        return found

    def _add(self, hidden: Tensor, logits: Tensor, state: Tensor, depth: Tensor) -> Tensor:
        more = self.embed_proj(torch.cat([hidden, state], -1))
        return logits + more * (depth >= self.pure).unsqueeze(-1)

    def teach(self, target: Embeds, hidden: Tensor, logits: Tensor, before: Tensor) -> Tensor:
        """Return the laws with what the state adds."""
        state = self._states(target, before.flatten(0, 1)).view(*before.shape, -1)
        return self._add(hidden, logits, state, torch.arange(before.shape[-1], device=before.device))

    def after(self, target: Embeds, hidden: Tensor, logits: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return the laws with what the state adds."""
        states = self._states(target, path.flatten(0, 1))
        state = states[torch.arange(len(states), device=path.device), depth.flatten()].view(*depth.shape, -1)
        return self._add(hidden, logits, state, depth)


class SelectorPath(PathNet):
    """u_c + <A[token before] * (W h), B[c]> among the `top` likeliest tokens of a place; DFlash2's. B begins at 0.

    In training all tokens compete, so that the text's own is always among them.
    """

    def __init__(self, config: HeadConfig, rank: int, top: int, is_table: bool) -> None:
        super().__init__()
        self.top = top
        self.predecessor_codebook = Previous(config, rank, is_table)
        self.successor_codebook = nn.Parameter(torch.zeros(config.draft_vocab or config.vocab_size, rank))
        self.hidden_projection = nn.Linear(config.hidden_size, rank, bias=False)

    def _wanted(self, target: Embeds, hidden: Tensor, before: Tensor) -> Tensor:
        found: Tensor = self.predecessor_codebook(target, before) * self.hidden_projection(hidden)
        return found

    def teach(self, target: Embeds, hidden: Tensor, logits: Tensor, before: Tensor) -> Tensor:
        """Return the laws with the selector's share, of all tokens."""
        return logits + F.linear(self._wanted(target, hidden, before), self.successor_codebook)

    def after(self, target: Embeds, hidden: Tensor, logits: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return the laws with the selector's share; -inf outside the candidates."""
        best, index = logits.topk(min(self.top, logits.shape[-1]), -1)
        wanted = self._wanted(target, hidden, _last(depth, path))
        best = best + (self.successor_codebook[index] @ wanted.unsqueeze(-1))[..., 0].to(best.dtype)
        return torch.full_like(logits, float("-inf")).scatter(-1, index, best)


def _last(depth: Tensor, path: Tensor) -> Tensor:
    return path.gather(-1, depth.unsqueeze(-1))[..., 0]
