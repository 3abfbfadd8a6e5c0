"""`outpace batch`: answer every line of a file, in one process or by workers on Ray; a run that broke off goes on."""

from __future__ import annotations

import asyncio
import json as json_module
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outpace.api.request import Request
from outpace.cli.options import (
    LAW,
    OUT,
    RUN,
    AdapterName,
    CacheDtype,
    Cards,
    DeviceName,
    DtypeName,
    GenerationConfigName,
    MethodOptions,
    ModelName,
    NoCompile,
    Threads,
    declares,
    read_settings,
)
from outpace.cli.output import print_json
from outpace.cli.progress import Teller
from outpace.cli.values import Device, Dtype, model_card, options
from outpace.errors import ConfigError
from outpace.failures import FAILURE, INTERRUPTED, interruptible, tell
from outpace.sampling.settings import Sampling

if TYPE_CHECKING:
    from outpace.server.batch_file import Answers, Line
    from outpace.server.batch_run import Plan, Tally

__all__ = ["batch"]


@declares(
    (Sampling, LAW, {"bad_words": None}),
    (
        Request,
        RUN,
        {
            **dict.fromkeys(("sampling", "regex", "json_schema", "grammar"), LAW),
            **dict.fromkeys(("keep_special", "top_log_probs"), OUT),
        },
    ),
)
def batch(
    source: Annotated[str, typer.Argument(metavar="IN", help="Lines: .jsonl, or .parquet.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Answers, a JSON object a line; goes on with it.")],
    model: ModelName = "stories",
    method: Annotated[str, typer.Option(help="How to decode; `outpace methods` lists all.")] = "auto",
    option: MethodOptions = None,
    card: Cards = None,
    adapter: AdapterName = None,
    generation_config: GenerationConfigName = "model",
    dtype: DtypeName = Dtype.AUTO,
    device: DeviceName = Device.AUTO,
    no_compile: NoCompile = False,
    cache_dtype: CacheDtype = "auto",
    threads: Threads = None,
    rows: Annotated[int, typer.Option(min=1, help="Lines under way per worker.", rich_help_panel=RUN)] = 32,
    ray: Annotated[bool, typer.Option("--ray", help="Let workers on Ray answer.", rich_help_panel=RUN)] = False,
    workers: Annotated[int, typer.Option(min=1, help="With --ray: how many.", rich_help_panel=RUN)] = 1,
    ordered: Annotated[
        bool, typer.Option("--ordered", help="At the end, sort OUT by line.", rich_help_panel=OUT)
    ] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Ask lines of OUT that are errors again.", rich_help_panel=OUT)
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as an object.", rich_help_panel=OUT)] = False,
    **declared: Any,
) -> int:
    """Answer every line of a file.

    A line has a "prompt" or "messages", and any argument of generate by its name; the options of this command hold
    where it says nothing. Or it has the form of OpenAI's batches: custom_id, method, url, body. An error stays with its
    line. Run again with the same OUT, only what is not answered yet is asked; a killed run loses and doubles nothing.

    The exit status is 1 if a line has an error, 130 after Ctrl-C.
    """
    from outpace.cli.checks import check_method
    from outpace.server.batch_file import Answers, read_lines
    from outpace.server.batch_run import Plan, Tally

    run, law, _ = read_settings(declared)
    Request(**run)  # refuses what is out of range
    told, replaced = options(option or []), model_card(card or [])
    check_method(model, method, told, law, replaced)
    load = {
        "dtype": dtype.value,
        "device": device.value,
        "is_compiled": not no_compile,
        "cache_dtype": cache_dtype,
        "threads": threads,
        "card": replaced,
        "generation_config": generation_config,
        "adapter": adapter,
    }
    defaults = {"method": method, **({"options": told} if told else {}), **run, **law}
    read, held = Path(source), Path(out)
    if held.exists() and read.exists() and held.samefile(read):
        raise ConfigError("IN and OUT are one file.", "Give another OUT.")
    settings = json_module.dumps([model, adapter, replaced, dtype.value, defaults], sort_keys=True, default=str)
    tally = Tally()

    def count(line: Line) -> None:
        tally.total += 1

    if next(read_lines(read, settings), None) is None:
        raise ConfigError(f"{source} holds no line.", 'Write {"prompt": "..."}, one object a line.')
    answers = Answers(held, retry_errors)
    try:
        answers.check(read_lines(read, settings), count)
        tally.before, tally.errors = len(answers.done), answers.errors
        if tally.before < tally.total:
            plan = Plan(model, load, defaults, rows, workers)
            with interruptible() as is_wished:
                asyncio.run(_answer(plan, ray, read_lines(read, settings), answers, tally, is_wished))
        if ordered and not tally.is_cut:
            answers.sort()
    finally:
        answers.close()
    return _tell_end(tally, out, json)


async def _answer(
    plan: Plan, is_on_ray: bool, lines: Iterator[Line], answers: Answers, tally: Tally, is_wished: Callable[[], bool]
) -> None:
    """Answer what is open, and say how far it is."""
    from outpace.server.batch_run import answer_all, here
    from outpace.server.ray_batch import on_ray

    teller, began = Teller(), time.monotonic()

    def told(now: Tally) -> None:
        elapsed, done = time.monotonic() - began, now.before + now.written
        left = elapsed / now.written * (now.total - done)
        errors = f", {now.errors} with errors" if now.errors else ""
        speed = f", {now.tokens / elapsed:.0f} tokens/s" if elapsed > 0 else ""
        teller.tell(f"{done} of {now.total} lines{errors}{speed}", elapsed, left)

    try:
        async with on_ray(plan) if is_on_ray else here(plan) as answer:
            most = plan.rows * (plan.workers if is_on_ray else 1)
            await answer_all(lines, answer, answers, tally, most=most, is_wished=is_wished, tell=told)
    finally:
        teller.close()


def _tell_end(tally: Tally, out: str, is_json: bool) -> int:
    """Say what came of it; return the exit status."""
    done = tally.before + tally.written
    counts = {"lines": tally.total, "before": tally.before, "written": tally.written, "errors": tally.errors}
    if is_json:
        print_json({**counts, "open": tally.total - done, "tokens": tally.tokens, "out": out})
    else:
        before = f", {tally.before} of them before" if tally.before else ""
        typer.echo(f"{done} of {tally.total} lines answered{before}; {tally.errors} with an error; in {out}", err=True)
    if tally.is_cut:
        tell("Interrupted.", "Run it again: it goes on where it stopped.")
        return INTERRUPTED
    return FAILURE if tally.errors else 0
