"""A reward for every next token at once, added to the model's logits.

Paper: Troshin, Niculae, Fokkens (2024), "ARM: Efficient Guided Decoding with Autoregressive Reward Models", 2407.04615:
    reward(v | x) = b_v . A h(x), of low rank, from the frozen model's own last hidden state.
Guarantee: that law exactly; drafts obey it. `weight=0` leaves the target's texts as they are, token for token.
Cost: two thin products per place; no forward. A reward model that reads each candidate (RAD) reads `k` tokens more.
Differences: the reward is the log-odds of the attribute, learned from whole texts with labels (`outpace.train.reward`)
    rather than from a reward model's scores of beginnings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.laws.base import Control, Site
from outpace.laws.beside import Retold
from outpace.laws.markov import read_tables
from outpace.papers import Paper
from outpace.setting import setting
from outpace.types import Adapter, Outputs, Scores

__all__ = ["KIND", "Reward", "Rewarded"]

KIND = "outpace_reward"
PAPERS = (
    Paper(
        "ARM: Efficient Guided Decoding with Autoregressive Reward Models",
        "Troshin, Niculae, Fokkens",
        2024,
        "2407.04615",
        307,
        "Detoxification and sentiment with models of billions of parameters were not run.",
        command="python -m outpace.bench.laws --reward DIR",
    ),
)


class Rewarded(Retold):
    """A target whose logits have rewards on top.

    Args:
        target: a model that gives hidden states.
        down: [hidden, r] of the last hidden state.
        up: [r, V] of every token.
        weight: of the rewards.

    Raises:
        CapabilityError: the target gives no hidden states.
        ConfigError: the tables are for another model.
    """

    more = Outputs(has_last=True)

    def __init__(self, target: Adapter, down: Tensor, up: Tensor, weight: float) -> None:
        super().__init__(target)
        target.check(self.more)
        width = target.embed(torch.zeros(1, 1, dtype=torch.int64, device=target.device)).shape[-1]
        if (down.shape[0], up.shape[1]) != (width, target.capabilities.vocab_size):
            raise ConfigError(
                f"The reward is for states of {down.shape[0]} numbers and {up.shape[1]} tokens; the model has {width} "
                f"and {target.capabilities.vocab_size}.",
                "Train it on this model: outpace.train.reward.",
            )
        wide = torch.float64 if target.dtype is torch.float64 else torch.float32
        self.down, self.up, self.weight = down.to(target.device, wide), up.to(target.device, wide), weight

    def retell(self, scores: Scores) -> Tensor:
        """Return the logits with the rewards of every next token."""
        assert scores.last is not None  # asked for by `more`
        reward = scores.last.to(self.down.dtype) @ self.down @ self.up
        return scores.logits.to(reward.dtype) + self.weight * reward


@dataclass(frozen=True)
class Reward(Control):
    """The target with a reward head."""

    name: ClassVar[str] = "reward"
    summary: ClassVar[str] = "a low-rank head rewards every next token at once"
    is_model: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ("head",)

    head: str = ""
    weight: float = setting(1.0, is_finite=True)

    def target(self, site: Site) -> Adapter:
        """Return the target with rewards.

        Raises:
            ConfigError: no head is named.
            ModelError: it is none.
        """
        if not self.head:
            raise ConfigError("The law 'reward' names no head.", "Name one with head=DIR.")
        if self.weight == 0:
            return site.target
        tables = read_tables(Path(self.head), KIND, ("down", "up"))
        down, up = (torch.from_numpy(tables[name]) for name in ("down", "up"))
        return Rewarded(site.target, down, up, self.weight)
