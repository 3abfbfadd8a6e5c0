"""From a call to a run: everything is checked against the model, then the rows are set up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from outpace.api.healing import check_healing, heal
from outpace.api.lawmaking import check_laws, governed, impose, read_laws
from outpace.api.prompt import check_tokens, read_prompts
from outpace.api.recall import Recall
from outpace.api.request import Request, split
from outpace.api.running import Job, Plan, new_text
from outpace.api.scoring import check_top
from outpace.api.searching import Searching, check_searched, pool_for
from outpace.arguments import flag, given, refused
from outpace.cache import Cache, Pages
from outpace.errors import CapabilityError, ConfigError
from outpace.heads.model import HeadModel
from outpace.methods.base import Method
from outpace.methods.misfit import check_fit, check_search, usual_method
from outpace.methods.mixed import Mixed
from outpace.methods.registry import load_method
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.sampling import Sampling, row_key
from outpace.search.base import read_search
from outpace.text.chat import is_chat
from outpace.types import Adapter, Capabilities, Wanted

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = ["CHUNK", "method_for", "new_run", "own", "prepare", "shared_run", "start"]

CHUNK = 256  # prompt tokens per prefill forward
_WIDEST = 256  # window nodes of any method, beside others
_INVARIANT_WIDTH = 16  # window nodes of every forward in batch-invariant mode on the eager path


def start(lm: LanguageModel, prompt: Any, arguments: Mapping[str, Any], recall: Recall | None = None) -> Job:
    """Check what was asked for, and set up a run of its own; arguments and errors are those of `prepare`."""
    if recall is not None and not isinstance(recall, Recall):
        raise refused("recall", recall, "an outpace.Recall")
    lm = governed(lm, arguments.get("law"))
    plan = prepare(lm, prompt, arguments)
    heal(lm, plan)
    run = new_run(lm, plan, max(row.num_prompt + row.max_tokens for row in plan.rows), recall)
    if plan.search is not None:
        return Job(run, plan, Searching(lm, plan, run))
    run.join(plan.rows)
    return Job(run, plan)


def prepare(lm: LanguageModel, prompt: Any, arguments: Mapping[str, Any]) -> Plan:
    """Check everything that was asked for, the cheapest first, and set up the rows.

    Args:
        lm: what writes, under laws that take its target's place (`governed`) already.
        prompt: one or several, as callers bring them.
        arguments: by name; see `Options`.

    Raises:
        ConfigError, CapabilityError: see the message and its hint.
    """
    offered, arguments = lm.target.capabilities, given(arguments)
    if lm.first_token is not None:
        arguments = {"forced_bos_token_id": [lm.first_token], **arguments}
    if "search" in arguments:  # the files may ask for beams, which are another search
        arguments.setdefault("method", offered.plain_method if offered.is_canvas else "autoregressive")
    # 1) What the model's own files ask holds wherever the caller says nothing else.
    arguments, notes = _joined(lm, arguments)
    request, settings = split(arguments)
    search, options = read_search(request.search, request.method, request.options)
    if search is not None and search.draws and "temperature" not in arguments:
        settings, notes = (
            replace(settings, temperature=1.0),
            [*notes, f"The search {search.name} draws: temperature is 1."],
        )
    prompts, is_single = read_prompts(_framed(lm, prompt), lm.encode, offered)
    prompts, cut = _fitting(lm, prompts)
    notes = [*notes, *cut]
    method, laws = _method(request.method, options), read_laws(request)
    # 2) What the vocabulary and the model's abilities rule out.
    if request.stop and lm.tokenizer is None:
        raise ConfigError("Stop strings need a tokenizer.", "Use end tokens instead.")
    check_tokens("A stop token is", request.stop_tokens, offered.vocab_size)
    check_top(request.top_log_probs, offered)
    settings = settings.within(offered.vocab_size)
    check_fit(method, offered)
    if search is not None:
        check_searched(search, lm.target, method, request.num_samples, settings.temperature)
    check_search(method, settings, request.num_samples)
    # Where every forward has to have one width, since the kernels give no equal rows by themselves, no tree fits.
    is_fixed = request.is_batch_invariant and not lm.target.is_invariant
    method, note = method.fitted(replace(offered, has_tree=offered.has_tree and not is_fixed))
    _check_canvas(offered, prompts, request.canvas)
    if request.is_healed:
        check_healing(lm, method, settings, request)
    # 3) What takes time: constraints are compiled, other models loaded.
    settings = lm.constraints.apply(settings, request, lm.end_tokens, offered.is_canvas)
    settings = impose(lm, settings, laws)
    first = _decoder_start(lm, request, settings)
    models = lm.partners.models(method, request.models or {})
    tokenizers = lm.partners.tokenizers(method, request.models or {})
    rows = [
        _row(lm, ids, row_key(request.seed, sample), request, first, group, sample)
        for group, ids in enumerate(prompts)
        for sample in range(max(request.num_samples, method.num_rows, 1 if search is None else search.num_texts))
    ]
    check_laws(lm, settings, rows)
    _check_width(offered, method, is_fixed)
    sources = [row.tokens if row.source is None else row.source for row in rows]
    method.check_request(lm.target, sources, [row.max_tokens for row in rows])
    is_text = isinstance(prompt, str) or (isinstance(prompt, list | tuple) and isinstance(prompt[0], str))
    notes = [*notes, *([note] if note else []), *_told_by(models)]
    if not method.draws:  # nothing was drawn that could have come otherwise
        request = replace(request, record=[name for name in request.record if name != "margins"])
    plan = Plan(rows, method, settings, request, models, tokenizers, is_fixed, is_single, is_text, notes, search=search)
    plan.is_single = is_single and plan.num_texts == 1
    return plan


def method_for(lm: LanguageModel, arguments: Mapping[str, Any]) -> Method:
    """Return the method that a call with such arguments is written by; arguments and errors are those of `prepare`."""
    found, _ = _joined(lm, given(arguments))
    return _method(found["method"], found.get("options"))


def _joined(lm: LanguageModel, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a call's arguments with what the model's files, card and kind say where it says nothing, and notes."""
    offered = lm.target.capabilities
    found, notes = lm.generation.join(
        arguments,
        () if flag("ignore_eos", arguments.get("ignore_eos", False)) else lm.end_tokens,
        is_canvas=offered.is_canvas,
        has_text=lm.tokenizer is not None,
    )
    if "method" not in found:
        asked = found.get("temperature", 0), found.get("num_samples", 1)  # not yet held to their types
        is_plain = all(isinstance(value, int | float) for value in asked) and asked == (0, 1)
        found["method"] = usual_method(lm.method, offered, is_drawn=not is_plain)
    return found, notes


def _told_by(models: Mapping[str, Adapter]) -> list[str]:
    """Return what results should say about trained drafters."""
    return [note for model in models.values() if isinstance(model, HeadModel) for note in model.notes]


def _framed(lm: LanguageModel, prompt: Any) -> Any:
    """Return a prompt with its conversations as ids."""
    if is_chat(prompt):
        return lm.encode_chat(prompt)
    if isinstance(prompt, list | tuple) and any(is_chat(item) for item in prompt):
        return [lm.encode_chat(item) if is_chat(item) else item for item in prompt]
    return prompt


def _fitting(lm: LanguageModel, prompts: list[list[int]]) -> tuple[list[list[int]], list[str]]:
    """Return prompts whose sources the encoder has positions for, where the caller lets them be cut, and what was."""
    most, notes = lm.target.max_source, list[str]()
    if not lm.cuts_source or not most:
        return prompts, notes
    kept = []
    for ids in prompts:
        if len(ids) > most:
            notes.append(f"The source was cut from {len(ids)} to {most} tokens.")
            # The tokenizer frames a text: its end token, and perhaps a language behind that, stay.
            framed = next((count for count in (1, 2) if ids[-count] in lm.end_tokens), 0)
            ids = [*ids[: most - framed], *ids[len(ids) - framed :]]
        kept.append(ids)
    return kept, notes


def _method(method: str | Method, options: Mapping[str, Any] | None) -> Method:
    if isinstance(method, str):
        return load_method(method).from_settings(options or {})
    if options:
        raise ConfigError("Options came with a method object.", "Set them on the object.")
    return method


def _check_canvas(offered: Capabilities, prompts: Sequence[Sequence[int]], canvas: Sequence[int]) -> None:
    if not canvas:
        return
    if not offered.is_canvas:
        raise CapabilityError(
            "The model writes from left to right and cannot fill gaps.", "Use a masked model, such as stories-mask."
        )
    if any(not -1 <= token < offered.vocab_size for token in canvas):
        raise ConfigError("The canvas holds a token outside the vocabulary.", "-1 stands for one to be filled in.")
    longest = max(len(tokens) for tokens in prompts) + len(canvas)
    if longest > offered.max_positions:
        raise CapabilityError(
            f"The text with its gaps has {longest} tokens, but the model's context is {offered.max_positions}.",
            "Shorten it.",
        )


def _decoder_start(lm: LanguageModel, request: Request, settings: Sampling) -> list[int]:
    """Return what an encoder-decoder's decoder starts with; empty for other models."""
    offered, prefix = lm.target.capabilities, request.prefix
    if not offered.is_encoder_decoder:
        if len(prefix) > 0:
            raise CapabilityError(
                "A prefix was given, but the model has no decoder of its own.",
                "Put it at the end of the prompt, which the model continues.",
            )
        return []
    ids = lm.encode(prefix, is_special=False) if isinstance(prefix, str) else list(prefix)
    check_tokens("The prefix holds a token", ids, offered.vocab_size)
    first = [] if lm.target.start_token is None else [lm.target.start_token]
    whole = ids if ids[:1] == first else [*first, *ids]
    is_bound = settings.constraint is not None and len(settings.forced_bos_token_id) == 1
    if len(whole) == 1 and is_bound:  # the constraint is on the text behind the language's token
        whole += settings.forced_bos_token_id
    if len(whole) >= offered.max_positions:
        raise ConfigError(
            f"The prefix has {len(ids)} tokens, but the decoder's context is {offered.max_positions}.",
            "Shorten the prefix.",
        )
    return whole


def _row(
    lm: LanguageModel, ids: list[int], key: int, request: Request, first: Sequence[int], group: int, place: int
) -> Row:
    """Return a fresh row; `first` is what an encoder-decoder's decoder begins with, `group` its prompt's number."""
    ends = () if request.ignore_eos else lm.end_tokens
    tokens, source = (list(first), ids) if first else (list(ids), None)
    text = new_text(lm, request, tokens)
    held, stops, canvas = len(tokens), tuple(request.stop_tokens), list(request.canvas)
    most = len(canvas) or min(request.room(held), lm.target.capabilities.max_positions - held)
    found = Row(tokens, held, key, most, ends, text, source=source, canvas=canvas, stop_tokens=stops, group=group)
    found.place = place
    return found


def _check_width(offered: Capabilities, method: Method, is_fixed: bool) -> None:
    if is_fixed and offered.is_canvas:
        raise ConfigError("A canvas has a batch-invariant mode on compiled kernels only.", "Leave it out.")
    if is_fixed and method.needs.has_tree:
        raise ConfigError(
            "Batch-invariant mode drafts chains here: a tree's siblings change how sums are rounded.",
            "Set tree_width=1, or use compiled kernels.",
        )


def new_run(lm: LanguageModel, plan: Plan, longest: int, recall: Recall | None = None) -> Run:
    """Return a run, without rows, for texts of up to `longest` tokens with what the plan asks for."""
    method, request, offered = plan.method, plan.request, lm.target.capabilities
    width = max(method.needs.width, _INVARIANT_WIDTH) + 1
    if offered.is_canvas:  # whole copies of what is not cached, side by side
        width += method.needs.copies * min(longest, 4 * offered.block_size or longest)
    pages = None if recall is None or plan.search is not None else recall.serve(lm.target, plan, longest + width)
    if plan.search is not None:
        width += CHUNK  # rows that wait stage as many entries as one whose prompt is read
        pages = pool_for(lm.target, plan, longest + width)
    return Run(
        lm.target,
        method,
        plan.settings,
        capacity=longest + width,
        models=plan.models,
        memory=request.memory,
        record=request.record,
        num_top=request.top_log_probs,
        chunk=max(CHUNK, lm.target.reads_at_once),
        width=_INVARIANT_WIDTH if plan.is_fixed else 0,
        device=lm.target.device,
        tokenizers=plan.tokenizers,
        watch=request.watch,
        pages=pages,
        on_leave=None if recall is None or pages is None or plan.search is not None else recall.keep,
    )


def shared_run(
    lm: LanguageModel, pages: Pages | None = None, on_leave: Callable[[Row, Cache, int], None] | None = None
) -> Run:
    """Return a run, without rows, whose rows bring settings and methods of their own: see `own`.

    Args:
        lm: what writes.
        pages, on_leave: as of a `Run`.
    """
    longest, method = lm.target.capabilities.max_positions, Mixed(load_method("autoregressive")())
    return Run(
        lm.target,
        method,
        Sampling(),
        capacity=longest + _WIDEST,
        chunk=CHUNK,
        device=lm.target.device,
        pages=pages,
        on_leave=on_leave,
    )


def own(plan: Plan) -> None:
    """Let the rows of a plan bring what it asks for along, for a run that is shared."""
    request, wanted = plan.request, Wanted(plan.method, plan.models, plan.tokenizers, plan.request.memory)
    for row in plan.rows:
        row.wanted, row.settings = wanted, plan.settings
        row.record, row.num_top = request.record, request.top_log_probs
