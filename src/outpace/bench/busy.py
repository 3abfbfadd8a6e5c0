"""Speed beside other processes: plain decoding while loops of equal or of the lowest priority keep the cores busy.

    python -m outpace.bench.busy --model stories
    python -m outpace.bench.busy --model my-model --peer llama.cpp --json busy.json

Every round measures each arm in each state of the machine, one after the other; a state's cost is the median, over
rounds, of its speed against that of its reference in the same round. The loops end with this process, whatever ends it.
"""

from __future__ import annotations

import argparse
import json
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
from outpace.bench.arms import Task
from outpace.bench.child import ChildError
from outpace.bench.engines import EngineArm, Workplace
from outpace.bench.gguf import write_gguf
from outpace.bench.machine import describe, lock
from outpace.errors import OutpaceError
from outpace.failures import guarded
from outpace.models.loading import resolve

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

Run = Callable[[], tuple[int, float]]  # one generation: tokens and seconds after the prefill


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
    arms: Mapping[str, Run], states: Mapping[str, State], rounds: int, seconds: float
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


def _speed(run: Run, seconds: float) -> float:
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


def _own_arm(lm: LanguageModel, method: str, max_tokens: int) -> Run:
    def run() -> tuple[int, float]:
        result = lm.generate(PROMPT, method=method, max_tokens=max_tokens, ignore_eos=True)
        return len(result.tokens), result.timing["decode_s"]

    return run


def _peer_arm(lm: LanguageModel, model: str, max_tokens: int, folder: Path, stack: ExitStack) -> Run:
    """Return plain decoding of llama.cpp on the same weights, in a process of its own."""
    assert lm.tokenizer is not None
    ids, dtype = lm.tokenizer.encode(PROMPT), lm.target.dtype
    place = Workplace(resolve(model), folder, dtype, torch.get_num_threads(), len(ids) + max_tokens)
    write_gguf(place.source, place.converted("llama.cpp", place.precision), dtype)
    arm = EngineArm("llama.cpp", "plain", "", place.job("llama.cpp", "plain", place.precision))
    stack.callback(arm.child.close)
    task = Task(tuple(ids), max_tokens, 0.0, 0)

    def run() -> tuple[int, float]:
        sample = arm.run(task)
        return sample.num_decoded, sample.decode_s

    return run


def _main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m outpace.bench.busy", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stories", help="a shipped model, a directory or a hub id")
    parser.add_argument("--methods", default="autoregressive", help="ours, parted by commas")
    parser.add_argument("--peer", choices=["llama.cpp"], help="measure it on the same weights, too")
    parser.add_argument("--states", default=",".join(STATES), help="who else computes, parted by commas")
    parser.add_argument("--max-tokens", type=int, default=48, help="of each generation")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--threads", type=int, help="of ours and the peer; default: torch's number, and what is free")
    parser.add_argument("--json", metavar="FILE", help="write every number here")
    given = parser.parse_args(arguments)
    unknown = set(given.states.split(",")) - set(STATES)
    if unknown:
        parser.error(f"there is no state {min(unknown)!r}: {', '.join(STATES)}")
    wanted = {name: state for name, state in STATES.items() if name in given.states.split(",")}
    states = {name: state for name, state in STATES.items() if name in wanted or _refers(wanted, name)}
    with ExitStack() as stack:
        stack.enter_context(lock(600.0))
        facts = describe()
        lm = load(given.model, threads=given.threads)
        arms = {method: _own_arm(lm, method, given.max_tokens) for method in given.methods.split(",")}
        if given.peer:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            try:
                arms[given.peer] = _peer_arm(lm, given.model, given.max_tokens, folder, stack)
            except ChildError as error:
                raise OutpaceError(str(error), "docs/measuring.md says how to install it.") from None
        for run in arms.values():
            run()  # warms up
        found = measure(arms, states, given.rounds, given.seconds)
    rows = summarise(found, states)
    _print(rows)
    if given.json:
        record = {"machine": facts, "settings": vars(given), "rows": rows, "tokens_per_s": found}
        Path(given.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def _refers(states: Mapping[str, State], name: str) -> bool:
    return any(state.reference == name for state in states.values())


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    print("| arm | beside | tokens/s | of the speed |\n|---|---|---:|---|")
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f} {row['reference']}"
        print(f"| {row['arm']} | {row['state']} | {row['tokens_per_s']:.0f} | {ratio} |")


if __name__ == "__main__":
    sys.exit(guarded(_main, sys.argv[1:]))
