"""A reward for every next token at once, added to the model's logits.

Paper: Troshin, Niculae, Fokkens (2024), "ARM: Efficient Guided Decoding with Autoregressive Reward Models", 2407.04615:
    reward(v | x) = b_v . A h(x), of low rank, from the frozen model's own last hidden state.
Guarantee: that law exactly; drafts obey it. `weight=0` leaves the target's texts as they are, token for token.
Cost: two thin products per place; no forward. With `read=k` the `k` likeliest tokens are read instead, and rewarded by
    the state behind each (RAD, Deng and Raffel 2023, 2310.09520): one more forward, and `k` + 1 more tokens, per place.
Differences: the reward is the log-odds of the attribute, learned from whole texts with labels (`outpace.train.reward`)
    rather than from a reward model's scores of beginnings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from outpace.cache import Cache, Counter
from outpace.errors import CapabilityError, ConfigError
from outpace.laws.base import Control, Site
from outpace.laws.beside import Around, Retold
from outpace.laws.markov import read_tables
from outpace.papers import Paper
from outpace.setting import setting
from outpace.types import NO_OUTPUTS, Adapter, Outputs, Scores

__all__ = ["KIND", "Reread", "Reward", "Rewarded"]

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
        _check_width(target, down.shape[0])
        if up.shape[1] != target.capabilities.vocab_size:
            raise ConfigError(
                f"The reward is for {up.shape[1]} tokens; the model has {target.capabilities.vocab_size}.",
                "Train it on this model: outpace.train.reward.",
            )
        wide = torch.float64 if target.dtype is torch.float64 else torch.float32
        self.down, self.up, self.weight = down.to(target.device, wide), up.to(target.device, wide), weight

    def retell(self, scores: Scores) -> Tensor:
        """Return the logits with the rewards of every next token."""
        assert scores.last is not None  # asked for by `more`
        reward = scores.last.to(self.down.dtype) @ self.down @ self.up
        return scores.logits.to(reward.dtype) + self.weight * reward


class Reread(Around):
    """A target whose likeliest tokens are read, and rewarded by what their own states say; others are forbidden.

    Args:
        target: a model that gives hidden states, and honours masks.
        value: [hidden], the reward of a text by its last state.
        read: how many tokens.
        weight: of the rewards.

    Raises:
        CapabilityError: the target gives no hidden states, or cannot read tokens side by side.
        ConfigError: the table is for another model.
    """

    def __init__(self, target: Adapter, value: Tensor, read: int, weight: float) -> None:
        super().__init__(target)
        target.check(Outputs(has_last=True))
        if not target.capabilities.has_tree or target.capabilities.attention != "causal":
            raise CapabilityError("The model cannot read candidates side by side.", "Leave `read` out.")
        _check_width(target, value.shape[0])
        wide = torch.float64 if target.dtype is torch.float64 else torch.float32
        self.value, self.weight = value.to(target.device, wide), weight
        self.read = min(read, target.capabilities.vocab_size)

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return a cache of the target with room for the candidates of a few dozen places."""
        return self.target.new_cache(rows, capacity + 64 * self.read, counter)

    def score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS,
        inputs: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Scores:
        """Run one forward for the candidates of every asked place, and one that reads them behind the same tokens."""
        self.check(outputs, skip)
        if inputs is not None:
            raise CapabilityError("Candidates are read behind tokens, not behind soft embeddings.", "Leave `read` out.")
        scores = self.target.score(tokens, position, visible, cache, ask, outputs)
        rows, size = tokens.shape
        if ask is None:
            ask = torch.arange(size, device=tokens.device).expand(rows, -1)
        if not outputs.has_logits or not ask.shape[1]:
            return scores
        best = scores.logits.topk(self.read, -1)
        more = ask.shape[1] * self.read
        parent = ask.repeat_interleave(self.read, 1)  # [B, A k]
        after = position.gather(1, parent)
        seen = torch.zeros(rows, size + more, size + more, dtype=torch.bool, device=tokens.device)
        seen[:, :size, :size] = visible if visible is not None else torch.ones_like(seen[:, :size, :size]).tril()
        seen[:, size:] = seen.gather(1, parent[:, :, None].expand(-1, -1, size + more))
        seen[:, size:, size:] = torch.eye(more, dtype=torch.bool, device=tokens.device)
        states = self.target.score(
            torch.cat([tokens, best.indices.flatten(1)], 1),
            torch.cat([position, torch.where(after < 0, -1, after + 1)], 1),
            seen,
            cache,
            torch.arange(size, size + more, device=tokens.device).expand(rows, -1),
            Outputs(has_last=True, has_logits=False),
        ).last
        assert states is not None
        reward = (states.to(self.value.dtype) @ self.value).view_as(best.values)
        kept = best.values.to(reward.dtype) + self.weight * reward
        logits = torch.full_like(scores.logits, float("-inf"), dtype=reward.dtype)
        return replace(scores, logits=logits.scatter(-1, best.indices, kept))


def _check_width(target: Adapter, width: int) -> None:
    own = target.embed(torch.zeros(1, 1, dtype=torch.int64, device=target.device)).shape[-1]
    if own != width:
        raise ConfigError(
            f"The reward is for states of {width} numbers; the model has {own}.",
            "Train it on this model: outpace.train.reward.",
        )


@dataclass(frozen=True)
class Reward(Control):
    """The target with a reward head."""

    name: ClassVar[str] = "reward"
    summary: ClassVar[str] = "a low-rank head rewards every next token at once"
    is_model: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ("head",)

    head: str = ""
    weight: float = setting(1.0, is_finite=True)
    read: int = setting(0, least=0)  # candidates read before they are rewarded; 0 = all at once

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
        if self.read:
            [value] = read_tables(Path(self.head), KIND, ("value",)).values()
            return Reread(site.target, torch.from_numpy(value), self.read, self.weight)
        tables = read_tables(Path(self.head), KIND, ("down", "up"))
        down, up = (torch.from_numpy(tables[name]) for name in ("down", "up"))
        return Rewarded(site.target, down, up, self.weight)
