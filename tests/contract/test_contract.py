"""Every registered method fulfils the contract; a new one is covered the day it is registered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from outpace.methods.base import Method
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.methods.registry import load_method, method_names
from outpace.methods.search.beam_search import BeamSearch
from outpace.methods.search.diverse_beam_search import DiverseBeamSearch
from outpace.methods.speculative.draft_model import DraftModel
from outpace.methods.speculative.layer_skip import LayerSkip
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.testing import check_method, run_contract
from outpace.testing.answers import answer_checks, law_checks
from outpace.testing.checks import contract_checks
from outpace.testing.world import inhabited, make_rows, reference, write
from outpace.types import Counter, Needs, Outcome, Proposal, View

VARIANTS = [
    DraftModel(draft_len=3, tree_width=2),
    DraftModel(accept_rule="rejection", draft_len=4),
    DraftModel(min_confidence=0.3, is_adaptive=False),
    LayerSkip(skip=(0, 2), min_confidence=0.2),
    BeamSearch(beams=3, drafter="prompt-lookup", length_penalty=0.4),
    BeamSearch(beams=2, drafter="draft-model", tree_width=3, early_stopping="true"),
    DiverseBeamSearch(beams=4, drafter="token-recycling", early_stopping="never"),
    MaskedDiffusion(order="margin", per_step=2),
    MaskedDiffusion(cache="delayed", refresh=3),
]


@pytest.mark.parametrize("name", method_names())
def test_registered(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Counter()
    add = Counter.add

    def counted(self: Counter, positions: int, layers: int) -> None:
        add(work, positions, layers)
        add(self, positions, layers)

    monkeypatch.setattr(Counter, "add", counted)
    check_method(load_method(name)())
    # A second or two a method, told in work: a method that forwards more has lost its bound on drafting.
    # Rules over places read every text's places again, under several contexts each.
    most = 500_000 if load_method(name)().needs.kinds else 120_000
    assert work.nfe <= 5_000 and work.positions <= most, (work.nfe, work.positions)


@pytest.mark.parametrize("method", VARIANTS, ids=str)
def test_variants(method: Method) -> None:
    check_method(method, every=3)


# One of each way of drafting and accepting; what the others add has no side that an encoder-decoder could touch.
ON_PAIRS = (
    *(
        "autoregressive",
        "auto",
        "prompt-lookup",
        "input-guided",
        "generalised-aggressive",
        "token-recycling",
        "draft-model",
        "multi-candidate",
        "typical-acceptance",
    ),
    *("staged", "jacobi", "lookahead", "layer-skip", "early-exit", "bild", "suffix", "medusa", "eagle", "blockwise"),
    "beam-search",
)


@pytest.mark.parametrize("name", ON_PAIRS)
def test_registered_on_an_encoder_decoder(name: str) -> None:
    check_method(load_method(name)(), "encoder-decoder", every=3)


def test_an_encoder_decoder_reads_its_source() -> None:
    """Were the source left out, the contract above would show nothing."""
    assert reference("greedy", kind="encoder-decoder") != reference("greedy")
    with inhabited("encoder-decoder"):
        rows, others = make_rows(), make_rows()
        others[1].source = [9, 9]
        write(load_method("autoregressive")(), rows=rows)
        write(load_method("autoregressive")(), rows=others)
    assert [a.written == b.written for a, b in zip(rows, others, strict=True)] == [True, False, True, True]


@pytest.mark.parametrize("check", answer_checks() + law_checks(), ids=lambda check: check.__name__)
def test_known_answers(check: Any) -> None:
    check()


def test_checks_say_what_they_check() -> None:
    assert all(check.__doc__ for check in (*contract_checks(), *answer_checks(), *law_checks()))


@dataclass(frozen=True)
class Remembers(PromptLookup):
    """Keeps something on itself."""

    seen: list[int] = field(default_factory=list)

    def observe(self, outcome: Outcome, view: View, state: Any) -> Any:
        self.seen.append(view.step)
        return state


@dataclass(frozen=True)
class Wider(PromptLookup):
    """Proposes more than it says."""

    @property
    def needs(self) -> Needs:
        return Needs(width=1)


@dataclass(frozen=True)
class Mixes(DraftModel):
    """Drafts for one row from another."""

    def propose(self, view: View, state: Any) -> Proposal:
        proposal = super().propose(view, state)
        proposal.tokens = proposal.tokens.flip(0)
        return proposal


@pytest.mark.parametrize(
    ("method", "check"),
    [
        (Remembers(), "check_bookkeeping"),
        (Wider(), "check_needs"),
        (Mixes(), "check_drafts_alone"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_broken_methods_are_caught(method: Method, check: str) -> None:
    chosen = [one for one in contract_checks() if one.__name__ == check]
    assert check in run_contract(method, chosen)


def test_failures_are_named() -> None:
    with pytest.raises(AssertionError, match="check_needs: AssertionError: A window is wider"):
        check_method(Wider())
