"""The measurement beside other processes: who is compared with whom, and that no loop outlives it."""

from __future__ import annotations

import os

import pytest

from outpace.bench import busy
from outpace.bench.busy import STATES, State, measure, neighbours, summarise


def test_each_state_is_compared_with_its_reference_of_the_same_round() -> None:
    states = {"alone": State(), "crowd": State(reference="alone"), "mob": State(reference="crowd")}
    found = {"ours": {"alone": [100.0, 10.0, 50.0], "crowd": [50.0, 9.0, 20.0], "mob": [50.0, 9.0, 10.0]}}
    rows = {row["state"]: row for row in summarise(found, states)}
    assert rows["alone"]["ratio"] is None and rows["alone"]["tokens_per_s"] == 50
    assert rows["crowd"]["ratio"] == 0.5 and rows["crowd"]["reference"] == "alone"
    assert rows["mob"]["ratio"] == 1.0 and rows["mob"]["reference"] == "crowd"


def test_arms_take_turns_in_each_state_of_each_round() -> None:
    order: list[str] = []

    def arm(name: str, tokens: int) -> busy.Side:
        return lambda: (order.append(name), (tokens, 2.0))[1]

    found = measure({"a": arm("a", 4), "b": arm("b", 6)}, {"x": State(), "y": State()}, rounds=2, seconds=0.0)
    assert order == ["a", "b"] * 4
    assert found == {"a": {"x": [2.0, 2.0], "y": [2.0, 2.0]}, "b": {"x": [3.0, 3.0], "y": [3.0, 3.0]}}


def test_neighbours_have_their_priority_and_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    plain = busy.subprocess.Popen

    def noted(*args: object, **settings: object) -> object:
        process = plain(*args, **settings)
        started.append(process.pid)
        return process

    monkeypatch.setattr(busy.subprocess, "Popen", noted)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with neighbours(State(equal=1, lowest=1)):
        assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in started] == [own, min(19, own + 19)]
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_every_reference_is_a_state_without_a_cycle() -> None:
    for state in STATES.values():
        seen = set()
        while state.reference:
            assert state.reference not in seen
            seen.add(state.reference)
            state = STATES[state.reference]


def test_an_unknown_state_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        busy.main(["--states", "crowded"])
    assert "no state 'crowded'" in capsys.readouterr().err
