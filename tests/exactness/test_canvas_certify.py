"""Certificates of lossless methods on canvases: they name their reference, and fail where it is not reproduced."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from outpace.api.engine import LanguageModel
from outpace.methods.diffusion.freedave import FreeDave
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.methods.diffusion.ssd import SSD
from outpace.sampling import Sampling
from outpace.testing.canvas_certificate import on_canvas
from outpace.testing.canvas_checks import toy_canvas
from outpace.testing.certify import SETTINGS, certify_model
from outpace.testing.world import PROMPTS
from outpace.types import Decision, Proposal, Scores, View


@pytest.fixture(params=["full", "block"])
def toy(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel(toy_canvas(request.param, is_shifted=True), name="toy")


@dataclass(frozen=True)
class Careless(FreeDave):
    """Writes another token now and then."""

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: object) -> Decision:
        decision = super().accept(proposal, scores, view, state)  # type: ignore[arg-type]
        if view.step % 7 == 5:
            decision.tokens = (decision.tokens + 1) % 12
        return decision


def test_a_lossless_method_is_certified(toy: LanguageModel) -> None:
    certificate = certify_model(toy, SSD(order="random"), PROMPTS, settings=("temperature 0.7",), max_tokens=20)
    assert certificate.holds and certificate.exit_status == 0, certificate.render()
    assert "compared with masked-diffusion order=random" in certificate.render()
    line = certificate.to_dict()["lines"][0]
    assert line["accepted"] >= 50 <= line["rejected"] and 0 < line["steps"] < line["reference_steps"]


def test_a_careless_one_is_not(toy: LanguageModel) -> None:
    certificate = certify_model(toy, Careless(), PROMPTS, settings=("greedy",), max_rounds=1, max_tokens=20)
    assert not certificate.holds
    assert "differs from masked-diffusion" in certificate.render()


def test_settings_that_need_an_order_are_left_out() -> None:
    names = on_canvas(tuple(SETTINGS))
    assert "greedy" in names and "penalties" not in names and "grammar" not in names
    assert not any(Sampling(**law).is_stateful for name in names for law in SETTINGS[name])


def test_the_reference_has_the_same_settings() -> None:
    ours = FreeDave(block=8, cache="dual", refresh=3, ahead=4, order="margin", copies=6)
    assert ours.reference() == MaskedDiffusion(block=8, cache="dual", refresh=3, ahead=4, order="margin")
    assert replace(ours, end="last").reference().to_dict()["end"] == "last"
