"""`outpace generate`: write text, streaming it to the terminal as it becomes final."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outpace.api.infill import read_gaps, read_sets
from outpace.api.request import Request
from outpace.cli.jobs import Job, read_jobs, refuse_lines, run_jobs
from outpace.cli.options import (
    CHAT,
    LAW,
    OUT,
    RUN,
    AdapterName,
    CacheDtype,
    Cards,
    ChatVariables,
    CutSource,
    DeviceName,
    DtypeName,
    GenerationConfigName,
    MethodOptions,
    ModelName,
    NoCompile,
    SearchName,
    SourceLanguage,
    TargetLanguage,
    TemplateName,
    Threads,
    bad_word_ids,
    declares,
    read_settings,
)
from outpace.cli.output import print_json, statistics, write_text
from outpace.cli.values import (
    Device,
    Dtype,
    json_list,
    json_values,
    model_card,
    options,
    prompt_text,
)
from outpace.errors import ConfigError
from outpace.failures import FAILURE, INTERRUPTED, interruptible, tell
from outpace.sampling.settings import Sampling

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel
    from outpace.api.result import Result
    from outpace.methods.base import Method
    from outpace.models.parallel import Split
    from outpace.search.base import Search
    from outpace.trace import Recorder

__all__ = ["generate"]


@dataclass(slots=True, kw_only=True)
class _Asked:
    """What was asked, read but not yet checked against a model."""

    prompt: str
    model: str
    method: str | None
    options: dict[str, str]
    is_chat: bool
    is_json: bool
    wants_log_probs: bool
    bad_words: list[str]
    search: str | None = None
    found_by: Search | None = None  # the search, once its options are read
    is_infill: bool = False
    has_sets: bool = False
    fuse: tuple[str | None, float] = (None, 0.0)
    system: str | None = None
    chat: dict[str, Any] = field(default_factory=dict)
    batch: str | None = None
    jobs: list[Job] = field(default_factory=list)
    out: str | None = None
    batch_size: int = 8
    processes: int = 1
    trace: str | None = None
    run: dict[str, Any] = field(default_factory=dict)
    law: dict[str, Any] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)


@declares(
    (Sampling, LAW, {}),
    (
        Request,
        RUN,
        {
            **dict.fromkeys(("sampling", "regex", "json_schema", "grammar", "law"), LAW),
            **dict.fromkeys(("keep_special", "top_log_probs"), OUT),
        },
    ),
)
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; - reads it from standard input.")] = None,
    prompt_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Read the prompt from a file; - = standard input.")
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write a text for each line: .jsonl with a prompt each, or plain prompts."),
    ] = None,
    model: ModelName = "stories",
    method: Annotated[
        str | None,
        typer.Option(
            help="How to decode; `outpace methods` lists all (default: as the model's files ask, else what fits it)."
        ),
    ] = None,
    search: SearchName = None,
    option: MethodOptions = None,
    card: Cards = None,
    adapter: AdapterName = None,
    source_language: SourceLanguage = None,
    target_language: TargetLanguage = None,
    cut_source: CutSource = False,
    infill: Annotated[
        bool,
        typer.Option("--infill", help="Fill gaps: [[12]] in the prompt stands for 12 tokens.", rich_help_panel=RUN),
    ] = False,
    sets: Annotated[
        bool,
        typer.Option("--sets", help="[[a|b|c]] in the prompt stands for parts in no order.", rich_help_panel=RUN),
    ] = False,
    fuse: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Add a causal language model's scores in every step.", rich_help_panel=RUN),
    ] = None,
    fuse_weight: Annotated[float, typer.Option(help="Of the scores of --fuse.", rich_help_panel=RUN)] = 0.2,
    generation_config: GenerationConfigName = "model",
    dtype: DtypeName = Dtype.AUTO,
    device: DeviceName = Device.AUTO,
    no_compile: NoCompile = False,
    cache_dtype: CacheDtype = "auto",
    batch_size: Annotated[int, typer.Option(help="Prompts of --batch side by side.", rich_help_panel=RUN)] = 8,
    threads: Threads = None,
    tensor_parallel: Annotated[
        int, typer.Option(min=1, help="Processes that hold the model together, each a share.", rich_help_panel=RUN)
    ] = 1,
    chat: Annotated[
        bool, typer.Option("--chat", help="Frame the prompt with the model's chat template.", rich_help_panel=CHAT)
    ] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Tell the model this first; means --chat.", rich_help_panel=CHAT)
    ] = None,
    tools: Annotated[
        str | None,
        typer.Option(metavar="FILE|JSON", help="Functions that it may call; means --chat.", rich_help_panel=CHAT),
    ] = None,
    documents: Annotated[
        str | None,
        typer.Option(metavar="FILE|JSON", help="Texts that it may quote; means --chat.", rich_help_panel=CHAT),
    ] = None,
    template: TemplateName = None,
    chat_variable: ChatVariables = None,
    trace: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write every step here; `outpace trace` shows it.", rich_help_panel=OUT),
    ] = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print one object (a list with --num-samples above 1).", rich_help_panel=OUT),
    ] = False,
    logprobs: Annotated[
        bool, typer.Option("--logprobs", help="With --json: each token's log-probability.", rich_help_panel=OUT)
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Of --batch: a JSON object a line; goes on with it.", rich_help_panel=OUT),
    ] = None,
    **declared: Any,
) -> int:
    """Write text from a prompt.

    Text goes to standard output as it becomes final. Several samples are printed at the end, parted by lines of ---.
    Ctrl-C ends the text where it is (exit status 130); a second Ctrl-C ends at once.

    With --batch, one JSON object a line is written, as soon as a text is done; run again with the same --out, the lines
    that are there are not written again.
    """
    if batch is not None and (prompt is not None or prompt_file is not None):
        raise ConfigError("A prompt and a --batch were given.", "Leave one out.")
    run, law, bad_words = read_settings(declared)
    request = _Asked(
        prompt=prompt_text(prompt, prompt_file, bool(run.get("law"))) if batch is None else "",
        batch=batch,
        jobs=[] if batch is None else read_jobs(batch),
        out=out,
        batch_size=batch_size,
        processes=tensor_parallel,
        model=model,
        method=method,
        search=search,
        options=options(option or []),
        is_chat=chat or any(it is not None for it in (system, tools, documents, template, chat_variable)),
        system=system,
        chat={
            "tools": None if tools is None else json_list(tools, "tools"),
            "documents": None if documents is None else json_list(documents, "documents"),
            "template": template,
            "variables": json_values(chat_variable or []),
        },
        is_infill=infill,
        has_sets=sets,
        fuse=(fuse, fuse_weight),
        is_json=json,
        wants_log_probs=logprobs,
        trace=trace,
        bad_words=bad_words,
        load={
            "dtype": dtype.value,
            "device": device.value,
            "is_compiled": not no_compile,
            "cache_dtype": cache_dtype,
            "threads": threads,
            "card": model_card(card or []),
            "generation_config": generation_config,
            "adapter": adapter,
            "source_language": source_language,
            "target_language": target_language,
            "cut_source": cut_source,
        },
        run=run,
        law=law,
    )
    return _write(request)


def _write(request: _Asked) -> int:
    """Check what can be checked before weights load, load, generate, print; return the exit status."""
    method = _check(request)
    if request.processes > 1:
        return _write_together(request, method)
    return _write_with(request, method, None)


def _write_together(request: _Asked, method: Method) -> int:
    """Write with a model that several processes hold: those that torchrun started, or others on this machine."""
    from outpace.models.parallel import join, together

    started = os.environ.get("WORLD_SIZE", "1")
    if started not in ("1", str(request.processes)):
        raise ConfigError(
            f"torchrun started {started} processes, and --tensor-parallel says {request.processes}.", "Give it as many."
        )
    if started != "1":
        with contextlib.ExitStack() as stack:
            split = join()
            if split.rank:
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            return _share(split, request, method)
    with together(request.processes, _share, request, method) as split:
        return _share(split, request, method)


def _share(split: Split, request: _Asked, method: Method) -> int:
    return _write_with(request, method, split)


def _write_with(request: _Asked, method: Method, split: Split | None) -> int:
    """Load, generate, print; return the exit status."""
    from outpace.api.engine import load
    from outpace.api.starting import method_for

    lm = load(request.model, split=split, **request.load)
    if request.fuse[0] is not None:
        from outpace.api.fusing import fuse

        shared = {key: request.load[key] for key in ("dtype", "device", "is_compiled")}
        lm = fuse(lm, load(request.fuse[0], **shared), request.fuse[1])
    law = {**request.law, "bad_words": bad_word_ids(request.bad_words, lm) or None}
    is_json = request.is_json or request.batch is not None
    record = ["margins", "log_probs"] if request.wants_log_probs else ["margins"] if is_json else []
    named = {"method": method} if request.method is not None else {"options": request.options or None}
    arguments = {"record": record, **named, **request.run, **law}
    if request.method is None and request.found_by is None:
        method = method_for(lm, arguments)  # files, card and kind of the model say which
    num_texts = max(request.run["num_samples"], method.num_texts)
    if request.found_by is not None:
        arguments["search"], num_texts = request.found_by, request.found_by.num_texts
    if request.batch is not None:
        return _write_batch(request, lm, arguments, num_texts)
    prompt = _prompt(request)
    is_streamed = not request.is_json and num_texts == 1
    if is_streamed and request.is_infill and isinstance(prompt[0], str):
        write_text(prompt[0])  # the pieces are given; the stream goes on from the first
    with interruptible() as is_wished, _recorded(request, lm, method) as recorder:
        write = lm.infill if request.is_infill else lm.generate_sets if request.has_sets else lm.generate
        if request.is_chat:
            write = functools.partial(lm.chat, **request.chat)
        found = write(
            prompt,
            on_text=(lambda _, text: write_text(text)) if is_streamed else None,
            is_cancelled=is_wished if split is None else lambda: split.agree(is_wished()),
            watch=recorder,
            **arguments,
        )
        results = found if isinstance(found, list) else [found]
        if recorder is not None:
            recorder.close(results)
    _print(request, results, is_streamed)
    return _status(results)


def _write_batch(request: _Asked, lm: LanguageModel, arguments: dict[str, Any], num_texts: int) -> int:
    """Write a text for each line of a file; return the exit status."""
    assert request.batch is not None
    jobs, most = [(job, _ids(job, request, lm)) for job in request.jobs], lm.target.capabilities.max_positions
    long = [job.line for job, ids in jobs if len(ids) >= most and not lm.target.capabilities.is_encoder_decoder]
    if long:
        refuse_lines(request.batch, long, f"longer than the model's context of {most} tokens", "Shorten what is there.")
    with interruptible() as is_wished:

        def write(prompts: list[list[int]]) -> list[Result]:
            results: list[Result] = lm.generate(prompts, is_cancelled=is_wished, **arguments)
            return results

        return _status(run_jobs(jobs, write, request.out, request.batch_size, num_texts))


def _ids(job: Job, request: _Asked, lm: LanguageModel) -> list[int]:
    """Return the tokens of a line of a batch."""
    try:
        if isinstance(job.prompt, str) and not request.is_chat:
            ids = lm.encode(job.prompt)
        elif lm.tokenizer is None:
            raise ConfigError("The model has no tokenizer, hence no chat template.", "Give plain prompts.")
        else:
            messages = _conversation(request, job.prompt) if isinstance(job.prompt, str) else job.prompt
            ids = lm.tokenizer.encode_chat(messages, **request.chat)
    except ConfigError as error:
        raise ConfigError(f"Line {job.line} of {request.batch}: {error}", error.hint) from error
    if not ids:
        raise ConfigError(f"Line {job.line} of {request.batch} has no token.", "Give at least one character.")
    return ids


@contextlib.contextmanager
def _recorded(request: _Asked, lm: LanguageModel, method: Method) -> Iterator[Recorder | None]:
    """Open the trace that was asked for; one that breaks off keeps the steps it has."""
    if request.trace is None:
        yield None
        return
    from outpace.trace import Recorder

    recorder = Recorder(request.trace, lm.tokenizer.decode if lm.tokenizer is not None else None)
    recorder.begin(
        request.model, method.name, method.to_dict(), [request.prompt] * method.num_texts * request.run["num_samples"]
    )
    yield recorder


def _check(request: _Asked) -> Method:
    """Return the method; refuse what cannot work, the cheapest to find out first.

    Raises:
        OutpaceError: an unknown method, option or model, a setting out of range, or a method that does not fit.
    """
    from outpace.cli.checks import check_method

    Request(**request.run)  # refuses what is out of range
    if request.is_infill and request.batch is None:
        read_gaps(request.prompt)
        if request.is_chat:
            raise ConfigError("A chat has no gaps to fill.", "Leave out --chat or --infill.")
    if request.has_sets:
        if request.is_chat or request.is_infill or request.batch is not None:
            raise ConfigError("--sets goes with none of --chat, --infill and --batch.", "Leave one out.")
        read_sets(request.prompt)
    is_json, is_batch = request.is_json or request.batch is not None, request.batch is not None
    if request.wants_log_probs and not is_json:
        raise ConfigError("--logprobs has nowhere to go.", "Add --json.")
    if request.run["top_log_probs"] and not is_json:
        raise ConfigError("--top-log-probs has nowhere to go.", "Add --json.")
    if request.batch_size < 1:
        raise ConfigError(f"batch_size is {request.batch_size}.", "batch_size must be 1 or more.")
    if request.out is not None and not is_batch:
        raise ConfigError("--out is for --batch.", "Redirect standard output instead.")
    if is_batch and (request.is_infill or request.trace is not None):
        raise ConfigError("--batch goes with neither --infill nor --trace.", "Leave one out.")
    if request.search is not None and (request.trace is not None or request.processes > 1):
        raise ConfigError("--search goes with neither --trace nor --tensor-parallel.", "Leave one out.")
    if request.processes > 1:
        if is_batch or request.trace is not None:
            raise ConfigError("--tensor-parallel goes with neither --batch nor --trace.", "Leave one out.")
        if request.method == "auto":
            raise ConfigError(
                "auto weighs by the clock, which differs between processes.", "Name a method, or leave --method out."
            )
    if any(not word for word in request.bad_words):
        raise ConfigError("A bad word is empty.", "Give each bad word at least one character.")
    if request.search is not None:
        from outpace.search.base import read_search

        request.found_by, rest = read_search(request.search, request.method or "autoregressive", request.options)
        request.options = dict(rest or {})
    given = (request.options, request.law, request.load["card"], request.run["num_samples"])
    method, vocab_size = check_method(request.model, request.method or "", *given)
    if vocab_size is not None and any(not 0 <= token < vocab_size for token in request.law.get("logit_bias", ())):
        raise ConfigError("A logit bias is for a token outside the vocabulary.", f"Ids go from 0 to {vocab_size - 1}.")
    return method


def _prompt(request: _Asked) -> str | list[Any]:
    if request.is_infill:
        return read_gaps(request.prompt)
    if request.has_sets:
        return read_sets(request.prompt)
    if not request.is_chat:
        return request.prompt
    return _conversation(request, request.prompt)


def _conversation(request: _Asked, prompt: str) -> list[dict[str, str]]:
    told = [] if request.system is None else [{"role": "system", "content": request.system}]
    return [*told, {"role": "user", "content": prompt}]


def _print(request: _Asked, results: list[Result], is_streamed: bool) -> None:
    if request.is_json:
        records = [result.to_dict() for result in results]
        print_json(records if len(records) > 1 else records[0])
        return
    write_text("\n" if is_streamed else "\n---\n".join(result.text for result in results) + "\n")
    statistics(results)


def _status(results: list[Result]) -> int:
    reasons = {result.finish_reason for result in results}
    if "error" in reasons:
        tell(*_failure(max((r for r in results if r.finish_reason == "error"), key=lambda result: len(result.tokens))))
        return FAILURE
    return INTERRUPTED if "cancelled" in reasons else 0


def _failure(result: Result) -> tuple[str, str]:
    """Return why a text ended with an error, and what to do about it."""
    from outpace.run.row import DEAD_END, DISOBEYED, FORBIDDEN, RULED_OUT

    if result.search and not result.tokens:
        return result.notes[-1], ""

    reason = next((note for note in (DEAD_END, FORBIDDEN, DISOBEYED, RULED_OUT) if note in result.notes), None)
    if reason is not None:
        return reason, "The text until then is kept; loosen the constraint, or the other settings."
    return (
        f"The model produced NaN or infinite logits after {len(result.tokens)} tokens.",
        "The text until then is kept; try --dtype float32, or fetch the weights again.",
    )
