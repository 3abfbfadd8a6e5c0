"""The fleet's simulator beside a real engine: the same requests at the same times, what was predicted and seen.

    python -m outpace.bench.fleet_check --model stories --arrivals poisson:4 --requests 60

Step costs are measured before and after, as `outpace tune` does, with 1 row and with as many as the engine writes side
by side, and so is what the engine's steps take beside their forwards; in between the engine is asked, and then the same
requests are simulated. Prompts are random tokens, and texts are as long as their requests say, so nothing but costs and
queues decides. Texts are written plainly.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from outpace.api.engine import load
from outpace.bench.command import new_parser, run_command
from outpace.bench.fleet import draw_jobs, summarise
from outpace.bench.fleet_model import FleetSettings, Job, StepTimes, simulate
from outpace.bench.machine import describe, lock
from outpace.bench.report import Table, new_report
from outpace.engine.core import Engine
from outpace.engine.face import Ask
from outpace.engine.limits import Limits
from outpace.errors import ConfigError
from outpace.schedule.cost import CostCurve
from outpace.schedule.tune import measure_curve

__all__ = ["compare", "run_engine"]

_STEPS = 48  # of the engine, to time
_SHOWN = {
    "requests/s": ("requests_per_s", ""),
    "tokens/s": ("tokens_per_s", ""),
    "ttft mean": ("ttft_s", "mean"),
    "ttft p50": ("ttft_s", "p50"),
    "ttft p90": ("ttft_s", "p90"),
    "tpot mean": ("tpot_s", "mean"),
    "tpot p50": ("tpot_s", "p50"),
    "tpot p90": ("tpot_s", "p90"),
}


async def run_engine(engine: Engine, jobs: Sequence[Job], seed: int = 0) -> list[Job]:
    """Ask an engine when requests arrive; return them with the times that were seen (`begun` is that of `first`)."""
    source, vocab = random.Random(seed), engine.traits.vocab_size
    prompts = [[source.randrange(vocab) for _ in range(job.prompt)] for job in jobs]
    began = time.perf_counter()

    async def ask(job: Job, prompt: list[int]) -> Job:
        await asyncio.sleep(job.at - (time.perf_counter() - began))
        arguments = {"method": "autoregressive", "max_tokens": job.output, "ignore_eos": True}
        ticket, seen = await engine.submit(Ask(prompt=prompt, arguments=arguments)), replace(job)
        async for piece in ticket:
            if seen.first < 0 and piece.tokens:
                seen.first = seen.begun = time.perf_counter() - began
        seen.ended = time.perf_counter() - began
        return seen

    return list(await asyncio.gather(*(ask(*both) for both in zip(jobs, prompts, strict=True))))


def compare(seen: dict[str, Any], simulated: dict[str, Any]) -> list[dict[str, Any]]:
    """Return, figure by figure, what was seen, what was simulated, and the latter over the former."""
    rows = []
    for name, (key, share) in _SHOWN.items():
        real, guess = (row[key][share] if share else row[key] for row in (seen, simulated))
        rows.append({"figure": name, "seen": real, "simulated": guess, "ratio": guess / real if real else None})
    return rows


@dataclass(frozen=True, slots=True)
class _Costs:
    """What was measured: forwards of 1 row and of several, and the engine's steps with as many."""

    curves: list[CostCurve]
    steps: list[float]

    def mean(self, other: _Costs) -> _Costs:
        """Return what lies between two measurements: the machine is not the same before and after."""
        return _Costs(
            [replace(a, seconds=_means(a.seconds, b.seconds)) for a, b in zip(self.curves, other.curves, strict=True)],
            list(_means(self.steps, other.steps)),
        )

    def beside(self) -> tuple[float, float]:
        """Return the seconds of a step beside its forward: per step, and per row in it."""
        times, rows = StepTimes(self.curves), [curve.batch for curve in self.curves]
        rest = [step - times(num, num) for num, step in zip(rows, self.steps, strict=True)]
        row = max(0.0, (rest[-1] - rest[0]) / (rows[-1] - rows[0]))
        return max(0.0, rest[0] - row), row


def _means(one: Sequence[float], other: Sequence[float]) -> tuple[float, ...]:
    return tuple((a + b) / 2 for a, b in zip(one, other, strict=True))


async def _measure(engine: Engine, given: argparse.Namespace) -> _Costs:
    """Time forwards, then the engine's steps."""
    sizes = {1: (1, 2, 4, 8, 16, 32, 64, 128, 256), given.rows: (1, 2, 4, 8)}
    target, steps = engine.lm.target, list[float]()
    curves = [measure_curve(target, context=given.context, batch=rows, sizes=sizes[rows]) for rows in sizes]
    for rows in sizes:
        seen = await run_engine(engine, [Job(0.0, given.context, _STEPS)] * rows, rows)
        steps.append(statistics.fmean(job.between for job in seen))
    return _Costs(curves, steps)


def _work(given: argparse.Namespace) -> None:
    if given.rows < 2:
        raise ConfigError(f"rows is {given.rows}.", "Give 2 or more: costs are measured with 1 and with as many.")
    jobs = draw_jobs(given)
    limits = Limits(max_rows=given.rows, max_queue=max(given.requests, given.rows), step_tokens=given.budget)

    async def run() -> tuple[list[Job], _Costs]:
        async with Engine(load(given.model, threads=given.threads or None), limits=limits) as engine:
            await _measure(engine, given)  # warms up
            before = await _measure(engine, given)
            seen = await run_engine(engine, jobs, given.seed)
            return seen, before.mean(await _measure(engine, given))

    with lock(600.0):
        facts = describe()
        seen, costs = asyncio.run(run())
    step_s, row_s = costs.beside()
    # The engine's budget is for prompts alone, beside what is written; the simulator's holds both.
    settings = FleetSettings(rows=given.rows, budget=given.budget + given.rows, step_s=step_s, row_s=row_s)
    simulated, busy = simulate(jobs, StepTimes(costs.curves), settings, random.Random(given.seed))
    print(f"Beside its forward a step takes {step_s * 1e3:.2f} ms, and {row_s * 1e3:.3f} ms for each row.\n")
    rows = compare(summarise(seen, 0.0, 1, 0.0), summarise(simulated, busy, 1, 0.0))
    cells = [[row["figure"], f"{row['seen']:.4g}", f"{row['simulated']:.4g}", f"{row['ratio']:.2f}"] for row in rows]
    table = Table("", ("figure", "seen", "simulated", "ratio"), cells)
    print(table.markdown())
    new_report("fleet-check", vars(given), facts, rows, tables=[table], busy=busy, step_s=step_s, row_s=row_s).write(
        given.json
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("fleet_check", __doc__)
    parser.add_argument("--model", default="stories", help="a shipped model, a directory or a hub id")
    parser.add_argument("--arrivals", default="poisson:4", help="poisson:RATE per second, or trace:FILE")
    parser.add_argument("--requests", type=int, default=60, help="how many arrive")
    parser.add_argument("--prompt", default="uniform:32:256", help="law of a prompt's tokens")
    parser.add_argument("--output", default="uniform:16:96", help="law of a text's tokens")
    parser.add_argument("--rows", type=int, default=8, help="samples side by side")
    parser.add_argument("--budget", type=int, default=256, help="prompt tokens per step")
    parser.add_argument("--context", type=int, default=160, help="cached tokens before a measured step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number here")
    parser.set_defaults(groups=0, shared=0)
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
