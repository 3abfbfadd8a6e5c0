"""Jacobi, block and hybrid decoding: iterations worked out by hand, the dependency graph, the contract."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from outpace.errors import ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.parallel.jacobi import Jacobi
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.sampling import Sampling, row_key
from outpace.testing import check_method
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, PeriodicModel, make_rows, target_for
from outpace.trace.dependency import DependencyTrace, draw_dependencies
from outpace.trace.record import Recorder
from outpace.types import Adapter, Scores

VARIANTS = [
    Jacobi(mode="block", window=5),
    Jacobi(mode="block", window=1),
    Jacobi(mode="hybrid", window=6),
    Jacobi(mode="hybrid", window=4, parallel_len=6),
    Jacobi(mode="hybrid", window=40),
    Jacobi(window=3, filler=0),
]


class Successor(ToyModel):
    """Always continues a token with the one after it: every answer waits for the one before."""

    def score(self, tokens: Any, position: Any, visible: Any, cache: Any, ask: Any = None, **rest: Any) -> Scores:
        scores = super().score(tokens, position, visible, cache, ask, **rest)
        asked = tokens if ask is None else tokens.gather(1, ask)
        vocab = scores.logits.shape[-1]
        return Scores(60.0 * torch.nn.functional.one_hot((asked + 1) % vocab, vocab).double())


def run(method: Any, target: Adapter, rows: Sequence[Row], settings: Sampling | None = None, watch: Any = None) -> Run:
    run = Run(target, method, settings or Sampling(), capacity=128, chunk=4, watch=watch)
    run.join(rows)
    while run.rows:
        run.step()
    return run


def row(prompt: Sequence[int], max_tokens: int, ends: tuple[int, ...] = ()) -> Row:
    return Row(list(prompt), len(prompt), row_key(0, 0), max_tokens, ends)


@pytest.mark.parametrize("method", VARIANTS, ids=str)
def test_contract(method: Jacobi) -> None:
    check_method(method, every=3)


# What follows position t is (t + 1) % 6, so after (0, 1, 2) comes 3 4 5 0 1 2 ..., and every answer is right at once.
@pytest.mark.parametrize(
    ("method", "fixed", "positions"),
    [
        # guess 2 2 2, answers 3 4 5 0: one token; guess 4 5 (the block's last needs no guess): three; block done.
        (Jacobi(mode="block", window=4), [1, 3, 1, 3, 1, 3], 3 * (3 + 2)),
        # the window slides: guess 2 2 2 2: one; guess 4 5 0 1: five; and the room of the row cuts the last ones.
        (Jacobi(window=4), [1, 5, 1, 5], 4 + 4 + 4 + 4),
        (Jacobi(mode="block", window=12), [1, 11], 11 + 10),
        (Jacobi(mode="block", window=1), [1] * 12, 0),
        # after 4 tokens the rest is written plainly
        (Jacobi(mode="hybrid", window=4, parallel_len=4), [1, 3, *[1] * 8], 3 + 2),
    ],
    ids=str,
)
def test_iterations_where_answers_do_not_wait(method: Jacobi, fixed: list[int], positions: int) -> None:
    written, trace = row([0, 1, 2], 12), DependencyTrace()
    run(method, PeriodicModel(6), [written], watch=trace)
    assert written.written == [3, 4, 5, 0, 1, 2] * 2
    (graph,) = trace.to_dict()["rows"]
    assert [step["fixed"] for step in graph["iterations"]] == fixed
    assert written.usage.num_proposed == positions
    assert graph["fixed_at"] == [number for number, count in enumerate(fixed) for _ in range(count)]
    assert graph["edges"] == []


def test_a_guess_is_cut_behind_the_end_of_the_text() -> None:
    block, hybrid = row([0, 1, 2], 20, ends=(5,)), row([0, 1, 2], 20, ends=(5,))
    run(Jacobi(mode="block", window=8), PeriodicModel(6), [block])
    run(Jacobi(mode="hybrid", window=8), PeriodicModel(6), [hybrid])
    assert block.written == hybrid.written == [3, 4, 5]
    assert block.usage.num_steps == hybrid.usage.num_steps == 2
    # Answers 3 4 5 0 ...: the next guess is 4 5 0 1 2 3 in block, and 4 alone in hybrid, since 5 ends the text.
    assert (block.usage.num_proposed, hybrid.usage.num_proposed) == (7 + 6, 7 + 1)


def test_the_filler_is_guessed_where_nothing_is_known() -> None:
    written, trace = row([0, 1, 2], 12), DependencyTrace()
    run(Jacobi(mode="block", window=4, filler=4), PeriodicModel(6), [written], watch=trace)
    guesses = [step["guess"] for step in trace.to_dict()["rows"][0]["iterations"]]
    # The blocks are 3 4 5 0, 1 2 3 4 and 5 0 1 2: each begins with three fillers, then holds the answers.
    assert guesses == [[4, 4, 4], [4, 5], [4, 4, 4], [2, 3], [4, 4, 4], [0, 1]]


def test_dependencies_of_a_text_where_every_token_waits_for_the_last() -> None:
    written, trace = row([2], 4), DependencyTrace(decode=str)
    run(Jacobi(mode="block", window=4), Successor(), [written], watch=trace)
    graph = json.loads(json.dumps(trace.to_dict()))["rows"][0]
    assert graph["tokens"] == [3, 4, 5, 6] and graph["text"] == ["[3]", "[4]", "[5]", "[6]"]
    assert graph["fixed_at"] == graph["right_at"] == [0, 1, 2, 3]
    assert graph["edges"] == [[0, 1], [1, 2], [2, 3]]
    assert [step["answer"] for step in graph["iterations"]] == [[3, 3, 3, 3], [4, 4, 4], [5, 5], [6]]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("method", [Jacobi(window=4), *VARIANTS], ids=str)
def test_answers_are_what_the_model_says_after_the_guesses(method: Jacobi, temperature: float) -> None:
    target, settings, rows, trace = target_for("causal"), Sampling(temperature=temperature), make_rows(), None
    trace = DependencyTrace()
    run(method, target, rows, settings, trace)
    for index, graph in enumerate(trace.to_dict()["rows"]):
        assert graph["tokens"] == rows[index].written
        for step in graph["iterations"]:
            text = list(PROMPTS[index]) + graph["tokens"][: step["first"]]
            for at, answer in enumerate(step["answer"]):
                told = Row(text + step["guess"][:at], len(text) + at, rows[index].key, 1)
                run(Autoregressive(), target, [told], settings)
                assert told.written == [answer]


@pytest.mark.parametrize("method", [Jacobi(window=4), *VARIANTS], ids=str)
def test_an_iteration_is_never_wasted(method: Jacobi) -> None:
    rows = make_rows()
    run(method, target_for("causal"), rows)
    assert all(row.usage.num_steps <= len(row.written) for row in rows)


def test_the_graph_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written, trace = row([2], 4), DependencyTrace()
    run(Jacobi(mode="block", window=4), Successor(), [written], watch=trace)
    draw_dependencies(trace.to_dict()["rows"][0], tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")


def test_other_methods_have_no_graph() -> None:
    with pytest.raises(ConfigError, match="no Jacobi decoding"):
        run(Autoregressive(), target_for("causal"), [row([2], 4)], watch=DependencyTrace())


@pytest.mark.parametrize(
    "settings",
    [{"window": 0}, {"mode": "seidel"}, {"parallel_len": -1, "mode": "hybrid"}, {"parallel_len": 3}, {"filler": -2}],
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Jacobi(**settings)


def test_a_trace_file_ends_with_the_graph(tmp_path: Path) -> None:
    for method, name in ((Jacobi(mode="hybrid", window=5), "jacobi"), (PromptLookup(), "prompt-lookup")):
        rows, trace, recorder = make_rows(), DependencyTrace(), Recorder(tmp_path / name)
        watches = [recorder, *([trace] if name == "jacobi" else [])]
        recorder.begin("toy", name, method.to_dict(), [])
        run(method, target_for("causal"), rows, watch=lambda *step: [watch(*step) for watch in watches])  # noqa: B023
        recorder.close()
        last = json.loads((tmp_path / name).read_text(encoding="utf-8").splitlines()[-1])
        assert last["end"] and last.get("dependencies") == (trace.to_dict()["rows"] or None)
