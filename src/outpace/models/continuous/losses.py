"""What a denoiser learns from: the cross-entropy of the tokens, or the bound on their likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .process import noised
from .schedule import staggered

if TYPE_CHECKING:
    from outpace.models.nar.network import Pass

    from .network import Diffusion

__all__ = ["bound", "cross_entropy", "poisson_times", "said"]


def said(net: Diffusion, run: Pass, state: Tensor, gamma: Tensor, is_twice: bool) -> tuple[Tensor, Tensor]:
    """Return what `Diffusion.denoise` gives; twice = after a first look, which the second one reads."""
    before = None
    if is_twice:
        with torch.no_grad():
            before = net.denoise(run, state, gamma)[0]
    return net.denoise(run, state, gamma, before)


def poisson_times(overall: Tensor, length: int, levels: int) -> Tensor:
    """Return each token's own time [B, length] at overall times [B]: jumps of a Poisson process, over `levels`.

    Paper: Li et al. (2025), arXiv 2505.22165 (NeoDiff).
    """
    rates = (overall * levels)[:, None].expand(-1, length)
    return (torch.poisson(rates) / levels).clamp(max=1)


def cross_entropy(net: Diffusion, run: Pass) -> Tensor:
    """Return the cross-entropy [B] of the tokens at a time drawn for each row."""
    tokens, config = net.padded(run), net.config
    overall = torch.rand(len(tokens), device=tokens.device)
    if config.times == "staggered":
        times = staggered(overall, config.length, config.levels)
    elif config.times == "poisson":
        times = poisson_times(overall, config.length, config.levels)
    else:
        times = overall[:, None].expand(tokens.shape)
    clean = net.clean(tokens)
    gamma = net.schedule(times.to(clean.dtype))
    state = noised(clean, gamma, torch.randn_like(clean))
    is_twice = bool(torch.rand(()) < 0.5)
    log_probs, hidden = said(net, run, state, gamma, is_twice)
    each = -log_probs.gather(-1, tokens[..., None])[..., 0]
    found = each.sum(1)
    if config.times == "poisson":
        found = found + _predictor_loss(net, hidden.detach(), each.detach(), overall)
    return found


def _predictor_loss(net: Diffusion, hidden: Tensor, each: Tensor, overall: Tensor) -> Tensor:
    """Return the loss [B] of the time predictor: of later Poisson times, the surest tokens have the least."""
    later = overall * torch.rand_like(overall)
    wanted = poisson_times(later, hidden.shape[1], net.config.levels).sort(1).values
    wanted = wanted.gather(1, each.argsort(1).argsort(1))
    return (net.predicted(hidden, later) - wanted).square().sum(1)


def bound(net: Diffusion, run: Pass, steps: int = 0, samples: int = 1) -> Tensor:
    """Return an unbiased estimate [B] of the bound on the negative log-likelihood of texts with their ends, in nats.

    Paper: Gulrajani and Hashimoto (2023), arXiv 2305.18619, after Kingma et al. (2021), arXiv 2107.00630, section 4:
    what the last noise still tells, what the first noise hides, and between them the squared error, weighed by the
    loss of signal over noise. In training the pieces of the schedule learn to make the estimate vary little.

    Args:
        net: with a learned schedule.
        run: sources and targets.
        steps: T, of the ancestral sampler whose bound it is; 0 = infinitely many.
        samples: times drawn for each text.
    """
    tokens = net.padded(run)
    clean, zero = net.clean(tokens), torch.zeros(len(tokens), device=tokens.device, dtype=net.vectors.dtype)
    ends = [_ends(net, end).expand(tokens.shape) for end in (0, 1)]
    power = torch.sigmoid(-ends[1])[..., None]  # of the signal in the last state; that of the noise is 1 - power
    prior = 0.5 * (power * clean.square() - power - torch.log1p(-power)).sum((1, 2))
    is_twice = not net.training or bool(torch.rand(()) < 0.5)
    first = said(net, run, noised(clean, ends[0], torch.randn_like(clean)), ends[0], is_twice)[0]
    found = prior - first.gather(-1, tokens[..., None])[..., 0].sum(1)
    for sample in range(samples):
        even = torch.arange(len(tokens), device=tokens.device) / len(tokens)
        time = (even + torch.rand((), device=tokens.device) + sample / samples).to(zero.dtype) % 1
        found = found + _diffusion(net, run, clean, time, steps, is_twice) / samples
    return found


def _ends(net: Diffusion, end: int) -> Tensor:
    return net.schedule.ends[end].to(net.vectors.dtype)


def _diffusion(net: Diffusion, run: Pass, clean: Tensor, time: Tensor, steps: int, is_twice: bool) -> Tensor:
    """Return the middle of the bound [B] at times [B] in [0, 1)."""
    if steps:
        number = (time * steps).floor()
        time, earlier = (number + 1) / steps, number / steps
    gamma = net.schedule(time)
    low, high = _ends(net, 0), _ends(net, 1)
    inner = ((gamma - low) / (high - low)).detach() * (high - low) + low  # the bound moves the ends alone
    spread = inner[:, None].expand(clean.shape[:2])
    log_probs, _ = said(net, run, noised(clean, spread, torch.randn_like(clean)), spread, is_twice)
    error = (clean - net.mean(log_probs)).square().sum((1, 2))
    if steps:
        return 0.5 * steps * (torch.exp(-net.schedule(earlier)) - torch.exp(-gamma)) * error
    slope = net.schedule.slope(time)
    steady = (slope / (high - low)).detach() * (high - low)
    found = 0.5 * steady * torch.exp(-inner) * error
    if not net.training:
        return found
    # The pieces' gradient is that of the estimate's relative variance; its value is taken off again.
    relative = (slope * (found / steady).detach()).square() / found.detach().mean().square().clamp(min=1e-9)
    return found + 0.1 * (relative - relative.detach())
