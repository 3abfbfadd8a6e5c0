"""The Gaussian process that every model here diffuses by, on the scale of the noise-to-signal ratio.

With g = log of noise variance over signal variance, z = sqrt(sigmoid(-g)) x + sqrt(sigmoid(g)) noise (Kingma et al.,
2021, arXiv 2107.00630). g may differ from token to token; equal ones are the standard process, by the same operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outpace.sampling.noise import Stream, node_key, uniform

__all__ = ["ancestral", "ddim", "drawn", "noised", "scales"]


def scales(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales of signal and of noise, shaped like `gamma`; their squares sum to 1."""
    return torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()


def noised(clean: Tensor, gamma: Tensor, noise: Tensor) -> Tensor:
    """Return `clean` [B, L, D] under standard normal noise of its shape, by gamma [B, L]."""
    alpha, sigma = (part[..., None] for part in scales(gamma))
    return alpha * clean + sigma * noise


def ddim(state: Tensor, clean: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """Return the next state without new noise (Song et al., 2020, arXiv 2010.02502): the noise found is kept.

    Args:
        state: [B, L, D] at gamma `now` [B, L].
        clean: [B, L, D], what the network takes the clean text for.
        now, then: gamma of each token before and after, [B, L].
    """
    (alpha, sigma), (alpha_then, sigma_then) = scales(now), scales(then)
    return alpha_then[..., None] * clean + (sigma_then / sigma)[..., None] * (state - alpha[..., None] * clean)


def ancestral(state: Tensor, clean: Tensor, now: Tensor, then: Tensor, noise: Tensor) -> Tensor:
    """Return a draw of the next state given the present one and the clean text; arguments as those of `ddim`."""
    (alpha, _), (alpha_then, sigma_then) = scales(now), scales(then)
    share = -torch.expm1(then - now)
    mean = alpha_then[..., None] * ((1 - share) / alpha)[..., None] * state
    return mean + (alpha_then * share)[..., None] * clean + (sigma_then * share.clamp(min=0).sqrt())[..., None] * noise


def drawn(keys: list[int], length: int, dims: int, visit: int) -> Tensor:
    """Return standard normal noise [B, length, dims], float64: a function of row key, place, dimension and visit."""
    at = torch.arange(length).expand(len(keys), length)
    noise: Tensor = torch.special.ndtri(uniform(node_key(keys, Stream.TARGET, at, visit), torch.arange(dims)))
    return noise
