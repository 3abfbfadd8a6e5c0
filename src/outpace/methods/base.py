"""What every method is: frozen settings, a few declared facts, and four functions with defaults.

A method file holds one frozen dataclass derived from `Method`. Its fields are its settings, its module docstring names
the paper, the guarantee, the cost and the differences from the paper.

Longer than most: it holds the base of all methods and the proposals that they make.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from outpace.accept import sample_and_match
from outpace.papers import Paper
from outpace.setting import check, read_options
from outpace.types import (
    Adapter,
    Capabilities,
    Context,
    Decision,
    Guarantee,
    Needs,
    Outcome,
    Proposal,
    Report,
    Scores,
    View,
)

__all__ = ["Ids", "Method", "Paper", "chain", "nothing", "trees"]

Ids = Sequence[int] | npt.NDArray[np.int64]


@dataclass(frozen=True)
class Method:
    """Base of all methods: proposes nothing and accepts by sample and match, which is plain decoding.

    Subclasses are frozen dataclasses; a setting declares its range (`outpace.setting`). Nothing is kept on the
    object between steps: what a method remembers is the state that `start` and `observe` return.
    """

    name: ClassVar[str] = ""
    family: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    paper: ClassVar[Paper | None] = None
    papers: ClassVar[tuple[Paper, ...]] = ()
    """Other published systems that the method is under some of its settings; `Paper.command` names them."""
    harvests: ClassVar[bool] = False
    """`observe` learns from the scores of every step, whoever proposed it; `auto` then shows it all of them."""
    drafts_together: ClassVar[bool] = False
    """Rows of a batch share choices, so that a row's drafts (never its text) depend on its neighbours."""

    is_sized: ClassVar[bool] = False
    """It weighs what its drafts bring against what they cost; `auto` then leaves them as they are."""
    covers: ClassVar[frozenset[str]] = frozenset()
    """Methods that are not worth trying beside it; `auto` leaves them out where this one is an arm."""
    is_mixed: ClassVar[bool] = False
    """Rows may bring methods and settings of their own."""
    draws: ClassVar[bool] = True
    """Its texts depend on noise where the settings ask for it; False = it takes the likeliest ones, no temperature."""
    reads: ClassVar[frozenset[str]] = frozenset({"law", "scores"})
    """What it looks at where rows of several methods stand side by side, and what costs time there: "law", what the
    rows' settings make of logits, anywhere but in `Method.accept`; "scores", in `observe`."""

    def __post_init__(self) -> None:
        """Hold the settings to the ranges that they declare; what ties two settings together, a method adds here.

        Raises:
            ConfigError: a value outside its range.
        """
        check(self)

    @property
    def needs(self) -> Needs:
        """What the target and the caller must offer."""
        return Needs()

    @property
    def guarantee(self) -> Guarantee:
        """The weakest promise among the acceptor, the draft law and the cache policy."""
        return Guarantee.EXACT

    @property
    def tail(self) -> int:
        """Most tokens without a cache entry that are forwarded with the window; more are forwarded before it."""
        return 1

    @property
    def is_resumable(self) -> bool:
        """A row that leaves and joins again goes on as it was; False = it loses what is decided but no text."""
        return True

    @property
    def num_rows(self) -> int:
        """Rows that write one prompt's text together, as a group."""
        return 1

    @property
    def num_texts(self) -> int:
        """How many of them are results: the first ones, the best of which comes first."""
        return 1

    def fitted(self, offered: Capabilities) -> tuple[Method, str]:
        """Return the method as it runs on such a model, and a sentence on what was left out for it, or ""."""
        del offered
        return self, ""

    def check_request(self, target: Adapter, sources: Sequence[list[int]], rooms: Sequence[int]) -> None:
        """Refuse, before anything runs, what was asked for where it cannot be had.

        Args:
            target: the model.
            sources: per text what it is written from: a prompt, or an encoder-decoder's source.
            rooms: tokens that each text may have.

        Raises:
            ConfigError: it cannot be had.
        """
        del target, sources, rooms

    def start(self, context: Context) -> Any:
        """Return the state of joining rows: a tree with a row axis (see `outpace.run.state`)."""
        del context
        return None

    def propose(self, view: View, state: Any) -> Proposal:
        """Return candidates for every row."""
        del state
        return nothing(view)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Any) -> Decision:
        """Return which candidates become final."""
        del state
        return sample_and_match(proposal, scores, view)

    def observe(self, outcome: Outcome, view: View, state: Any) -> Any:
        """Return the state after a commit or a prefill chunk; never runs a model."""
        del outcome, view
        return state

    def report(self, outcome: Outcome, view: View, state: Any) -> list[Report]:
        """Return what a step did to each row, for those who watch; the state is the one before `observe`."""
        del state
        firsts = [length - len(tokens) for length, tokens in zip(view.lengths, outcome.emitted, strict=True)]
        return [
            Report(list(range(first, first + len(tokens))), tokens, [0] * len(tokens))
            for first, tokens in zip(firsts, outcome.emitted, strict=True)
        ]

    def reference(self) -> Method:
        """Return the decoding that an exact method reproduces, token for token; plain decoding by default."""
        from outpace.methods.registry import load_method

        return load_method("autoregressive")()

    def to_certify(self) -> Method:
        """Return the method as certificates test it: with settings under which it drafts often enough to be seen."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Method:
        """Build the method from settings given as values or as command-line strings.

        Raises:
            ConfigError: an unknown setting, or a value of the wrong kind.
        """
        return cls(**read_options(cls, settings, "method"))


def nothing(view: View) -> Proposal:
    """Return an empty proposal for every row of the view."""
    rows = len(view.texts)
    return Proposal(torch.zeros(rows, 0, dtype=torch.int64, device=view.device), [0] * rows)


def chain(view: View, drafts: list[list[int]], origin: str) -> Proposal:
    """Return a proposal of one deterministic chain per row, padded to the longest."""
    width = max((len(draft) for draft in drafts), default=0)
    table = [draft + [0] * (width - len(draft)) for draft in drafts]
    tokens = torch.tensor(table, dtype=torch.int64, device=view.device).view(len(drafts), width)
    return Proposal(tokens, [len(draft) for draft in drafts], origin=origin)


def trees(view: View, drafts: Sequence[tuple[Ids, Ids]], origin: str) -> Proposal:
    """Return a proposal of one deterministic tree per row, padded to the largest.

    Args:
        view: the step.
        drafts: per row, tokens and the index of each one's parent (-1 = the last final token); parents come first.
        origin: who drafted.
    """
    length = [len(tokens) for tokens, _ in drafts]
    if max(length) == 0:
        return nothing(view)
    both = np.zeros((2, len(drafts), max(length)), dtype=np.int64)
    both[1] = -1
    for row, (tokens, parents) in enumerate(drafts):
        both[0, row, : length[row]], both[1, row, : length[row]] = tokens, parents
    tokens_of, parents_of = as_device(torch.from_numpy(both), view)
    return Proposal(tokens_of, length, parents_of, origin=origin)


def as_device(tensor: Tensor, view: View) -> Tensor:
    """Move a tensor to where the target's cache lies."""
    return tensor.to(view.device)
