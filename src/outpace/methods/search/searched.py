"""What searches with beams have in common: their settings, drafts by another method, and one rule for what goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch

from outpace.accept.beams import BeamRules, Beams, search_beams
from outpace.errors import ConfigError
from outpace.methods.base import Method, nothing
from outpace.methods.registry import load_method
from outpace.setting import setting
from outpace.types import Capabilities, Context, Decision, Needs, Outcome, Proposal, Scores, View

__all__ = ["SearchState", "Searched"]


@dataclass
class SearchState:
    """The beams, and the state of the method that drafts."""

    beams: Beams
    drafts: Any = None


@dataclass(frozen=True)
class Searched(Method):
    """A search with beams, which are rows that fork.

    Attributes:
        beams: texts that are written side by side.
        length_penalty: a text's score is its log-probability divided by its number of tokens to this power.
        early_stopping: "true" = stop at as many ended texts as beams; "false" = when the likeliest text that goes on
            would not be better, ended now, than the worst of them; "never" = when it could not become so.
        n_best: how many texts are returned, the best first.
        is_renormalised: let the probabilities that penalties and bans leave sum to 1 again.
        drafter: a method whose drafts are checked for all beams in one forward; "" = none.
        draft_len, tree_width: of the drafter, where it has such settings; 0 = its own.
        draft: the drafter's model, where it takes one.

    Raises:
        ConfigError: a number out of range, more texts than beams, or a drafter that does not draft chains or trees.
    """

    beams: int = setting(4, least=1)
    length_penalty: float = setting(1.0, is_finite=True)
    early_stopping: str = setting("false", among=("false", "true", "never"))
    n_best: int = setting(1, least=1)
    is_renormalised: bool = False
    drafter: str = ""
    draft_len: int = setting(0, least=0)
    tree_width: int = setting(0, least=0)
    draft: str = "auto"

    family: ClassVar[str] = "search"
    reads: ClassVar[frozenset[str]] = frozenset({"law", "scores"})
    draws: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Hold the settings to their ranges and to each other."""
        stopping: Any = self.early_stopping  # transformers has bools beside "never"
        if isinstance(stopping, bool):
            object.__setattr__(self, "early_stopping", str(stopping).lower())
        super().__post_init__()
        if self.n_best > self.beams:
            raise ConfigError(
                f"n_best is {self.n_best}, but there are {self.beams} beams.", "Search with as many beams as texts."
            )
        needs = self.drafted.needs
        is_alone = set(needs.models) <= {"draft"} and not needs.optional_models  # what `draft` can name
        if needs.attention != "causal" or needs.has_forks or not is_alone:
            raise ConfigError(f"The method {self.drafter!r} does not draft for beams.", "Use prompt-lookup, say.")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Method:
        """Build the method from settings; `early_stopping` may be a bool, as transformers has it."""
        given: Any = settings
        if isinstance(given, Mapping) and isinstance(given.get("early_stopping"), bool):
            given = {**given, "early_stopping": str(given["early_stopping"]).lower()}
        return super().from_settings(given)

    @property
    def rules(self) -> BeamRules:
        """What the search is after."""
        return BeamRules(self.length_penalty, self.early_stopping, is_renormalised=self.is_renormalised)

    @property
    def drafted(self) -> Method:
        """The method that drafts; plain decoding drafts nothing."""
        kind = load_method(self.drafter or "autoregressive")
        given: dict[str, Any] = {"draft_len": self.draft_len, "tree_width": self.tree_width, "draft": self.draft}
        named = {field.name for field in fields(kind)}
        wanted = {name: value for name, value in given.items() if name in named and value not in (0, "auto")}
        return kind(**wanted)

    @property
    def needs(self) -> Needs:
        """What the drafter needs, and rows that continue each other."""
        return replace(self.drafted.needs, has_forks=True)

    @property
    def num_rows(self) -> int:
        """The beams."""
        return self.beams

    @property
    def num_texts(self) -> int:
        """The best ones."""
        return self.n_best

    def fitted(self, offered: Capabilities) -> tuple[Method, str]:
        """Return the search without drafts on a model that cannot score them."""
        needs, fitted = self.drafted.needs, self.drafted.fitted(offered)[0]
        lacks_trees, lacks_rollback = needs.has_tree > offered.has_tree, needs.has_rollback > offered.has_rollback
        if fitted == self.drafted and not (lacks_trees or lacks_rollback):
            return self, ""
        return self.reference(), f"The model cannot score what {self.drafter} drafts: the beams went on without drafts."

    def reference(self) -> Method:
        """Return the same search without drafts, one token per step."""
        return replace(self, drafter="", draft_len=0, tree_width=0, draft="auto")

    def to_certify(self) -> Method:
        """Return the search with drafts, which are what there is to certify; of few beams, that they may hold all."""
        return self if self.drafter else replace(self, beams=2, n_best=min(self.n_best, 2), drafter="token-recycling")

    def start(self, context: Context) -> SearchState:
        """Begin the search, and the drafter."""
        return SearchState(Beams.begin(len(context.texts), context.target.device), self.drafted.start(context))

    def propose(self, view: View, state: SearchState) -> Proposal:
        """Let the drafter draft for every beam."""
        if not self.drafter:
            return nothing(view)
        return replace(self.drafted.propose(view, state.drafts), law=None, ask=None)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: SearchState) -> Decision:
        """Search as far as the drafts tell what follows."""
        return search_beams(proposal, scores, view, state.beams, self.rules)

    def observe(self, outcome: Outcome, view: View, state: SearchState) -> SearchState:
        """Note where the search stands; show the drafter what became of the row that each row goes on from."""
        beams = state.beams if outcome.decision is None else outcome.decision.carry
        drafts = self.drafted.observe(_followed(outcome), view, state.drafts) if self.drafter else state.drafts
        return SearchState(beams, drafts)


def _followed(outcome: Outcome) -> Outcome:
    """Return a step as rows saw it that were never anything but what they have become."""
    decision, proposal, scores = outcome.decision, outcome.proposal, outcome.scores
    if decision is None or decision.source is None or proposal is None or scores is None:
        return outcome
    rows = decision.source.tolist()
    index = torch.tensor(rows, device=proposal.tokens.device)
    followed = replace(
        proposal,
        tokens=proposal.tokens[index],
        length=[proposal.length[at] for at in rows],
        drafts=None if proposal.drafts is None else [proposal.drafts[at] for at in rows],
        parent=None if proposal.parent is None else proposal.parent[index],
        inputs=None if proposal.inputs is None else proposal.inputs[index],
        is_soft=None if proposal.is_soft is None else proposal.is_soft[index],
    )
    seen = replace(decision, source=None, endings=None, is_over=None, carry=None)
    return replace(outcome, proposal=followed, decision=seen, scores=scores.part(rows, scores.logits.shape[1]))
