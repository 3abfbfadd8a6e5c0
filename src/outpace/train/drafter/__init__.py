"""Training the drafters that read a target: texts that it writes, its states of them, and one trainer for all kinds."""

from __future__ import annotations

from outpace.train.drafter.run import Plan, train_drafter
from outpace.train.drafter.texts import Writing

__all__ = ["Plan", "Writing", "train_drafter"]
