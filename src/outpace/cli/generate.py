"""`outpace generate`: write text, streaming it to the terminal as it becomes final."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outpace.api.infill import read_gaps
from outpace.cli.batch import Job, read_jobs, refuse_lines, run_jobs
from outpace.cli.output import print_json, statistics, write_text
from outpace.cli.values import (
    Device,
    Dtype,
    biases,
    json_list,
    json_schema,
    json_values,
    model_card,
    options,
    prompt_text,
    text_file,
)
from outpace.errors import ConfigError
from outpace.failures import FAILURE, INTERRUPTED, interruptible, tell

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel
    from outpace.api.result import Result
    from outpace.methods.base import Method
    from outpace.trace import Recorder

__all__ = ["generate"]

_LAW, _RUN, _CHAT, _OUT = "Law of the next token", "Run", "Conversation", "Output"


@dataclass(slots=True, kw_only=True)
class _Request:
    """What was asked, read but not yet checked against a model."""

    prompt: str
    model: str
    method: str
    options: dict[str, str]
    is_chat: bool
    is_json: bool
    wants_log_probs: bool
    bad_words: list[str]
    is_infill: bool = False
    system: str | None = None
    chat: dict[str, Any] = field(default_factory=dict)
    batch: str | None = None
    jobs: list[Job] = field(default_factory=list)
    out: str | None = None
    batch_size: int = 8
    trace: str | None = None
    run: dict[str, Any] = field(default_factory=dict)
    law: dict[str, Any] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; - reads it from standard input.")] = None,
    prompt_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Read the prompt from a file; - = standard input.")
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write a text for each line: .jsonl with a prompt each, or plain prompts."),
    ] = None,
    model: Annotated[str, typer.Option(help="A shipped model, a directory or a hub id.")] = "stories",
    method: Annotated[str, typer.Option(help="How to decode; `outpace methods` lists all.")] = "autoregressive",
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="A setting of the method.")
    ] = None,
    card: Annotated[
        list[str] | None,
        typer.Option("--card", metavar="KEY=VALUE", help="What the model's capability card should say instead."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens to write; 128 unless the model's files say.", rich_help_panel=_RUN)
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes every random draw.", rich_help_panel=_RUN)] = 0,
    num_samples: Annotated[int, typer.Option(help="Texts to write from the prompt.", rich_help_panel=_RUN)] = 1,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text (repeatable).", rich_help_panel=_RUN)
    ] = None,
    stop_token: Annotated[
        list[int] | None, typer.Option(metavar="ID", help="End at this token (repeatable).", rich_help_panel=_RUN)
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Write on past end tokens.", rich_help_panel=_RUN)
    ] = False,
    infill: Annotated[
        bool,
        typer.Option("--infill", help="Fill gaps: [[12]] in the prompt stands for 12 tokens.", rich_help_panel=_RUN),
    ] = False,
    prefix: Annotated[
        str | None, typer.Option(help="What an encoder-decoder's text begins with.", rich_help_panel=_RUN)
    ] = None,
    generation_config: Annotated[
        str,
        typer.Option(metavar="model|none", help="Obey the model's generation_config.json.", rich_help_panel=_RUN),
    ] = "model",
    dtype: Annotated[Dtype, typer.Option(help="Precision; auto = as stored.", rich_help_panel=_RUN)] = Dtype.AUTO,
    device: Annotated[Device, typer.Option(help="Where to compute.", rich_help_panel=_RUN)] = Device.AUTO,
    batch_invariant: Annotated[
        bool,
        typer.Option("--batch-invariant", help="Same text, bit for bit, whatever is drafted.", rich_help_panel=_RUN),
    ] = False,
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Use no compiled kernels.", rich_help_panel=_RUN)
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Prompts of --batch side by side.", rich_help_panel=_RUN)] = 8,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; without it, as many as are free.", rich_help_panel=_RUN)
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Frame the prompt with the model's chat template.", rich_help_panel=_CHAT)
    ] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Tell the model this first; means --chat.", rich_help_panel=_CHAT)
    ] = None,
    tools: Annotated[
        str | None,
        typer.Option(metavar="FILE|JSON", help="Functions that it may call; means --chat.", rich_help_panel=_CHAT),
    ] = None,
    documents: Annotated[
        str | None,
        typer.Option(metavar="FILE|JSON", help="Texts that it may quote; means --chat.", rich_help_panel=_CHAT),
    ] = None,
    template: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of several chat templates.", rich_help_panel=_CHAT)
    ] = None,
    chat_variable: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A variable of the chat template.", rich_help_panel=_CHAT),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 = always the likeliest token.", rich_help_panel=_LAW)
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Keep the K likeliest tokens; 0 = all.", rich_help_panel=_LAW)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Keep the likeliest tokens up to mass P.", rich_help_panel=_LAW)
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Keep tokens M times as likely as the likeliest.", rich_help_panel=_LAW)
    ] = None,
    typical_p: Annotated[
        float | None, typer.Option(help="Keep the most typical tokens up to mass P.", rich_help_panel=_LAW)
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Divides logits of tokens seen; 1 = none.", rich_help_panel=_LAW)
    ] = None,
    presence_penalty: Annotated[
        float | None, typer.Option(help="Subtracted once from tokens written.", rich_help_panel=_LAW)
    ] = None,
    frequency_penalty: Annotated[
        float | None, typer.Option(help="Subtracted per time a token was written.", rich_help_panel=_LAW)
    ] = None,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=VALUE", help="Added to a token's logit (repeatable).", rich_help_panel=_LAW),
    ] = None,
    bad_word: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="May not be written (repeatable).", rich_help_panel=_LAW)
    ] = None,
    min_tokens: Annotated[
        int | None, typer.Option(help="No end token before this many tokens.", rich_help_panel=_LAW)
    ] = None,
    sampling: Annotated[
        str, typer.Option(metavar="plain|model", help="model: draw as its own files ask.", rich_help_panel=_LAW)
    ] = "plain",
    regex: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="The whole text matches it.", rich_help_panel=_LAW)
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option("--json-schema", metavar="FILE|JSON", help="The text fulfils it.", rich_help_panel=_LAW),
    ] = None,
    grammar: Annotated[
        str | None, typer.Option(metavar="FILE", help="The text obeys this Lark grammar.", rich_help_panel=_LAW)
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write every step here; `outpace trace` shows it.", rich_help_panel=_OUT),
    ] = None,
    keep_special: Annotated[
        bool, typer.Option("--keep-special", help="Show special tokens in the text.", rich_help_panel=_OUT)
    ] = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print one object (a list with --num-samples above 1).", rich_help_panel=_OUT),
    ] = False,
    logprobs: Annotated[
        bool, typer.Option("--logprobs", help="With --json: each token's log-probability.", rich_help_panel=_OUT)
    ] = False,
    top_log_probs: Annotated[
        int,
        typer.Option(
            metavar="K", help="With --json: the K likeliest tokens at each place, before the law.", rich_help_panel=_OUT
        ),
    ] = 0,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Of --batch: a JSON object a line; goes on with it.", rich_help_panel=_OUT),
    ] = None,
) -> int:
    """Write text from a prompt.

    Text goes to standard output as it becomes final. Several samples are printed at the end, parted by lines of ---.
    Ctrl-C ends the text where it is (exit status 130); a second Ctrl-C ends at once.

    With --batch, one JSON object a line is written, as soon as a text is done; run again with the same --out, the lines
    that are there are not written again.
    """
    if batch is not None and (prompt is not None or prompt_file is not None):
        raise ConfigError("A prompt and a --batch were given.", "Leave one out.")
    request = _Request(
        prompt=prompt_text(prompt, prompt_file) if batch is None else "",
        batch=batch,
        jobs=[] if batch is None else read_jobs(batch),
        out=out,
        batch_size=batch_size,
        model=model,
        method=method,
        options=options(option or []),
        is_chat=chat or any(given is not None for given in (system, tools, documents, template, chat_variable)),
        system=system,
        chat={
            "tools": None if tools is None else json_list(tools, "tools"),
            "documents": None if documents is None else json_list(documents, "documents"),
            "template": template,
            "variables": json_values(chat_variable or []),
        },
        is_infill=infill,
        is_json=json,
        wants_log_probs=logprobs,
        trace=trace,
        bad_words=bad_word or [],
        load={
            "dtype": dtype.value,
            "device": device.value,
            "is_compiled": not no_compile,
            "threads": threads,
            "card": model_card(card or []),
            "generation_config": generation_config,
        },
        run={
            "seed": seed,
            "num_samples": num_samples,
            **_given(max_tokens=max_tokens, stop=stop or None, prefix=prefix),
            "stop_tokens": stop_token or [],
            "keep_special": keep_special,
            "sampling": sampling,
            "top_log_probs": top_log_probs,
            "ignore_eos": ignore_eos,
            "is_batch_invariant": batch_invariant,
            "regex": regex,
            "json_schema": None if schema is None else json_schema(schema),
            "grammar": None if grammar is None else text_file(grammar),
        },
        law={
            **_given(
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                typical_p=typical_p,
                repetition_penalty=repetition_penalty,
                presence_penalty=presence_penalty,
                frequency_penalty=frequency_penalty,
                min_tokens=min_tokens,
            ),
            "logit_bias": biases(logit_bias or []),
        },
    )
    return _write(request)


def _given(**values: Any) -> dict[str, Any]:
    """Return what was given; for the rest the model's own files may say something."""
    return {name: value for name, value in values.items() if value is not None}


def _write(request: _Request) -> int:
    """Check what can be checked before weights load, load, generate, print; return the exit status."""
    method = _check(request)
    from outpace.api.engine import load

    lm = load(request.model, **request.load)
    law = {**request.law, **_given(bad_words=_bad_words(request, lm) or None)}
    is_json = request.is_json or request.batch is not None
    record = ["margins", "log_probs"] if request.wants_log_probs else ["margins"] if is_json else []
    if request.batch is not None:
        return _write_batch(request, lm, {"method": method, "record": record, **request.run, **law})
    prompt = _prompt(request)
    is_streamed = not request.is_json and request.run["num_samples"] == 1
    if is_streamed and request.is_infill and isinstance(prompt[0], str):
        write_text(prompt[0])  # the pieces are given; the stream goes on from the first
    with interruptible() as is_wished, _recorded(request, lm, method) as recorder:
        write = lm.infill if request.is_infill else lm.generate
        if request.is_chat:
            write = functools.partial(lm.chat, **request.chat)
        found = write(
            prompt,
            method=method,
            record=record,
            on_text=(lambda _, text: write_text(text)) if is_streamed else None,
            is_cancelled=is_wished,
            watch=recorder,
            **request.run,
            **law,
        )
        results = found if isinstance(found, list) else [found]
        if recorder is not None:
            recorder.close(results)
    _print(request, results, is_streamed)
    return _status(results)


def _write_batch(request: _Request, lm: LanguageModel, arguments: dict[str, Any]) -> int:
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

        return _status(run_jobs(jobs, write, request.out, request.batch_size, request.run["num_samples"]))


def _ids(job: Job, request: _Request, lm: LanguageModel) -> list[int]:
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
def _recorded(request: _Request, lm: LanguageModel, method: Method) -> Iterator[Recorder | None]:
    """Open the trace that was asked for; one that breaks off keeps the steps it has."""
    if request.trace is None:
        yield None
        return
    from outpace.trace import Recorder

    recorder = Recorder(request.trace, lm.tokenizer.decode if lm.tokenizer is not None else None)
    recorder.begin(request.model, method.name, method.to_dict(), [request.prompt] * request.run["num_samples"])
    yield recorder


def _check(request: _Request) -> Method:
    """Return the method; refuse what cannot work, the cheapest to find out first.

    Raises:
        OutpaceError: an unknown method, option or model, a setting out of range, or a method that does not fit.
    """
    from outpace.api.request import Request
    from outpace.cli.checks import check_method

    Request(**request.run)  # refuses what is out of range
    if request.is_infill and request.batch is None:
        read_gaps(request.prompt)
        if request.is_chat:
            raise ConfigError("A chat has no gaps to fill.", "Leave out --chat or --infill.")
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
    if any(not word for word in request.bad_words):
        raise ConfigError("A bad word is empty.", "Give each bad word at least one character.")
    method, vocab_size = check_method(request.model, request.method, request.options, request.law, request.load["card"])
    if vocab_size is not None and any(not 0 <= token < vocab_size for token in request.law["logit_bias"]):
        raise ConfigError("A logit bias is for a token outside the vocabulary.", f"Ids go from 0 to {vocab_size - 1}.")
    return method


def _prompt(request: _Request) -> str | list[Any]:
    if request.is_infill:
        return read_gaps(request.prompt)
    if not request.is_chat:
        return request.prompt
    return _conversation(request, request.prompt)


def _conversation(request: _Request, prompt: str) -> list[dict[str, str]]:
    told = [] if request.system is None else [{"role": "system", "content": request.system}]
    return [*told, {"role": "user", "content": prompt}]


def _bad_words(request: _Request, lm: LanguageModel) -> list[list[int]]:
    """Return each word's tokens, at the start of a text and after a space."""
    if lm.tokenizer is None:
        return []
    spellings = [text for word in request.bad_words for text in (word, f" {word}")]
    return [lm.tokenizer.encode(text, is_special=False) for text in spellings]


def _print(request: _Request, results: list[Result], is_streamed: bool) -> None:
    if request.is_json:
        records = [result.to_dict() for result in results]
        print_json(records if request.run["num_samples"] > 1 else records[0])
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
    from outpace.run.row import DEAD_END, DISOBEYED, FORBIDDEN

    reason = next((note for note in (DEAD_END, FORBIDDEN, DISOBEYED) if note in result.notes), None)
    if reason is not None:
        return reason, "The text until then is kept; loosen the constraint, or the other settings."
    return (
        f"The model produced NaN or infinite logits after {len(result.tokens)} tokens.",
        "The text until then is kept; try --dtype float32, or fetch the weights again.",
    )
