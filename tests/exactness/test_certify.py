"""Certificates on the shipped model: they hold for exact methods, and never for want of evidence or promise."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from outpace.engine import LanguageModel, load
from outpace.methods.draft_model import DraftModel
from outpace.methods.jacobi import Jacobi
from outpace.methods.masked_diffusion import MaskedDiffusion
from outpace.methods.prompt_lookup import PromptLookup
from outpace.testing.certify import PROMPTS as SAMPLES
from outpace.testing.certify import Flip, Line, certify, certify_model, logit_drift
from outpace.testing.world import PROMPTS, drafter_for, target_for
from outpace.types import Decision, Proposal, Scores, View
from outpace.zoo import path


@pytest.fixture
def toy() -> LanguageModel:
    return LanguageModel(target_for("causal"), name="toy")


@dataclass(frozen=True)
class Greedy(PromptLookup):
    """Accepts one draft too many, now and then."""

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: object) -> Decision:
        decision = super().accept(proposal, scores, view, state)
        if view.step % 5 == 3:
            decision.tokens = (decision.tokens + 1) % 13
        return decision


def test_an_exact_method_is_certified(toy: LanguageModel) -> None:
    certificate = certify_model(toy, Jacobi(window=4), PROMPTS, rounded=toy, settings=("greedy", "penalties"))
    assert certificate.holds and certificate.exit_status == 0, certificate.render()
    assert "CERTIFIED" in certificate.render() and certificate.to_dict()["holds"]
    assert certificate.lines[0].accepted >= 50 <= certificate.lines[0].rejected
    assert certificate.invariant["is_identical"]


def test_a_faulty_method_is_not(toy: LanguageModel) -> None:
    certificate = certify_model(toy, Greedy(), PROMPTS, settings=("greedy",))
    assert not certificate.holds and certificate.exit_status == 1
    assert "differs from plain decoding" in certificate.render()


def test_too_little_evidence_is_named(toy: LanguageModel) -> None:
    certificate = certify_model(toy, PromptLookup(), PROMPTS[:1], settings=("greedy",), max_rounds=1, max_tokens=4)
    assert not certificate.holds
    assert "not seen: 50 accepted drafts" in certificate.render()


def test_rejection_is_certified_by_its_law(toy: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "_other_models", lambda method, given: {"draft": drafter_for("causal")})
    method = DraftModel(accept_rule="rejection", draft_len=4)
    certificate = certify_model(toy, method, PROMPTS, settings=("temperature 0.7",))
    assert certificate.holds, certificate.render()
    assert "exact enumeration of the rule: passed" in certificate.render()


def test_an_approximate_method_gets_none() -> None:
    certificate = certify("nowhere", MaskedDiffusion())
    assert certificate.exit_status == 1 and "approximate: no certificate" in certificate.render()


def test_a_flip_must_lie_under_the_tolerance() -> None:
    line = Line("greedy", "bfloat16", flips=[Flip(0, 3, 0.01, 0.02)])
    assert line.holds
    line.flips.append(Flip(1, 5, 0.03, 0.02))
    assert not line.holds


def test_float64_drifts_by_rounding_only() -> None:
    assert logit_drift(target_for("causal"), PROMPTS) < 1e-12


@pytest.mark.slow
@pytest.mark.skipif(not (path("stories") / "model.safetensors").exists(), reason="the shipped model is not here")
def test_the_shipped_model() -> None:
    """A sample; `make certify` does all settings, prompts and methods."""
    lm = load("stories", dtype="float64", device="cpu")
    prompts = [text for text in SAMPLES if "happy" in text or "sat on" in text or "def" in text]
    certificate = certify_model(lm, PromptLookup(), prompts, settings=("greedy",), max_tokens=32)
    assert certificate.holds, certificate.render()
