"""Draft the last few tokens once more: right wherever a text repeats with a fixed period.

Paper: none; the smallest drafter that shows every part of a plug-in.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token; no extra memory.
Differences: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from outpace.methods.base import Method, chain
from outpace.methods.setting import setting
from outpace.types import Needs, Proposal, View

__all__ = ["RepeatLast"]


@dataclass(frozen=True)
class RepeatLast(Method):
    """Repeat the end of the text.

    Attributes:
        period: how many of the last tokens are repeated.
        draft_len: most tokens drafted per step.

    Raises:
        ConfigError: a setting outside its range.
    """

    period: int = setting(4, least=1)
    draft_len: int = setting(8, least=1)

    name: ClassVar[str] = "repeat-last"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "Drafts the last few tokens again."

    @property
    def needs(self) -> Needs:
        """A causal target that can drop staged entries."""
        return Needs(has_rollback=True, width=self.draft_len)

    def propose(self, view: View, state: Any) -> Proposal:
        """Draft the end of each text, repeated up to `draft_len` tokens, and never more than may still be written."""
        del state
        drafts = []
        for text, room in zip(view.texts, view.room, strict=True):
            length = max(0, min(self.draft_len, room - 1))
            end = text[-self.period :]
            drafts.append((end * (length // len(end) + 1))[:length])
        return chain(view, drafts, self.name)
