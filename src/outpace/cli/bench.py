"""`outpace bench`: measure methods against plain decoding and against other libraries."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outpace.bench.options import BenchOptions, GrowthOptions, MicroOptions
from outpace.cli.options import ModelName
from outpace.cli.values import Device, Dtype
from outpace.errors import ConfigError

if TYPE_CHECKING:
    from outpace.bench.report import Report

__all__ = ["bench"]

_WHAT, _OUT, _MICRO, _OTHER = "What is measured", "Output", "Micro-benchmark", "Other benchmarks"


def bench(
    model: ModelName = "stories",
    methods: Annotated[
        str,
        typer.Option(
            metavar="A,B,...", help="Methods; settings as in draft-model:draft_len=4 ({budget} with --growth)."
        ),
    ] = "autoregressive,prompt-lookup,draft-model,jacobi",
    prompts: Annotated[
        str, typer.Option(metavar="SET|FILE,...", help="stories, code, copy; .jsonl, or text parted by empty lines.")
    ] = "stories,code,copy",
    peers: Annotated[
        str, typer.Option(metavar="hf,...", help="Other engines: hf (transformers), llama.cpp, openvino.")
    ] = "",
    draft: Annotated[str, typer.Option(help="The drafter; auto = the one of the model.")] = "auto",
    inflate: Annotated[
        str, typer.Option(metavar="SIZE", help="Widen and deepen the model first, as in 350M.", rich_help_panel=_WHAT)
    ] = "",
    temperatures: Annotated[str, typer.Option(metavar="T,...", rich_help_panel=_WHAT)] = "0,0.7",
    paths: Annotated[str, typer.Option(metavar="PATH,...", help="Forwards.", rich_help_panel=_WHAT)] = "compiled,eager",
    max_tokens: Annotated[int, typer.Option(help="Most tokens per text.", rich_help_panel=_WHAT)] = 128,
    num_prompts: Annotated[int, typer.Option(help="Of each set; 0 = all.", rich_help_panel=_WHAT)] = 0,
    repeats: Annotated[int, typer.Option(help="Repetitions of everything.", rich_help_panel=_WHAT)] = 3,
    seed: Annotated[int, typer.Option(help="Of sampling and bootstrap.", rich_help_panel=_WHAT)] = 0,
    dtype: Annotated[Dtype, typer.Option(help="Precision.", rich_help_panel=_WHAT)] = Dtype.AUTO,
    device: Annotated[Device, typer.Option(help="Where to compute.", rich_help_panel=_WHAT)] = Device.AUTO,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 = as they are.", rich_help_panel=_WHAT)] = 0,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Skip peak memory.", rich_help_panel=_WHAT)] = False,
    time_limit: Annotated[
        float, typer.Option(help="Start no new round after these seconds; 0 = none.", rich_help_panel=_WHAT)
    ] = 0.0,
    json: Annotated[Path | None, typer.Option(help="Write the raw figures here.", rich_help_panel=_OUT)] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture here.", rich_help_panel=_OUT)] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here.", rich_help_panel=_OUT)] = None,
    peer_models: Annotated[
        Path | None, typer.Option(help="Keep models converted for peers here.", rich_help_panel=_OUT)
    ] = None,
    catalogue: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Every exact method, for the catalogue page; written here.", rich_help_panel=_OTHER
        ),
    ] = None,
    canvas: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Samplers and caches of masked models, as curves; written here.",
            rich_help_panel=_OTHER,
        ),
    ] = None,
    canvas_models: Annotated[
        str, typer.Option(metavar="MODEL,...", help="Masked models of --canvas.", rich_help_panel=_OTHER)
    ] = "stories-mask,stories-block",
    causal_models: Annotated[
        str,
        typer.Option(metavar="MODEL,...", help="Causal ones beside them; the first judges.", rich_help_panel=_OTHER),
    ] = "stories",
    sets: Annotated[
        str, typer.Option(metavar="SET,...", help="Of --canvas: stories and tasks; none = all.", rich_help_panel=_OTHER)
    ] = "",
    growth: Annotated[
        bool,
        typer.Option("--growth", help="Speed against batch, context and drafted nodes.", rich_help_panel=_OTHER),
    ] = False,
    axes: Annotated[
        str, typer.Option(metavar="AXIS,...", help="Of --growth.", rich_help_panel=_OTHER)
    ] = "batch,context,budget",
    stacks: Annotated[
        str,
        typer.Option(
            metavar="TOKENS,...",
            help="An encoder-decoder against a decoder of equal size, random weights, sources so long.",
            rich_help_panel=_OTHER,
        ),
    ] = "",
    translation: Annotated[
        str,
        typer.Option(
            metavar="SET",
            help="Quality beside speed of the models A,B,... on pairs such as tatoeba-pairs:test; with --peers also "
            "int8, transformers, CTranslate2.",
            rich_help_panel=_OTHER,
        ),
    ] = "",
    data: Annotated[
        Path | None, typer.Option(help="Folder of texts of --translation (default: ./data).", rich_help_panel=_OTHER)
    ] = None,
    micro: Annotated[
        bool,
        typer.Option("--micro", help="Forwards, overhead and memory on random models.", rich_help_panel=_MICRO),
    ] = False,
    sizes: Annotated[str, typer.Option(metavar="SIZE,...", help="30m, 350m.", rich_help_panel=_MICRO)] = "30m,350m",
    parts: Annotated[
        str, typer.Option(metavar="PART,...", help="forward, plain, overhead, memory.", rich_help_panel=_MICRO)
    ] = "forward,plain,overhead,memory",
    precisions: Annotated[
        str, typer.Option(metavar="DTYPE,...", help="bfloat16, float32.", rich_help_panel=_MICRO)
    ] = "bfloat16,float32",
    quick: Annotated[bool, typer.Option("--quick", help="Only see that it runs.", rich_help_panel=_MICRO)] = False,
) -> None:
    """Measure speed in paired, interleaved repetitions, and print tables.

    Decoding is timed apart from prefill; ratios are medians over pairs with bootstrap intervals.
    """
    if canvas:
        _run_canvas(
            canvas,
            models=_items(canvas_models),
            causal=_items(causal_models),
            sets=_items(sets),
            num=num_prompts or 12,
            max_tokens=max_tokens,
            inflate=_size(inflate),
            repeats=repeats,
            threads=threads,
            time_limit_s=time_limit,
        )
        return
    if translation:
        wanted = _items(model), _items(methods)
        report = _run_translation(translation, *wanted, num_prompts, threads, bool(peers), data)
        report.write(json, plot, markdown)
        _show(report)
        return
    if stacks:
        _run_stacks(_items(stacks), max_tokens, repeats, threads)
        return
    if growth:
        curves = GrowthOptions(
            model=model,
            inflate=_size(inflate),
            draft=draft,
            is_compiled="compiled" in _items(paths),
            axes=_items(axes),
            max_tokens=min(max_tokens, 64),
            repeats=repeats,
            seed=seed,
            dtype=dtype.value,
            device=device.value,
            threads=threads,
            json=json,
            plot=plot,
            markdown=markdown,
        )
        growing = _growing(methods)
        _show(_run_growth(dataclasses.replace(curves, methods=growing) if growing else curves))
        return
    if micro:
        small = MicroOptions(
            parts=_items(parts),
            sizes=_items(sizes),
            dtypes=_items(precisions),
            repeats=repeats,
            threads=threads,
            quick=quick,
            time_limit_s=time_limit,
            json=json,
            markdown=markdown,
        )
        _show(_run_micro(small))
        return
    options = BenchOptions(
        model=model,
        methods=_items(methods),
        prompts=_items(prompts),
        peers=_items(peers),
        paths=_items(paths),
        temperatures=tuple(_number(item) for item in _items(temperatures)),
        max_tokens=max_tokens,
        num_prompts=num_prompts,
        repeats=repeats,
        seed=seed,
        dtype=dtype.value,
        device=device.value,
        threads=threads,
        draft=draft,
        inflate=_size(inflate),
        with_memory=not no_memory,
        time_limit_s=time_limit,
        peer_models=peer_models,
        json=catalogue or json,
        plot=plot,
        markdown=markdown,
    )
    _show(_run_catalogue(options) if catalogue else _run(options))


def _run(options: BenchOptions) -> Report:
    from outpace.methods import catalogue

    for method in options.methods:
        catalogue.find(method.partition(":")[0])
    from outpace.bench.speed import run

    return run(options, _tell)


def _run_catalogue(options: BenchOptions) -> Report:
    from outpace.bench import run_catalogue

    report: Report = run_catalogue(options, _tell)
    return report


def _run_growth(options: GrowthOptions) -> Report:
    from outpace.bench import run_growth

    report: Report = run_growth(options, _tell)
    return report


def _run_canvas(folder: Path, **asked: Any) -> None:
    from outpace.bench.canvas_run import CanvasOptions, run_canvas

    run_canvas(CanvasOptions(out=folder, **asked), _tell)
    print(next(folder.glob("canvas-speed.md" if asked["inflate"] else "canvas.md")).read_text(encoding="utf-8"))


def _run_stacks(sources: tuple[str, ...], target: int, repeats: int, threads: int) -> None:
    if not sources or not all(item.isdecimal() for item in sources):
        raise ConfigError("The sources' lengths are no whole numbers.", "Write them as in --stacks 128,512,1024.")
    import torch

    from outpace.bench.stacks import compare

    if threads:
        torch.set_num_threads(threads)
    for line in compare([int(item) for item in sources], target, repeats=repeats):
        print(line, flush=True)


def _run_translation(
    pairs: str,
    models: tuple[str, ...],
    methods: tuple[str, ...],
    num: int,
    threads: int,
    has_peers: bool,
    data: Path | None,
) -> Report:
    from outpace.bench.translation_curve import CurveOptions, run_curve

    asked = CurveOptions(models=models, set=pairs, methods=methods, threads=threads, has_peers=has_peers, data=data)
    return run_curve(dataclasses.replace(asked, sentences=num) if num else asked, _tell)


def _run_micro(options: MicroOptions) -> Report:
    from outpace.bench import run_micro

    report: Report = run_micro(options, _tell)
    return report


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(report: Report) -> None:
    from rich.console import Console

    # Where no terminal tells its width, a table is as wide as it needs to be.
    Console(width=None if sys.stdout.isatty() else 240).print(report.renderable())


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _growing(text: str) -> tuple[str, ...]:
    """Return the methods whose settings vary with the budget."""
    return tuple(item for item in _items(text) if "{budget}" in item)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a temperature.", "Give numbers, as in --temperatures 0,0.7.") from None


def _size(text: str) -> int:
    """Read a number of parameters: 350M, 1B or digits; nothing = 0."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", text.strip().lower() or "0")
    if found is None:
        raise ConfigError(f"{text!r} is not a number of parameters.", "Write it as in --inflate 350M.")
    return int(float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[found[2]])
