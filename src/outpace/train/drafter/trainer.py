"""One trainer for the drafters of all kinds: what a step learns from, and how well held-out texts are guessed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.heads.files import save_head
from outpace.heads.net import Batch, Frozen, HeadNet, Lesson
from outpace.train import checkpoint
from outpace.train.drafter.batches import Shape, make_batch, plan_epoch, split_texts
from outpace.train.drafter.card import write_card
from outpace.train.drafter.states import States
from outpace.train.drafter.texts import Text
from outpace.train.loop import Steps, log
from outpace.train.recipes import AnyRecipe

__all__ = ["DrafterTrainer"]

_CURVES = "curves.jsonl"
_CHECKED = 12  # batches of held-out texts, at most


@dataclass(slots=True, kw_only=True)
class DrafterTrainer(Steps):
    """A drafter in training.

    Attributes:
        recipe: the settings.
        network: the drafter, in float32.
        frozen: its target.
        texts, states: what the target wrote, and its states of that.
        shape: sizes of a batch.
        origin: where the texts are from, for the card.
        check_every: steps between two looks at held-out texts.
        patience: looks without a longer accepted length before the run ends; 0 = never.
        limit_s: seconds after which the run ends; it can be resumed; 0 = none.
        curves: what each look found.
    """

    recipe: AnyRecipe
    network: HeadNet
    frozen: Frozen
    texts: Sequence[Text]
    states: States
    shape: Shape
    origin: str = ""
    check_every: int = 100
    patience: int = 0
    limit_s: float = 0.0
    curves: list[dict[str, Any]] = field(default_factory=list)
    _learn: list[int] = field(init=False)
    _held: list[list[int]] = field(init=False)
    _epoch: tuple[int, list[list[int]]] = field(init=False, default=(-1, []))
    _taught: int = field(init=False, default=0)
    _began: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Build the optimisers, and part the texts.

        Raises:
            ConfigError: the texts are too few, or too long.
        """
        Steps.__post_init__(self)
        self._learn, held = split_texts(self.texts, self.shape.length)
        if not self._learn:
            raise ConfigError(
                f"Of {len(self.texts)} texts none can be learned from.", "Give more of them, or a larger --length."
            )
        self._held = plan_epoch(self.texts, held, self.shape, 0)[:_CHECKED]

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a step, padding included."""
        return self.shape.rows * self.shape.length

    def loss(self) -> Tensor:
        """Return the loss of the step's texts."""
        # Draws of a kind's own follow seed and step, so that a resumed run draws what the whole one did.
        torch.manual_seed((self.seed << 24) + self.step)
        batch = self._batch(self._place(self.step))
        lesson: Lesson = self.network.loss(batch)
        return lesson.loss

    def _place(self, step: int) -> list[int]:
        """Return the texts of a step, which follow from seed and step alone."""
        epoch, plan = self._epoch
        if not plan or step < epoch or step >= epoch + len(plan):
            first, lap = 0, 0
            plan = plan_epoch(self.texts, self._learn, self.shape, self.seed * 7919)
            while step >= first + len(plan):
                first, lap = first + len(plan), lap + 1
                plan = plan_epoch(self.texts, self._learn, self.shape, self.seed * 7919 + lap)
            self._epoch = epoch, plan = first, plan
        return plan[step - epoch]

    def _batch(self, index: Sequence[int]) -> Batch:
        config = self.network.config
        batch = make_batch(
            self.texts, self.states, index, self.shape.length, config.states_size, config.hidden_size, self.frozen
        )
        for name in ("tokens", "is_taught", "states", "last"):
            setattr(batch, name, getattr(batch, name).to(self.device))
        batch.step, batch.progress = self.step, self.step / self.steps
        return batch

    def advance(self) -> float:
        """Do one step, and look at the held-out texts when it is time."""
        value = Steps.advance(self)
        if self.step % self.check_every == 0 or self.step == self.steps:
            self.look()
        return value

    @torch.no_grad()
    def look(self) -> None:
        """Guess the held-out texts, and note how well that went."""
        self.network.eval()
        total, weight = 0.0, 0.0
        sums: list[Tensor] = []
        for number, index in enumerate(self._held):
            torch.manual_seed(number)
            with torch.autocast(self.device.type, torch.bfloat16):
                lesson = self.network.loss(self._batch(index))
            reached = lesson.hits if lesson.reached is None else lesson.reached
            found = torch.stack([lesson.hits.cpu(), lesson.counts.cpu(), reached.cpu()]).double()
            sums = [found] if not sums else [sums[0] + found]
            total += float(lesson.loss) * float(found[1, 0])
            weight += float(found[1, 0])
            has_reached = lesson.reached is not None
        self.network.train()
        hits, counts, reached = sums[0]
        shares = (hits / counts.clamp(min=1)).tolist()
        # Without the kind's own count, depths are taken to err independently.
        alive = (reached / counts[0].clamp(min=1)).tolist() if has_reached else _products(shares)
        self.curves.append(
            {
                "step": self.step,
                "tokens": self.step * self.tokens_per_step,
                "train_loss": round(_mean(self.losses[-self.check_every :]), 5),
                "loss": round(total / max(weight, 1), 5),
                "hits": [round(share, 4) for share in shares],
                "accepted": [round(sum(alive[: k + 1]), 4) for k in range(len(alive))],
                "seconds": round(self.seconds, 1),
            }
        )
        log.info("%s", self._told(self.curves[-1]))

    def _told(self, found: Mapping[str, Any]) -> str:
        hits = " ".join(f"{100 * share:.1f}" for share in found["hits"])
        return f"held out: loss {found['loss']:.4f}, accepted {found['accepted'][-1]:.3f}, hits per depth {hits}%"

    def is_over(self) -> str:
        """Return why the run ends before its last step: accepted length no longer rises, or its time is up."""
        if self.limit_s and time.monotonic() - self._began > self.limit_s:
            return "the time limit is reached; --resume continues it"
        accepted = [one["accepted"][-1] for one in self.curves]
        late = self.patience
        if late and len(accepted) > late and max(accepted[-late:]) <= max(accepted[:-late]):
            return f"the accepted length did not rise in {self.patience} looks"
        return ""

    def keep(self, out: Path) -> None:
        """Write a checkpoint, the drafter, its curves and its card."""
        checkpoint.save(self.state(), out / "checkpoint.pt")
        if self.curves:
            self.network.config = replace(self.network.config, accepted=self.curves[-1]["accepted"][-1])
        save_head(self.network, out, self.frozen.ids)
        lines = "".join(json.dumps(one) + "\n" for one in self.curves)
        (out / _CURVES).write_text(lines, encoding="utf-8")
        write_card(self, out)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            **Steps.state(self),
            "curves": self.curves,
            "texts": len(self.texts),
            "steps": self.steps,
            "config": self._stated(),
            "ids": self.frozen.ids,
        }

    def _stated(self) -> str:
        return json.dumps(replace(self.network.config, accepted=0.0).to_dict(), sort_keys=True)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            ConfigError: it is of other settings.
        """
        mine = {"steps": self.steps, "config": self._stated()}
        odd = [name for name in mine if mine[name] != state.get(name)]
        if odd:
            raise ConfigError(
                f"The checkpoint was made with other settings: {odd[0]} was {state.get(odd[0])}.",
                "Give those settings again, or leave out --resume.",
            )
        Steps.restore(self, state)
        self.curves = list(state["curves"])


def _products(shares: Sequence[float]) -> list[float]:
    found, alive = [], 1.0
    for share in shares:
        alive *= share
        found.append(alive)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
