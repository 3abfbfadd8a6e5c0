"""How many machines: a fleet simulated from measured cost curves, by arrivals, lengths, drafting and routing.

    python -m outpace.bench.fleet --curve curve.json --arrivals poisson:20 --replicas 1,2,4,8

A curve is the file that `outpace tune` stores, or what it prints with --json; give several, measured with --batch 1, 8
and 32 say, for what a step of more rows costs. Lengths are laws: fixed:128, uniform:32:512, exponential:200 (rounded
up, hence geometric), lognormal:300:0.8 (median and sigma). A trace holds one JSON object a line: at (seconds), prompt,
output (tokens), and perhaps group and shared.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from outpace.bench.command import new_parser, numbers, run_command
from outpace.bench.fleet_model import ROUTES, FleetSettings, Job, StepTimes, simulate
from outpace.bench.machine import describe
from outpace.bench.plots import draw_fleet
from outpace.bench.report import Table, new_report
from outpace.errors import ConfigError
from outpace.schedule.cost import CostCurve

__all__ = ["draw_jobs", "length_law", "poisson", "read_curve", "read_trace", "summarise"]

_WARM = 0.1  # of the requests, the first ones: they find an empty fleet, and are not counted
_SHARES = (50, 90, 99)
_KEEPS_UP = 0.95  # of the offered tokens, what a fleet writes that is large enough


def read_curve(path: str | Path) -> CostCurve:
    """Read a curve as `outpace tune` stores or prints it.

    Raises:
        ConfigError: there is no such file, or it holds no curve.
    """
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        return CostCurve(tuple(fields["sizes"]), tuple(fields["seconds"]), fields["context"], fields["batch"])
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", "Measure with outpace tune --json.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no cost curve ({error}).", "Measure with outpace tune --json.") from None


def length_law(text: str) -> Callable[[random.Random], int]:
    """Return what draws a number of tokens, 1 or more, by a law: see the module.

    Raises:
        ConfigError: it is none.
    """
    name, *given = text.split(":")
    try:
        values = [float(value) for value in given]
        if any(not math.isfinite(value) or value < 0 for value in values) or values[0] < 1:
            raise ValueError
        draw: Callable[[random.Random], float] = {
            ("fixed", 1): lambda source: values[0],
            ("uniform", 2): lambda source: source.uniform(values[0], values[1] + 1),
            ("exponential", 1): lambda source: 1 + source.expovariate(1 / values[0]),
            ("lognormal", 2): lambda source: source.lognormvariate(math.log(values[0]), values[1]),
        }[name, len(values)]
    except (ValueError, KeyError, IndexError):
        raise ConfigError(
            f"{text!r} is no law of lengths.",
            "Use fixed:N, uniform:LOW:HIGH, exponential:MEAN or lognormal:MEDIAN:SIGMA, from 1 token on.",
        ) from None
    return lambda source: max(1, int(draw(source)))


def poisson(
    rate: float,
    num: int,
    prompt: Callable[[random.Random], int],
    output: Callable[[random.Random], int],
    source: random.Random,
    groups: int = 0,
    shared: int = 0,
) -> list[Job]:
    """Return requests that arrive independently of each other.

    Args:
        rate: per second.
        num: how many.
        prompt, output: draw lengths; a prompt's beginning comes on top.
        source: of all draws.
        groups: beginnings that prompts share, each equally often; 0 = none.
        shared: tokens of a beginning.
    """
    jobs, now = list[Job](), 0.0
    for _ in range(num):
        now += source.expovariate(rate)
        group = source.randrange(groups) if groups else -1
        first = shared if groups else 0
        jobs.append(Job(now, first + prompt(source), output(source), group, first))
    return jobs


def read_trace(path: str | Path) -> list[Job]:
    """Read requests as they arrived: see the module.

    Raises:
        ConfigError: there is no such file, or a line of it is none.
    """
    jobs = list[Job]()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        raise ConfigError(f"{path} cannot be read.", "Give a file of JSON lines.") from None
    for number, line in enumerate(lines, 1):
        try:
            given = json.loads(line)
            job = Job(float(given["at"]), int(given["prompt"]), int(given["output"]))
            job.group, job.shared = int(given.get("group", -1)), int(given.get("shared", 0))
            if not (0 <= job.at < math.inf) or min(job.prompt, job.output) < 1 or not 0 <= job.shared <= job.prompt:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"Line {number} of {path} is no request.", 'Write {"at": 0.5, "prompt": 200, "output": 64}.'
            ) from None
        jobs.append(job)
    if not jobs:
        raise ConfigError(f"{path} holds no request.", "Write one a line.")
    return sorted(jobs, key=lambda job: job.at)


def summarise(jobs: Sequence[Job], busy: float, replicas: int, price: float) -> dict[str, Any]:
    """Return what a fleet did, the first tenth of its requests left out.

    Args:
        jobs: that have ended.
        busy: share of time in which a replica steps.
        replicas: how many there were.
        price: of a replica, per hour.
    """
    counted = jobs[int(_WARM * len(jobs)) :]
    span = max(job.ended for job in jobs) - jobs[0].at
    offered = sum(job.output for job in jobs) / max(jobs[-1].at - jobs[0].at, 1e-9)
    written = sum(job.output for job in jobs) / span
    found: dict[str, Any] = {
        "replicas": replicas,
        "requests_per_s": len(jobs) / span,
        "tokens_per_s": written,
        "keeps_up": written >= _KEEPS_UP * offered,
        "busy": busy,
        "cached": sum(job.cached for job in counted) / max(sum(job.prompt for job in counted), 1),
        "price_per_million": replicas * price / 3600 / written * 1e6,
    }
    for name, values in {
        "queue_s": [job.begun - job.at for job in counted],
        "ttft_s": [job.first - job.at for job in counted],
        "tpot_s": [job.between for job in counted if job.output > 1] or [0.0],
    }.items():
        found[name] = {f"p{share}": float(np.percentile(values, share)) for share in _SHARES}
        found[name]["mean"] = float(np.mean(values))
    return found


def draw_jobs(given: argparse.Namespace) -> list[Job]:
    """Return the requests that a command line asks for.

    Raises:
        ConfigError: its arrivals or lengths cannot be read.
    """
    kind, _, value = given.arrivals.partition(":")
    if kind == "trace" and value:
        return read_trace(value)
    try:
        rate = float(value)
        if kind != "poisson" or not 0 < rate < math.inf:
            raise ValueError
    except ValueError:
        raise ConfigError(f"{given.arrivals!r} are no arrivals.", "Use poisson:RATE or trace:FILE.") from None
    if given.requests < 1 or given.groups < 0 or given.shared < 0:
        raise ConfigError("There is no request, or a number is negative.", "Give --requests 1 or more.")
    laws = length_law(given.prompt), length_law(given.output)
    return poisson(rate, given.requests, *laws, random.Random(given.seed), given.groups, given.shared)


def _work(given: argparse.Namespace) -> None:
    times = StepTimes([read_curve(path) for path in given.curve])
    base = FleetSettings(
        rows=given.rows,
        budget=given.budget,
        routing=given.route,
        slack=given.slack,
        cache=given.cache,
        acceptance=given.acceptance,
        draft_len=given.draft_len if given.draft != "off" else 0,
        draft_cost=given.draft_cost,
        step_s=given.step_ms / 1e3,
        row_s=given.row_ms / 1e3,
        is_adaptive=given.draft == "auto",
    )
    jobs, rows = draw_jobs(given), list[dict[str, Any]]()
    for replicas in given.replicas:
        settings = replace(base, replicas=replicas)
        ended, busy = simulate([replace(job) for job in jobs], times, settings, random.Random(given.seed + 1))
        rows.append(summarise(ended, busy, replicas, given.price))
    table = _table(rows)
    print(table.markdown())
    notes = ["Simulated: seconds of steps are measured, requests are drawn."]
    report = new_report("fleet", vars(given), describe(), rows, tables=[table], notes=notes)
    report.write(given.json)
    if given.plot:
        draw_fleet(rows, given.arrivals, given.plot)


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    heads = ["replicas", "tokens/s", "busy", "from cache", *(f"ttft p{share}" for share in _SHARES)]
    heads += [*(f"tpot p{share}" for share in _SHARES), "per million tokens", ""]
    cells = [
        [
            str(row["replicas"]),
            f"{row['tokens_per_s']:.0f}",
            f"{row['busy']:.0%}",
            f"{row['cached']:.0%}",
            *(f"{row['ttft_s'][f'p{share}'] * 1e3:.0f} ms" for share in _SHARES),
            *(f"{row['tpot_s'][f'p{share}'] * 1e3:.1f} ms" for share in _SHARES),
            f"{row['price_per_million']:.3f}",
            "" if row["keeps_up"] else "too few",
        ]
        for row in rows
    ]
    return Table("", heads, cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("fleet", __doc__)
    parser.add_argument("--curve", nargs="+", required=True, metavar="FILE", help="of `outpace tune`")
    parser.add_argument("--arrivals", default="poisson:10", help="poisson:RATE per second, or trace:FILE")
    parser.add_argument("--requests", type=int, default=2000, help="how many arrive")
    parser.add_argument("--prompt", default="lognormal:300:0.8", help="law of a prompt's tokens")
    parser.add_argument("--output", default="exponential:128", help="law of a text's tokens")
    parser.add_argument("--groups", type=int, default=0, help="beginnings that prompts share; 0 = none")
    parser.add_argument("--shared", type=int, default=256, help="tokens of such a beginning")
    parser.add_argument("--replicas", type=numbers, default=[1, 2, 4, 8], help="fleets to compare")
    parser.add_argument("--rows", type=int, default=32, help="samples side by side, per replica")
    parser.add_argument("--budget", type=int, default=512, help="tokens per step")
    parser.add_argument("--route", choices=ROUTES, default="prefix")
    parser.add_argument("--slack", type=float, default=8.0, help="requests by which prefix may unbalance replicas")
    parser.add_argument("--cache", type=int, default=64, help="beginnings that a replica keeps")
    parser.add_argument("--draft", choices=("off", "on", "auto"), default="auto", help="auto: while it pays")
    parser.add_argument("--draft-len", type=int, default=4, help="most tokens drafted per row and step")
    parser.add_argument("--acceptance", type=float, default=0.0, help="probability that a draft is kept")
    parser.add_argument("--draft-cost", type=float, default=0.0, help="of drafting a token, against a plain step")
    parser.add_argument("--step-ms", type=float, default=0.0, help="of a step beside its forward; see fleet_check")
    parser.add_argument("--row-ms", type=float, default=0.0, help="of each row in it")
    parser.add_argument("--price", type=float, default=1.0, help="of a replica, per hour")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw latency and price by replicas")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
