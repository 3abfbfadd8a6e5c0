"""Cutting a law: top-k, top-p, min-p and typical-p on candidates in a fixed order.

Candidates stand in order of falling logit, ties by lowest token id, so a cut never depends on how a kernel sorts.
Each cut returns the kept flags and, for margins, every candidate's distance to it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from outpace.sampling.settings import Sampling

__all__ = ["candidates", "cuts", "needs_order"]

_SPARE = 32  # extra candidates behind top-k, so that ties at its border are seen
_GUESS = 256  # candidates tried for top-p alone before the whole vocabulary is sorted


def needs_order(settings: Sampling) -> bool:
    """Whether any setting truncates, and so needs ordered candidates."""
    return settings.top_k > 0 or settings.top_p < 1 or settings.min_p > 0 or settings.typical_p < 1


def candidates(logits: Tensor, settings: Sampling) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return ordered candidates: all tokens that the cuts could keep.

    Args:
        logits: [N, V] processed logits, any dtype, temperature not yet applied (it does not change the order).
        settings: which cuts follow.

    Returns:
        values: [N, K] float64, temperature applied.
        ids: [N, K] their tokens.
        log_total: [N, 1] log of the mass that the values belong to; None = they are all there is.
    """
    log_total = None
    if settings.top_p < 1 and settings.top_k == 0:
        log_total = (logits.double() / settings.temperature).logsumexp(-1, keepdim=True)
    short = _short_list(logits, settings, log_total)
    if short is None:
        short = torch.sort(logits, dim=-1, descending=True, stable=True)
    values, ids = short
    if 0 < settings.top_k < logits.shape[-1]:
        values, ids = values[:, : settings.top_k], ids[:, : settings.top_k]
    return values.double() / settings.temperature, ids, log_total


def _short_list(logits: Tensor, settings: Sampling, log_total: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Return enough leading candidates without sorting the vocabulary, or None when that cannot be told.

    Reads back one flag, so only on the CPU; an accelerator sorts instead of waiting.
    """
    vocab = logits.shape[-1]
    size = settings.top_k + _SPARE if settings.top_k > 0 else _GUESS
    if size >= vocab or type(logits) is not Tensor or logits.device.type != "cpu":
        return None
    if settings.top_k == 0 and (settings.top_p == 1 or settings.typical_p < 1):
        return None  # min-p and typical-p alone have no bound on how many tokens stay
    values, ids = _largest(logits, size)
    last = values[:, -1:]
    if log_total is None:
        is_enough = last[:, 0] < values[:, settings.top_k - 1]
    else:
        # The cut must fall among tokens that are likelier than the last listed one, so that no tie is left out.
        likelier = (values.double() / settings.temperature).masked_fill(values <= last, float("-inf"))
        is_enough = (likelier.logsumexp(-1) - log_total[:, 0]).exp() > settings.top_p + 1e-9
    if not bool(is_enough.all()):
        return None
    ids, by_id = ids.sort(dim=-1)
    values, order = values.gather(-1, by_id).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order)


def _largest(logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the `size` largest logits of each row and their ids, in any order among ties; much faster than `topk`.

    The vocabulary is dealt into groups. The `size` groups with the largest maxima hold the `size` largest values: every
    value above the smallest of these lies in a group whose maximum is above it too, and there are fewer such groups.
    """
    rows, vocab = logits.shape
    depth = 1 << max(0, round(math.log2(vocab / size) / 2))  # about as many groups as members to look at afterwards
    groups = vocab // depth
    if groups < 2 * size:
        return logits.topk(size, dim=-1)
    dealt = logits[:, : depth * groups].view(rows, depth, groups)
    chosen = dealt.amax(1).topk(size, dim=-1, sorted=False).indices
    offsets = torch.arange(0, depth * groups, groups, device=logits.device).unsqueeze(-1)
    rest = torch.arange(depth * groups, vocab, device=logits.device).expand(rows, -1)
    ids = torch.cat([(chosen.unsqueeze(1) + offsets).flatten(1), rest], 1)
    values, best = logits.gather(-1, ids).topk(size, dim=-1)
    return values, ids.gather(-1, best)


def cuts(
    values: Tensor, settings: Sampling, log_total: Tensor | None = None, *, is_measured: bool = True
) -> tuple[Tensor, Tensor]:
    """Apply top-p, min-p and typical-p to ordered candidates.

    Args:
        values: [N, K] ordered logits.
        settings: the cuts.
        log_total: [N, 1] log of the total mass that `values` belong to; None = they are all there is.
        is_measured: False leaves the distance to top-p out (every step decides, only margins measure).

    Returns:
        keep: [N, K] bool, at least one per row.
        distance: [N, K] how far each candidate is from the nearest cut: mass for top-p and typical-p, logits else.
    """
    keep = torch.ones_like(values, dtype=torch.bool)
    distance = torch.full_like(values, float("inf"))
    if settings.top_p < 1:
        total = values.logsumexp(-1, keepdim=True) if log_total is None else log_total
        before = _mass_before((values - total).exp())
        keep &= before < settings.top_p
        if is_measured:
            distance = torch.minimum(distance, (before - settings.top_p).abs())
            distance = torch.minimum(distance, _to_other_side(values, before < settings.top_p))
    if settings.min_p > 0:
        floor = values[:, :1] + torch.tensor(settings.min_p, dtype=values.dtype).log().to(values.device)
        keep &= values >= floor
        distance = torch.minimum(distance, (values - floor).abs())
    if settings.typical_p < 1:
        is_typical, gap = _typical(values.masked_fill(~keep, float("-inf")), settings.typical_p)
        keep &= is_typical
        distance = torch.minimum(distance, gap)
    return keep, distance


def _mass_before(probs: Tensor) -> Tensor:
    return probs.cumsum(-1) - probs


def _typical(values: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    log_probs = values.log_softmax(-1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs.masked_fill(probs == 0, 0)).sum(-1, keepdim=True)
    surprise = (-log_probs - entropy).abs()
    order = surprise.argsort(dim=-1, stable=True)
    before = torch.empty_like(probs).scatter_(-1, order, _mass_before(probs.gather(-1, order)))
    keep = before < mass
    return keep, torch.minimum((before - mass).abs(), _to_other_side(-surprise, keep))


def _to_other_side(rank_by: Tensor, keep: Tensor) -> Tensor:
    """Return how far each candidate is from changing places, in the ranking, with one on the cut's other side."""
    inside = rank_by.masked_fill(~keep, float("inf")).amin(-1, keepdim=True)
    outside = rank_by.masked_fill(keep, float("-inf")).amax(-1, keepdim=True)
    return torch.where(keep, rank_by - outside, inside - rank_by)


def likeliest_of(logits: Tensor, num: int) -> list[tuple[int, float]]:
    """Return the likeliest ids and their natural log-probabilities, likeliest first, ties by lowest id.

    Args:
        logits: [V] unprocessed logits.
        num: how many.
    """
    law = logits.double().log_softmax(-1)
    values, ids = torch.sort(law, descending=True, stable=True)
    return list(zip(ids[:num].tolist(), values[:num].tolist(), strict=True))
