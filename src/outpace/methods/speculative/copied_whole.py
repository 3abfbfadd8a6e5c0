"""What the methods share whose drafter writes a whole text: its text is made once, and the target copies from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.draft.copying import Copies, Copy
from outpace.draft.nested import NestedRun
from outpace.draft.source import passed_tokens
from outpace.draft.whole import whole_texts
from outpace.errors import CapabilityError
from outpace.methods.base import chain
from outpace.methods.registry import load_method
from outpace.methods.speculative.drafted import AdaptiveDraft
from outpace.setting import setting
from outpace.types import Context, Needs, Proposal, View

__all__ = ["CopiedWhole", "WholeDrafts"]


@dataclass
class WholeDrafts(Copies):
    """Texts of the drafter, and what writes those that are missing.

    Attributes:
        drafter: a run of a model that writes token by token; None = every row had its text from the beginning.
        passed: tokens that stand before a text, not in it.
    """

    drafter: NestedRun | None
    passed: frozenset[int]

    def write(self, view: View, most: int, largest: int) -> None:
        """Let the drafter write the texts of rows that have none yet, of `most` tokens at most."""
        new = [0 if copy is not None else most for copy in self.copies]
        if self.drafter is None or max(reach := self.drafter.reach(view, new)) == 0:
            return
        for row, tokens in enumerate(self.drafter.write(view, reach, stops_at_ends=True)):
            if reach[row]:
                self.copies[row], self.seen[row] = Copy(tokens, largest, passed=self.passed), len(view.texts[row])


@dataclass(frozen=True)
class CopiedWhole(AdaptiveDraft):
    """Base of the methods that copy from a text which another model wrote at once.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        most: most tokens of its text.
        draft_len: most tokens copied per step.
        is_adaptive: let the length follow acceptance, where long windows cost time.
        max_match: longest ending of the text that is looked up in the draft.
        as_text: read the draft as text, so that a one-pass drafter may have a vocabulary of its own.
    """

    draft: str = "auto"
    most: int = setting(256, least=1)
    draft_len: int = setting(32, least=1)
    is_adaptive: bool = False
    max_match: int = setting(4, least=1)
    as_text: bool = False

    family: ClassVar[str] = "speculative"

    @property
    def needs(self) -> Needs:
        """A causal target that can drop staged entries, and a drafter, of the same vocabulary unless read as text."""
        return Needs(has_rollback=True, width=self.draft_len, models=("draft",), has_text=self.as_text)

    def begin(self, context: Context) -> WholeDrafts:
        """Take the text of a one-pass model; begin a run of any other, which has written nothing yet."""
        passed, rows = passed_tokens(context), len(context.texts)
        if not context.models["draft"].capabilities.is_one_pass:
            if self.as_text:
                raise CapabilityError(
                    "The drafter writes token by token, in its own tokens.", "Use cross-vocab for it."
                )
            drafter = NestedRun.begin(context, load_method("autoregressive")())
            return WholeDrafts([None] * rows, [0] * rows, drafter, passed)
        copies = [Copy(text[: self.most], self.max_match, passed=passed) for text in whole_texts(context)]
        return WholeDrafts(list(copies), [min(1, len(text)) for text in context.texts], None, passed)

    def grow(self, view: View, drafter: WholeDrafts, reach: list[int]) -> Proposal:
        """Let new rows be written by the drafter, then copy on."""
        drafter.write(view, self.most, self.max_match)
        return chain(view, drafter.drafts(view, reach), self.name)
