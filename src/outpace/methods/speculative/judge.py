"""A small model drafts; what the target would not have written stays where a judge of its states finds it right.

Paper: Bachmann et al. (2025), arXiv 2501.19309, Judge Decoding (section 4).
Guarantee: approximate: judged drafts stay although they are not the target's. With threshold 1 nothing passes the
    judge, and the text is plain decoding's own.
Cost: at most 1 target forward per emitted token; one number per drafted token from the target's last state.
Differences: the judge reads the state behind the final norm; drafts that match the target's own noise stay without it;
    any drafter drafts, a trained one included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.accept.lenient import judged
from outpace.draft.model import draft_chain
from outpace.draft.reading import Drafter
from outpace.errors import ConfigError
from outpace.heads.judge import JudgeNet
from outpace.heads.model import HeadModel
from outpace.methods.base import Paper
from outpace.methods.speculative.drafted import AdaptiveDraft, Paced
from outpace.setting import setting
from outpace.types import Context, Decision, Guarantee, Needs, Outcome, Outputs, Proposal, Scores, View

__all__ = ["Judge"]


@dataclass
class Judged(Paced):
    """The drafter, each row's length, and the judge."""

    judge: JudgeNet


@dataclass(frozen=True)
class Judge(AdaptiveDraft):
    """Judge Decoding.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        judge: the directory of a judge (`outpace.train.judge`); "auto" = the one known for the target.
        threshold: a draft passes that is right with more than this probability; 1 = none does.
    """

    draft: str = "auto"
    judge: str = "auto"
    threshold: float = setting(0.5, least=0, most=1)

    name: ClassVar[str] = "judge-decoding"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "Drafts that a judge of the target's states finds right stay; the text may change."
    paper: ClassVar[Paper] = Paper(
        "Judge Decoding: Faster Speculative Sampling Requires Going Beyond Model Alignment",
        "Bachmann et al.",
        2025,
        "2501.19309",
        212,
        left_out="The paper's hand-made set of right and wrong answers.",
    )

    @property
    def guarantee(self) -> Guarantee:
        """Neither the text nor the law is kept."""
        return Guarantee.APPROXIMATE

    @property
    def needs(self) -> Needs:
        """A causal target that gives its last states, a drafter and a judge."""
        outputs = Outputs(has_last=True)
        return Needs(has_rollback=True, width=self.draft_len, models=("draft", "judge"), outputs=outputs)

    def begin(self, context: Context) -> Drafter:
        """Return the drafter of the joining rows."""
        return Drafter.begin(context)

    def start(self, context: Context) -> Judged:
        """Return the drafter, the first lengths and the judge.

        Raises:
            ConfigError: the judge is none.
        """
        model = context.models["judge"]
        if not isinstance(model, HeadModel) or not isinstance(model.net, JudgeNet):
            raise ConfigError("The judge is no judge.", "Make one with outpace.train.judge, and name its directory.")
        begun = super().start(context)
        return Judged(begun.drafter, begun.lengths, model.net)

    def grow(self, view: View, drafter: Drafter, reach: list[int]) -> Proposal:
        """Draft a chain, coupled to the target's noise."""
        return draft_chain(drafter, view, reach, origin=self.name)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Judged) -> Decision:
        """Keep what the target would have written, and what is judged right."""
        assert scores.last is not None  # it was asked for
        return judged(proposal, scores, view, state.judge.right(scores.last[:, 1:]) > self.threshold)

    def observe(self, outcome: Outcome, view: View, state: Judged) -> Judged:  # type: ignore[override]
        """Let the drafter forget what was refused, and the length follow acceptance."""
        state.drafter.observe(outcome, view)
        if outcome.proposal is None:
            return state
        return replace(state, lengths=state.lengths.after_step(outcome, self.name))
