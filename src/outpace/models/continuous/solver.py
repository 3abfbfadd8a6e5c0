"""From noise to text in a fixed number of network calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from outpace.errors import ConfigError

from .process import ancestral, ddim, drawn
from .schedule import staggered

if TYPE_CHECKING:
    from outpace.models.nar.network import Pass

    from .network import Diffusion

__all__ = ["Plan", "solve"]


@dataclass(slots=True, kw_only=True)
class Plan:
    """How a text is denoised.

    Attributes:
        steps: calls of the network.
        solver: "ancestral" (new noise in each step) or "ddim" (none).
        times: those of the model ("model"), or "equal" at all places.
        is_rounded: the clean text of each step is that of the likeliest tokens (clamping).
        is_conditioned: each step reads what the one before has said.
        trace: filled with the times [B, L] before each step and at the end.

    Raises:
        ConfigError: no step, or no such solver or times.
    """

    steps: int = 20
    solver: Literal["ancestral", "ddim"] = "ddim"
    times: Literal["model", "equal"] = "model"
    is_rounded: bool = False
    is_conditioned: bool = True
    trace: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.steps < 1:
            raise ConfigError(f"{self.steps} steps denoise nothing.", "Take at least 1.")
        if self.solver not in ("ancestral", "ddim") or self.times not in ("model", "equal"):
            raise ConfigError(
                f"There is no solver {self.solver!r} with {self.times!r} times.", "See the method's page."
            )


@torch.no_grad()
def solve(net: Diffusion, run: Pass, plan: Plan, keys: list[int]) -> Tensor:
    """Return what `Diffusion.denoise` said in the last step: laws [B, L, V], or vectors [B, L / K, D].

    Args:
        net: the network.
        run: sources, encoded and laid out.
        plan: how.
        keys: noise keys of the rows.
    """
    shape, like = (len(keys), net.size), run.states
    state = drawn(keys, shape[1], net.dims, 0).to(like)
    times = like.new_ones(shape)
    said = state
    for step in range(plan.steps):
        plan.trace.append(times)
        now = net.schedule(times)
        said, hidden = net.denoise(run, state, now, said if step and plan.is_conditioned else None)
        times = _after(net, plan, times, hidden, 1 - (step + 1) / plan.steps)
        if step + 1 == plan.steps:
            break
        clean, then = net.mean(said, plan.is_rounded).to(state), net.schedule(times)
        if plan.solver == "ddim":
            state = ddim(state, clean, now, then)
        else:
            state = ancestral(state, clean, now, then, drawn(keys, shape[1], net.dims, step + 1).to(like))
    plan.trace.append(times)
    return said


def _after(net: Diffusion, plan: Plan, times: Tensor, hidden: Tensor, progress: float) -> Tensor:
    """Return the times [B, L] of the next step: never later than now, and 0 at the end."""
    overall = torch.full_like(times[:, 0], progress)
    chosen = "equal" if plan.times == "equal" or progress <= 0 else net.config.times
    if chosen == "staggered":
        return staggered(overall, times.shape[1], net.config.levels)
    if chosen == "poisson":
        return torch.minimum(times, net.predicted(hidden, overall))
    return overall[:, None].expand_as(times)
