"""Speed beside other processes: plain decoding while loops of equal or of the lowest priority keep the cores busy.

    python -m outpace.bench.busy --model stories
    python -m outpace.bench.busy --model my-model --peer llama.cpp --json busy.json

Every round measures each arm in each state of the machine, one after the other; a state's cost is the median, over
rounds, of its speed against that of its reference in the same round. The loops end with this process, whatever ends it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outpace.api.engine import LanguageModel, load
from outpace.bench.arms import Arm, OurArm, Request
from outpace.bench.child import ChildError
from outpace.bench.command import new_parser, run_command, words
from outpace.bench.engines import EngineArm, Workplace
from outpace.bench.machine import describe, lock
from outpace.bench.report import Table, new_report
from outpace.errors import OutpaceError
from outpace.methods.registry import load_method
from outpace.models.loading import resolve
from outpace.quantize.gguf_file import write_plain

__all__ = ["STATES", "State", "measure", "neighbours", "summarise"]

LOWEST = 19  # of the priorities that `nice` gives
SETTLE_S = 0.5  # the loops start and are dealt to the cores
PROMPT = "Once upon a time there was a little girl who"
_LOOP = """import os, sys
os.nice(int(sys.argv[1]))
print("up", flush=True)
while os.getppid() == int(sys.argv[2]):
    for _ in range(1_000_000): pass
"""

Side = Callable[[], tuple[int, float]]  # makes one generation: tokens and seconds after the prefill


@dataclass(frozen=True, slots=True)
class State:
    """Who else computes.

    Attributes:
        equal: loops of our own priority.
        lowest: loops of the lowest priority.
        reference: the state that this one is compared with; "" = none.
    """

    equal: int = 0
    lowest: int = 0
    reference: str = ""


STATES = {
    "alone": State(),
    "4 lowest": State(lowest=4, reference="alone"),
    "2 equal": State(equal=2, reference="alone"),
    "2 equal + 4 lowest": State(equal=2, lowest=4, reference="2 equal"),
    "4 equal": State(equal=4, reference="alone"),
}


@contextmanager
def neighbours(state: State) -> Iterator[None]:
    """Keep the loops of a state running while in the block."""
    started: list[subprocess.Popen[str]] = []
    try:
        for nice in [0] * state.equal + [LOWEST] * state.lowest:
            command = [sys.executable, "-S", "-c", _LOOP, str(nice), str(os.getpid())]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.communicate()


def measure(
    arms: Mapping[str, Side], states: Mapping[str, State], rounds: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Return tokens per second by arm and state, one number per round.

    Args:
        arms: by name, what makes one generation.
        states: by name, who else computes.
        rounds: how often each is measured.
        seconds: of generations per measurement, at least one.
    """
    found: dict[str, dict[str, list[float]]] = {arm: {state: [] for state in states} for arm in arms}
    for _ in range(rounds):
        for name, state in states.items():
            with neighbours(state):
                time.sleep(SETTLE_S if state.equal + state.lowest else 0)
                for arm, run in arms.items():
                    found[arm][name].append(_speed(run, seconds))
    return found


def _speed(run: Side, seconds: float) -> float:
    tokens, taken, end = 0, 0.0, time.perf_counter() + seconds
    while not tokens or time.perf_counter() < end:
        count, duration = run()
        tokens, taken = tokens + count, taken + duration
    return tokens / taken


def summarise(found: Mapping[str, Mapping[str, Sequence[float]]], states: Mapping[str, State]) -> list[dict[str, Any]]:
    """Return a row per arm and state: median tokens per second, and the median ratio to the reference, by rounds."""
    rows: list[dict[str, Any]] = []
    for arm, speeds in found.items():
        for name, state in states.items():
            pairs = zip(speeds[name], speeds[state.reference], strict=True) if state.reference else []
            ratios = [speed / reference for speed, reference in pairs]
            row = {"arm": arm, "state": name, "tokens_per_s": statistics.median(speeds[name])}
            row |= {"reference": state.reference, "ratio": statistics.median(ratios) if ratios else None}
            rows.append(row)
    return rows


def _side(arm: Arm, ids: Sequence[int], max_tokens: int) -> Side:
    """Return what makes one generation with an arm, past end tokens."""
    task = Request(tuple(ids), max_tokens, 0.0, 0)

    def run() -> tuple[int, float]:
        sample = arm.run(task)
        return sample.num_decoded, sample.decode_s

    return run


def _llama_cpp(lm: LanguageModel, model: str, capacity: int, folder: Path, stack: ExitStack) -> Arm:
    """Return plain decoding of llama.cpp on the same weights, in a process of its own."""
    dtype = lm.target.dtype
    place = Workplace(resolve(model), folder, dtype, torch.get_num_threads(), capacity)
    write_plain(place.source, place.converted("llama.cpp", place.precision), dtype)
    try:
        arm = EngineArm("llama.cpp", "plain", "", place.job("llama.cpp", "plain", place.precision))
    except ChildError as error:
        raise OutpaceError(str(error), "docs/measuring.md says how to install it.") from None
    stack.callback(arm.child.close)
    return arm


def _work(given: argparse.Namespace) -> None:
    states = {name: STATES[name] for name in STATES if name in given.states}
    states |= {state.reference: STATES[state.reference] for state in states.values() if state.reference}
    states = {name: states[name] for name in STATES if name in states}
    with ExitStack() as stack:
        stack.enter_context(lock(600.0))
        facts = describe()
        lm = load(given.model, threads=given.threads or None)
        assert lm.tokenizer is not None
        ids = lm.tokenizer.encode(PROMPT)
        arms: dict[str, Arm] = {name: OurArm(lm, load_method(name)(), "", name) for name in given.methods.split(",")}
        if given.peer:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            arms[given.peer] = _llama_cpp(lm, given.model, len(ids) + given.max_tokens, folder, stack)
        sides = {name: _side(arm, ids, given.max_tokens) for name, arm in arms.items()}
        for run in sides.values():
            run()  # warms up
        found = measure(sides, states, given.rounds, given.seconds)
    rows = summarise(found, states)
    report = new_report("busy", vars(given), facts, rows, tables=[_table(rows)], tokens_per_s=found)
    print(_table(rows).markdown())
    report.write(given.json)


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    cells = []
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f} {row['reference']}"
        cells.append([row["arm"], row["state"], f"{row['tokens_per_s']:.0f}", ratio])
    return Table("", ("arm", "beside", "tokens/s", "of the speed"), cells, left=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("busy", __doc__)
    parser.add_argument("--model", default="stories", help="a shipped model, a directory or a hub id")
    parser.add_argument("--methods", default="autoregressive", help="ours, parted by commas")
    parser.add_argument("--peer", choices=["llama.cpp"], help="measure it on the same weights, too")
    parser.add_argument("--states", type=words("state", STATES), default=list(STATES), help="who else computes")
    parser.add_argument("--max-tokens", type=int, default=48, help="of each generation")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
