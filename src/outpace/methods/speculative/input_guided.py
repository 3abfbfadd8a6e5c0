"""The source itself is the draft: a correction, a simplification or a summary repeats most of what it reads.

Paper: Ge et al. (2022), arXiv 2205.10350, input-guided aggressive decoding.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token, up to `draft_len` positions each; an index of about 400 bytes per
    token of the source.
Differences: a draft has `draft_len` tokens at most, where the paper drafts all that is left. Behind a change the paper
    decodes plainly until an ending of the text occurs once in the source; here it may occur several times (the nearest
    place ahead is taken), and until one is found the new tokens are taken for as many of the source, so that a replaced
    word costs no plain step. A causal model without an encoder copies its prompt: unlike `prompt-lookup`, which follows
    the latest match anywhere, it keeps its place in it and never copies what it wrote itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.draft.copying import Copies, Copy
from outpace.draft.source import originals, passed_tokens
from outpace.methods.base import Paper, chain
from outpace.methods.speculative.drafted import AdaptiveDraft
from outpace.setting import setting
from outpace.types import Context, Needs, Proposal, View

__all__ = ["InputGuided"]


@dataclass(frozen=True)
class InputGuided(AdaptiveDraft):
    """Input-guided aggressive decoding.

    Attributes:
        draft_len: most tokens copied per step.
        is_adaptive: let the length follow acceptance, where long windows cost time.
        max_match: longest ending of the text that is looked up in the source.
    """

    draft_len: int = setting(32, least=1)
    is_adaptive: bool = False
    max_match: int = setting(4, least=1)

    name: ClassVar[str] = "input-guided"
    family: ClassVar[str] = "speculative"
    reads: ClassVar[frozenset[str]] = frozenset()
    summary: ClassVar[str] = "Copies the source as the draft, and finds its place again behind each change."
    paper: ClassVar[Paper] = Paper(
        "Lossless Acceleration for Seq2seq Generation with Aggressive Decoding",
        "Ge et al.",
        2022,
        "2205.10350",
        1,
        command='outpace generate "Ein Mann fährt Fahrrad." --model translate --method input-guided',
    )

    @property
    def needs(self) -> Needs:
        """A causal target that can drop staged entries."""
        return Needs(has_rollback=True, width=self.draft_len)

    def begin(self, context: Context) -> Copies:
        """Index what is copied: the source, or the prompt where there is none."""
        passed, has_encoder = passed_tokens(context), context.target.capabilities.is_encoder_decoder
        sources = originals(context) if has_encoder else context.texts
        copies = [Copy(source, self.max_match, passed=passed) for source in sources]
        # What stands behind a decoder's start token was written before; a prompt is not what repeats itself.
        seen = [min(1, len(text)) if has_encoder else len(text) for text in context.texts]
        return Copies(list(copies), seen)

    def grow(self, view: View, drafter: Copies, reach: list[int]) -> Proposal:
        """Copy on."""
        return chain(view, drafter.drafts(view, reach), self.name)
