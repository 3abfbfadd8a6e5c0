"""Certificates on the shipped model: they hold for exact methods, and never for want of evidence or promise."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest

from outpace.api.engine import LanguageModel, load
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.methods.parallel.jacobi import Jacobi
from outpace.methods.speculative.draft_model import DraftModel
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.testing.certificate import Certificate
from outpace.testing.certify import PROMPTS as SAMPLES
from outpace.testing.certify import SETTINGS, Flip, Line, certify, certify_model, logit_drift, own_prompts
from outpace.testing.certify_all import Entry, certifiable, certify_all, entry_of
from outpace.testing.plan import OutOfTime, Plan, Progress
from outpace.testing.world import PROMPTS, drafter_for, target_for
from outpace.types import Decision, Proposal, Scores, View
from outpace.zoo import path


class Clock:
    """A clock that stands still until it is told otherwise."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def toy() -> LanguageModel:
    return LanguageModel(target_for("causal"), name="toy")


@pytest.fixture
def endless() -> Plan:
    """A plan whose time stands still."""
    return Plan(clock=Clock())


@dataclass(frozen=True)
class Greedy(PromptLookup):
    """Accepts one draft too many, now and then."""

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: object) -> Decision:
        decision = super().accept(proposal, scores, view, state)
        if view.step % 5 == 3:
            decision.tokens = (decision.tokens + 1) % 13
        return decision


def test_an_exact_method_is_certified(toy: LanguageModel, endless: Plan) -> None:
    settings = ("greedy", "penalties", "temperature > 1")
    certificate = certify_model(toy, Jacobi(window=4), PROMPTS, rounded=toy, settings=settings, plan=endless)
    assert certificate.holds and certificate.exit_status == 0, certificate.render()
    assert certificate.render().count("CERTIFIED") == 1 and "NOT CERTIFIED" not in certificate.render()
    shown = certificate.to_dict()
    assert (shown["holds"], shown["verdict"], shown["dropped"], shown["missing"]) == (True, "certified", [], [])
    proof = certificate.lines[: len(settings)]
    assert all(line.accepted >= 50 <= line.rejected and line.stops_inside for line in proof)
    assert [line.setting for line in certificate.lines] == [*settings] * 2  # proven, then below float64
    assert certificate.invariant["is_identical"]


def test_a_faulty_method_is_not(toy: LanguageModel, endless: Plan) -> None:
    certificate = certify_model(toy, Greedy(), PROMPTS, settings=("greedy",), plan=endless)
    assert (certificate.verdict, certificate.exit_status) == ("differs", 1)
    assert "differs from plain decoding" in certificate.render() and "NOT CERTIFIED: it differs" in certificate.render()


def test_too_little_evidence_is_a_verdict_of_its_own(toy: LanguageModel, endless: Plan) -> None:
    given = {"settings": ("greedy",), "max_rounds": 1, "max_tokens": 4, "plan": endless}
    certificate = certify_model(toy, PromptLookup(), PROMPTS[:1], **given)
    assert (certificate.verdict, certificate.exit_status, certificate.holds) == ("too little seen", 3, False)
    assert not any(line.faults for line in certificate.lines) and certificate.missing == ["greedy"]
    shown = certificate.render()
    assert "not seen: 50 accepted drafts" in shown and "nothing differs, but too little was seen (greedy)" in shown


def test_one_difference_outweighs_all_that_was_not_seen() -> None:
    lines = [Line("greedy", "float64", missing=["a bonus token"]), Line("cuts", "float64", faults=["It differs."])]
    assert Certificate("m", "x", {}, "exact", lines, missing=["greedy"]).verdict == "differs"
    assert Certificate("m", "x", {}, "exact", lines[:1], missing=["greedy"]).verdict == "too little seen"
    assert [line.verdict for line in lines] == ["too little seen", "differs"]
    assert Entry("x", Certificate("m", "x", {}, "exact", lines)).exit_status == 1
    assert Entry("x", Certificate("m", "x", {}, "exact", lines[:1])).exit_status == 3
    assert [Entry("x", is_failure=failed).exit_status for failed in (True, False)] == [1, 0]


def test_rejection_is_certified_by_its_law(toy: LanguageModel, endless: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy.partners, "models", lambda method, given: {"draft": drafter_for("causal")})
    method = DraftModel(accept_rule="rejection", draft_len=4)
    certificate = certify_model(toy, method, PROMPTS, settings=("temperature 0.7",), plan=endless)
    assert certificate.holds, certificate.render()
    assert "exact enumeration of the rule: passed" in certificate.render()


def test_an_approximate_method_gets_none() -> None:
    certificate = certify("nowhere", MaskedDiffusion())
    assert certificate.exit_status == 1 and certificate.verdict == "approximate"
    assert "approximate: no certificate" in certificate.render()


def test_a_flip_must_lie_under_the_tolerance() -> None:
    line = Line("greedy", "bfloat16", flips=[Flip(0, 3, 0.01, 0.02)])
    assert line.holds
    line.flips.append(Flip(1, 5, 0.03, 0.02))
    assert line.verdict == "differs"


def test_float64_drifts_by_rounding_only() -> None:
    assert logit_drift(target_for("causal"), PROMPTS) < 1e-12


def test_every_law_of_a_setting_is_tried(toy: LanguageModel, endless: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, write = set[float](), LanguageModel.generate

    def noted(lm: LanguageModel, *given: object, **told: object) -> object:
        asked.add(told.get("repetition_penalty", 1))  # type: ignore[arg-type]
        return write(lm, *given, **told)  # type: ignore[arg-type]

    monkeypatch.setattr(LanguageModel, "generate", noted)
    assert certify_model(toy, Jacobi(window=4), PROMPTS, settings=("penalties",), plan=endless).holds
    assert asked >= {law["repetition_penalty"] for law in SETTINGS["penalties"]}


# Where the time goes


def test_what_does_not_fit_is_left_out_and_named() -> None:
    clock, done = Clock(), list[str]()
    plan = Plan(10.0, clock)

    def work(name: str, seconds: float) -> Callable[[], None]:
        def do() -> None:
            clock.now += seconds
            done.append(name)

        return do

    for name, size in (("first", 1), ("second", 2), ("third", 4), ("small", 1)):
        plan.add(name, "proof", size)
    plan.add("other", "flips")
    assert plan.left_s is None and plan.rate("proof") is None
    assert plan.do("first", work("first", 2.0)) and plan.rate("proof") == 2.0
    assert plan.left_s == 8.0  # seven units would take 14 s, but the limit leaves no more
    assert plan.do("second", work("second", 2.5)) and plan.rate("proof") == 1.5
    assert not plan.do("third", work("third", 6.0))  # 4.5 s gone, 6 s needed
    plan.add("needed", "proof", 4)
    assert plan.do("needed", work("needed", 0.0), is_needed=True) and plan.rate("proof") == 4.5 / 7
    assert plan.left_s == 4.5 / 7 and plan.do("small", work("small", 1.5)) and plan.do("other", work("other", 1.0))
    assert (done, plan.dropped) == (["first", "second", "needed", "small", "other"], ["third"])


def test_the_limit_holds_inside_a_part() -> None:
    clock, seen = Clock(), list[Progress]()
    plan = Plan(10.0, clock, seen.append)

    def endless() -> None:
        while not plan.tick():
            clock.now += 0.5

    plan.add("long", "proof")
    plan.guess("proof", 4.0)
    assert not plan.do("long", endless) and plan.dropped == ["long"] and plan.elapsed_s == 10.0
    assert [one.left_s for one in seen[:4]] == [4.0, 3.5, 3.0, 2.5] and seen[-1].left_s == 0.0
    assert not any(one.is_done for one in seen)
    with pytest.raises(OutOfTime):
        list(plan.each([1]))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], tuple[Plan, list[Progress]]]:
    """Return a plan with a limit, whose clock goes on by so many seconds with every decoding step."""

    def make(step_s: float, limit_s: float) -> tuple[Plan, list[Progress]]:
        clock, seen, step = Clock(), list[Progress](), Run.step

        def slow(run: Run) -> list[tuple[Row, list[int]]]:
            clock.now += step_s
            return step(run)

        monkeypatch.setattr(Run, "step", slow)
        return Plan(limit_s, clock, seen.append), seen

    return make


@pytest.mark.parametrize(
    ("step_s", "limit_s", "verdict"),
    [
        (0.001, 20.0, "certified"),
        (0.1, 20.0, "too little seen"),
        (1.0, 3.0, "too little seen"),
        (1, 0, "too little seen"),
    ],
)
def test_the_limit_is_obeyed_at_any_speed(
    toy: LanguageModel,
    timed: Callable[[float, float], tuple[Plan, list[Progress]]],
    step_s: float,
    limit_s: float,
    verdict: str,
) -> None:
    plan, seen = timed(step_s, limit_s)
    certificate = certify_model(toy, Jacobi(window=4), PROMPTS, rounded=lambda: toy, plan=plan)
    assert plan.elapsed_s <= limit_s + 2 * step_s
    assert certificate.verdict == verdict, certificate.render()
    assert bool(certificate.dropped) is not certificate.holds
    assert all(part in certificate.render() for part in certificate.dropped)
    begun = {line.setting for line in certificate.lines}
    assert certificate.holds or {*certificate.missing} >= SETTINGS.keys() - {"grammar"} - begun
    assert all(one.left_s is None or one.elapsed_s + one.left_s <= max(limit_s, one.elapsed_s) for one in seen)


def test_texts_are_shorter_where_they_take_long(
    toy: LanguageModel, timed: Callable[[float, float], tuple[Plan, list[Progress]]]
) -> None:
    lengths = []
    for step_s in (0.001, 0.1):
        given = {"settings": ("greedy", "cuts"), "max_rounds": 1, "plan": timed(step_s, 60.0)[0]}
        line = certify_model(toy, Jacobi(window=4), PROMPTS, **given).lines[1]
        lengths.append(line.tokens / line.rows)
    assert lengths[0] > lengths[1] >= 10


def test_a_model_that_chats_is_asked_in_its_own_words(toy: LanguageModel) -> None:
    class Chat:
        """Spells texts by their characters."""

        has_chat, is_strict = True, False

        def render_chat(self, messages: list[dict[str, str]]) -> str:
            if self.is_strict:
                from outpace.errors import ConfigError

                raise ConfigError("The chat template refused these messages.")
            return f"<{messages[0]['content']}>"

        def encode(self, text: str, is_special: bool = True) -> list[int]:
            return [-1] * is_special + [ord(letter) for letter in text]

    toy.tokenizer = Chat()  # type: ignore[assignment]
    prompts = own_prompts(toy)
    assert [ids[0] for ids in prompts] == [-1] * 3 + [ord("<")] * 3
    Chat.is_strict = True
    assert [len(ids) for ids in own_prompts(toy)] == [len(text) + 1 for text in SAMPLES]


@pytest.mark.slow
@pytest.mark.skipif(not (path("stories") / "model.safetensors").exists(), reason="the shipped model is not here")
def test_the_shipped_model(endless: Plan) -> None:
    """A sample; `make certify` does all settings, prompts and methods."""
    lm = load("stories", dtype="float64", device="cpu")
    prompts = [text for text in SAMPLES if "happy" in text or "sat on" in text or "def" in text]
    certificate = certify_model(lm, PromptLookup(), prompts, settings=("greedy",), max_tokens=32, plan=endless)
    assert certificate.holds, certificate.render()


def test_a_drafter_of_other_tokens_is_no_failure() -> None:
    """The drafter that a method names by default speaks of another model's tokens: it is left out, and said so."""
    ((method, entry),) = certifiable("translate", ["block-draft"])
    assert method is None and not entry.is_failure and "'stories-block' has 8192 tokens" in entry.reason
    ((method, entry),) = certifiable("stories", ["block-draft"])
    assert method is not None and not entry.reason


def test_methods_that_would_decode_plainly_are_named_and_not_run() -> None:
    ((method, entry),) = certifiable("stories", ["copy-phrases"])
    assert method is None and "no collection" in entry.reason and not entry.is_failure


def test_a_refusal_is_no_failure() -> None:
    (entry,) = certify_all("stories", ["pard"], limit_s=10.0, jobs=1)  # its drafter ships, but has no mask for places
    assert "pard_token" in entry.reason and not entry.is_failure


def test_what_went_wrong_is_told_from_what_was_refused() -> None:
    for error, is_failure in ((ConfigError("No."), False), (CapabilityError("No."), True), (ValueError("No."), True)):
        done: Future[Any] = Future()
        done.set_exception(error)
        entry = entry_of("some", done)
        assert entry.is_failure == is_failure and "No." in entry.reason
