"""Cutting a law: top-k, top-p, min-p and typical-p on candidates in a fixed order.

Candidates stand in order of falling logit, ties by lowest token id, so a cut never depends on how a kernel sorts.
Each cut returns the kept flags and, for margins, every candidate's distance to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from outpace.sampling.noise import is_on_host
from outpace.sampling.settings import Sampling

__all__ = ["Selector", "candidates", "cuts", "needs_order", "use_selector"]

# Gives the candidates of top-k `count` among logits [N, V] on the CPU: of each row at least the `count` largest and all
# that equal the last of them, as ([N, K] float32, [N, K] ids), ids ascending, padded with token 0 at -inf; None = it
# cannot say.
Selector = Callable[[Tensor, int], tuple[Tensor, Tensor] | None]

_Table = npt.NDArray[np.floating]
_selector: Selector | None = None
_SLACK = 1e-6  # relative, in a bound on logits: far above rounding, and what it lists in vain is cut exactly later
_SUREST = 1e-8  # a smaller rest than this behind top-p is lost in the rounding of the sum before it


def use_selector(selector: Selector | None) -> None:
    """Let compiled code look for the candidates of top-k, which changes none; None = numpy looks."""
    global _selector
    _selector = selector


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
    values, ids = in_order(logits) if short is None else short
    if 0 < settings.top_k < logits.shape[-1]:
        values, ids = values[:, : settings.top_k], ids[:, : settings.top_k]
    return values.double() / settings.temperature, ids, log_total


def in_order(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [N, V] from the largest to the smallest, ties by lowest id, and their ids."""
    if not is_on_host(logits) or logits.dtype not in (torch.bfloat16, torch.float16) or bool(logits.isnan().any()):
        values, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
        return values, ids
    # Sixteen bits are sorted by their digits, in a fifteenth of the time: as integers that fall when the number rises.
    bits = (logits.detach() + 0.0).view(torch.int16).numpy()  # without negative zeros
    ids = torch.from_numpy(np.argsort(~(bits ^ ((bits >> 15) & 0x7FFF)), axis=-1, kind="stable"))
    return logits.gather(-1, ids), ids


def _short_list(logits: Tensor, settings: Sampling, log_total: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Return all tokens that can pass the cuts, in order, without sorting the vocabulary; None = it must be sorted.

    Lists are as long as the longest one, the others padded with token 0 at -inf. How long they are is read back, so
    only on the CPU: an accelerator sorts instead of waiting.
    """
    if _selector is not None and is_on_host(logits) and 0 < settings.top_k < logits.shape[-1]:
        found = _selector(logits, settings.top_k)
        if found is not None:
            return _ordered(found[0].numpy(), found[1].numpy())
    table = on_host(logits)
    least = None if table is None else _least(table, settings, log_total)
    if table is None or least is None:
        return None
    rows, vocab = table.shape
    # A token at -inf is never drawn, and where a grammar rules, nearly all are.
    at = np.flatnonzero(table >= np.maximum(least, np.finfo(table.dtype).min))
    row, token = np.divmod(at, vocab)
    count = np.bincount(row, minlength=rows)
    size = max(settings.top_k, int(count.max()), 1)
    place = np.arange(len(at)) + (np.arange(0, rows * size, size) - count.cumsum() + count)[row]
    values, ids = np.full((rows, size), -np.inf, table.dtype), np.zeros((rows, size), np.int64)
    values.put(place, table.take(at))
    ids.put(place, token)
    return _ordered(values, ids)


def _ordered(values: _Table, ids: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return lists of logits, whose ids ascend where they are equal, and their ids from the largest logit on."""
    order = np.argsort(-values, axis=-1, kind="stable")
    return torch.from_numpy(np.take_along_axis(values, order, -1)), torch.from_numpy(np.take_along_axis(ids, order, -1))


def _least(table: _Table, settings: Sampling, log_total: Tensor | None) -> _Table | None:
    """Return a logit per row, [N, 1], that every token has which can pass the cuts; None = no bound is known."""
    vocab = table.shape[-1]
    # The vocabulary is dealt into groups: k of their maxima are k tokens, so that the k-th largest is a bound.
    groups = 1 << (2 * settings.top_k).bit_length()
    if groups > vocab or (settings.top_k == 0 and settings.typical_p < 1):
        return None  # typical-p takes the nearest to the entropy, wherever they stand
    whole, logits = vocab - vocab % groups, torch.from_numpy(table)
    largest = logits[:, :whole].view(len(table), -1, groups).amax(1)
    if whole < vocab:
        largest = torch.cat([largest, logits[:, whole:].amax(1, keepdim=True)], 1)
    best: _Table = np.sort(largest.numpy())  # NaN last
    if not np.isfinite(best[:, -1]).all():
        return None
    if settings.top_k > 0:
        return best[:, -settings.top_k, None]
    bounds = []
    if log_total is not None:
        # All tokens less likely than rest / V together hold less than the rest, so they begin behind the cut.
        rest = 1 - settings.top_p
        if rest < _SUREST:
            return None
        bounds.append(log_total.numpy() + math.log(rest / (2 * vocab)))
    if settings.min_p > 0:
        bounds.append(best[:, -1:].astype(np.float64) / settings.temperature + math.log(settings.min_p))
    least: _Table = np.max(bounds, 0) * settings.temperature
    return (least - _SLACK * (1 + np.abs(least))).astype(table.dtype)


def likeliest(logits: Tensor) -> Tensor:
    """Return the likeliest token of each row of logits [..., V]; ties by lowest id; -1 where it is NaN or infinite."""
    table = on_host(logits)
    if table is None:
        top, best = logits.max(-1)
        return torch.where(torch.isfinite(top), best, -1)
    found = table.argmax(-1)  # vectorised; torch's takes twenty times as long
    top = table.reshape(-1, table.shape[-1])[np.arange(found.size), found.ravel()]
    return torch.from_numpy(np.where(np.isfinite(top), found.ravel(), -1).reshape(found.shape))


def on_host(logits: Tensor) -> _Table | None:
    """Return logits as numpy reads them, exactly; None where that would wait for an accelerator."""
    if not is_on_host(logits):
        return None
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return logits.detach().numpy()


def cuts(
    values: Tensor, settings: Sampling, log_total: Tensor | None = None, *, is_measured: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """Apply top-p, min-p and typical-p to ordered candidates.

    Args:
        values: [N, K] logits, largest first.
        settings: the cuts.
        log_total: [N, 1] log of the total mass that `values` belong to; None = they are all there is.
        is_measured: False leaves the distances out (every step decides, only margins measure).

    Returns:
        keep: [N, K] bool, at least one per row.
        distances: per cut, [N, K] how far each candidate is from it: mass for top-p and typical-p, logits else.
    """
    keep, distances = torch.ones_like(values, dtype=torch.bool), []
    top = values[:, :1]
    if settings.top_p < 1:
        total = (values - top).exp_().sum(-1, keepdim=True).log_() + top if log_total is None else log_total
        before = _mass_before((values - total).exp_())
        keep = before < settings.top_p
        if is_measured:
            distances += [(before - settings.top_p).abs(), _to_other_side(values, keep)]
    if settings.min_p > 0:
        floor = top + torch.tensor(settings.min_p, dtype=values.dtype).log().to(values.device)
        keep = keep & (values >= floor)
        if is_measured:
            distances.append((values - floor).abs())
    if settings.typical_p < 1:
        is_typical, gap = _typical(values.masked_fill(~keep, float("-inf")), settings.typical_p)
        keep = keep & is_typical
        distances.append(gap)
    return keep, distances


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
    # Only those that can be among them are sorted; of NaN, which nothing is above, all are.
    ids = (~(law < law.topk(min(num, len(law))).values[-1])).nonzero().squeeze(-1)
    values, order = torch.sort(law[ids], descending=True, stable=True)
    ids = ids[order]
    return list(zip(ids[:num].tolist(), values[:num].tolist(), strict=True))
