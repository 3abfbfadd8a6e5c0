"""A run as it advances: text as it becomes final, then what each row has come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from outpace.api.infill import filled
from outpace.api.request import Request
from outpace.api.result import Result
from outpace.api.searching import Searching
from outpace.methods.base import Method
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.sampling import Sampling
from outpace.search.base import Search
from outpace.text.stream import TextStream
from outpace.text.tokenizer import Tokenizer
from outpace.types import Adapter, FinishReason, Guarantee

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = ["Job", "Plan", "advance", "finish", "new_text"]

_NO_CHAT = (
    "The text ended at once: this model was made for conversations. Frame the prompt with --chat, or give messages in "
    "place of text."
)
_AT_ONCE = 3  # tokens, the end among them, of a text that ended before it began


@dataclass(slots=True)
class Plan:
    """What was asked for, checked against the model and set up; a run of its own or a shared one writes the rows.

    Attributes:
        rows: prompt by prompt, sample by sample.
        method: as it runs on this model.
        settings: sampling settings of all rows, their constraint among them.
        request: what was asked for.
        models, tokenizers: other models by role, and what the method needs to read text.
        is_fixed: every forward has one width (batch-invariant mode on a path that gives no equal rows by itself).
        is_single: one prompt and one sample, hence one result and no list.
        is_text: the prompts were plain text.
        notes: of the start.
        cached_tokens: prompt tokens whose entries were found.
        search: what holds several texts per prompt and returns the best; None = every text is a row's own.
    """

    rows: list[Row]
    method: Method
    settings: Sampling
    request: Request
    models: dict[str, Adapter]
    tokenizers: dict[str, Tokenizer]
    is_fixed: bool
    is_single: bool
    is_text: bool
    notes: list[str]
    cached_tokens: int = 0
    search: Search | None = None

    @property
    def shown(self) -> list[Row]:
        """The rows that are results; what others wrote was for these."""
        return [row for row in self.rows if row.place < self.num_texts]

    @property
    def num_texts(self) -> int:
        """Results per prompt."""
        if self.search is not None:
            return self.search.num_texts
        return max(self.request.num_samples, self.method.num_texts)


@dataclass(slots=True)
class Job:
    """A run of its own for what was asked; `run.rows` are the rows that have not ended."""

    run: Run
    plan: Plan
    searching: Searching | None = None


def new_text(
    lm: LanguageModel, request: Request, context: Sequence[int], covered: Sequence[int] = ()
) -> TextStream | None:
    """Return the text stream of a row whose prompt is `context`; None = there is no tokenizer.

    Special tokens show, or only stop strings see them, or nobody does. What `covered` spells belongs to the prompt,
    though the row's first token writes it.
    """
    if (tokenizer := lm.tokenizer) is None:
        return None
    if request.keep_special:
        return TextStream(
            partial(tokenizer.decode, skip_special=False), request.stop, context, None, tokenizer.byte, covered
        )
    names = tokenizer.special_ids if request.stop else {}
    special = {token: name for name, token in names.items() if any(name in stop for stop in request.stop)}
    return TextStream(tokenizer.decode, request.stop, context, special, covered=covered)


def advance(job: Job, is_cancelled: Callable[[], bool] | None) -> Iterator[tuple[int, str]]:
    """Step until every row has ended, yielding (row index, text) as text becomes final."""
    number = {id(row): index for index, row in enumerate(job.plan.shown)}
    if job.searching is not None:
        yield from _searched(job.searching, number, is_cancelled)
        return
    has_forks = job.plan.method.needs.has_forks  # asked once: a method of many parts adds theirs up each time
    for index, row in enumerate(job.plan.shown):  # the token that covers a healed prompt's end may end a text
        if row.finish is not None and row.text is not None and (piece := row.text.release(is_final=True)):
            yield index, piece
    while job.run.rows:
        if is_cancelled is not None and is_cancelled():
            stepped = list(job.run.rows)
            for row in stepped:
                row.cancel()
            job.run.leave(stepped)
        else:
            stepped = [row for row, _ in job.run.step()]
        for row in stepped:
            is_final = row.finish is not None
            if (
                id(row) not in number or row.text is None or (has_forks and not is_final)
            ):  # another's text may replace it
                continue
            piece = row.text.release(is_final=is_final)
            if piece:
                yield number[id(row)], piece


def _searched(
    searching: Searching, number: Mapping[int, int], is_cancelled: Callable[[], bool] | None
) -> Iterator[tuple[int, str]]:
    """Search until every prompt has its texts; a text becomes final when its search has ended."""
    while not searching.is_over:
        is_wished = is_cancelled is not None and is_cancelled()
        for row in searching.cancel() if is_wished else searching.step():
            piece = "" if row.text is None else row.text.release(is_final=True)
            if piece:
                yield number[id(row)], piece


def finish(lm: LanguageModel, plan: Plan, seconds: Mapping[str, float]) -> list[Result]:
    """Return the result of each row; `seconds` are those of the run that wrote them, by phase."""
    timing = _timing(lm.load_s, seconds)
    return [
        Result(
            model=lm.name,
            method=plan.method.name,
            prompt_tokens=list(row.source) if row.source is not None else row.tokens[: row.num_prompt],
            tokens=row.written,
            text=row.text.text if row.text is not None else "",
            finish_reason=row.finish.value if row.finish is not None else "",
            usage=row.usage,
            timing=dict(timing),
            seed=plan.request.seed,
            sample=index % plan.num_texts,
            notes=_notes(lm, row, plan),
            log_probs=row.log_probs,
            top_log_probs=row.top_log_probs,
            margins=row.margins,
            sources=row.sources,
            settings=plan.method.to_dict(),
            filled=_filled(lm, row, plan.request.keep_special),
            guarantee=(plan.method.guarantee if plan.search is None else Guarantee.APPROXIMATE).value,
            cached_tokens=plan.cached_tokens,
            score=row.score,
            search={} if plan.search is None else {"name": plan.search.name, **plan.search.to_dict()},
        )
        for index, row in enumerate(plan.shown)
    ]


def _notes(lm: LanguageModel, row: Row, plan: Plan) -> list[str]:
    known = (*lm.target.notes, *lm.notes, *plan.notes, *row.notes)
    notes = [str(note) for note in known]
    if plan.is_text and _wants_chat(lm, row, plan.request):
        notes.append(_NO_CHAT)
    if row.max_tokens < plan.request.room(row.num_prompt):
        notes.append("max_tokens was cut to what the model's context holds.")
    is_cut = row.finish in (FinishReason.LENGTH, FinishReason.STOP)
    if is_cut and row.state is not None and not row.state.is_complete:
        notes.append("The text ends before what its constraint asks for is complete.")
    if row.finish is FinishReason.CANCELLED:
        notes.append("Cancelled: the text is what was written until then.")
    return notes


def _wants_chat(lm: LanguageModel, row: Row, request: Request) -> bool:
    """Return whether an instruct model had nothing to say to a bare text, which it never saw in training."""
    is_free = not request.constraints and row.constraint is None and not request.canvas
    if lm.tokenizer is None or not lm.tokenizer.has_chat or not is_free:
        return False
    prompt, special = row.tokens[: row.num_prompt], set(lm.tokenizer.special_ids.values())
    is_bare = special.isdisjoint(prompt[1:])  # a start token apart
    return is_bare and row.finish is FinishReason.EOS and len(row.written) <= _AT_ONCE


def _filled(lm: LanguageModel, row: Row, keep_special: bool) -> list[str]:
    if lm.tokenizer is None:
        return filled(row.canvas, row.written, lambda ids: " ".join(map(str, ids)))
    return filled(row.canvas, row.written, partial(lm.tokenizer.decode, skip_special=not keep_special))


def _timing(load_s: float, seconds: Mapping[str, float]) -> dict[str, float]:
    decode = seconds["total"] - seconds["prefill"]
    known = seconds["draft"] + seconds["score"] + seconds["accept"]
    return {
        "load_s": load_s,
        "prefill_s": seconds["prefill"],
        "decode_s": decode,
        "draft_s": seconds["draft"],
        "score_s": seconds["score"],
        "accept_s": seconds["accept"],
        "other_s": max(0.0, decode - known),
    }
