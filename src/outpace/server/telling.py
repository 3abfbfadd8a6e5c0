"""What answers say of a text beside the text: why it ended, log-probabilities, what it cost, where it came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from outpace.api.result import Result
from outpace.engine.face import FAULT, Piece, Token
from outpace.run.row import BROKEN
from outpace.server.errors import Refused
from outpace.text.stream import TextStream
from outpace.text.tokenizer import Tokenizer

__all__ = [
    "Top",
    "chat_log_probs",
    "check_end",
    "completion_log_probs",
    "finish_reason",
    "prompt_log_probs",
    "speculative_metrics",
    "spelled",
    "stopped_by",
    "traced",
    "traced_piece",
    "usage",
]

Top = Sequence[tuple[int, float]]  # the likeliest tokens and their log-probabilities
_REASONS = {"eos": "stop", "cancelled": "abort"}  # ours, as others call them
_LOWEST = -9999.0  # JSON has no infinity


def finish_reason(ours: str | None) -> str | None:
    """Return why a sample ended, as OpenAI's clients know it."""
    return None if ours is None else _REASONS.get(ours, ours)


def check_end(results: Sequence[Result]) -> None:
    """Fail a request of which every sample failed; else the finish_reason of those that did says "error".

    Raises:
        Refused: 400, what was asked for cannot be written; 500, the model computed no numbers, or the engine failed.
    """
    if results and all(result.finish_reason == "error" for result in results):
        notes = results[0].notes
        status = 500 if any(note == BROKEN or note.startswith(FAULT) for note in notes) else 400
        raise Refused(status, notes[-1] if notes else "The text ended with an error.", code="generation_failed")


def stopped_by(
    tokenizer: Tokenizer | None,
    prompt: Sequence[int],
    tokens: Sequence[int],
    text: str,
    stops: Sequence[str],
    stop_tokens: Sequence[int],
    keep_special: bool,
) -> tuple[str | int | None, str]:
    """Return which stop string or token ended a text, and what was cut off with it.

    Args:
        tokenizer: the model's.
        prompt, tokens: ids; those written up to the end of the stop.
        text: of the tokens, cut before the stop.
        stops, stop_tokens: asked for.
        keep_special: special tokens show in the text.
    """
    stream = None
    if tokenizer is not None:
        decode = partial(tokenizer.decode, skip_special=not keep_special)
        stream = TextStream(decode, (), prompt, byte=tokenizer.byte)
        for token in tokens:
            stream.push(token)
        stream.flush()
    rest = "" if stream is None else stream.text[len(text) :]
    found = [stop for stop in stops if rest.startswith(stop)]
    if found:
        longest = max(found, key=len)
        return longest, longest
    if tokens and tokens[-1] in stop_tokens:
        return tokens[-1], rest
    return (stops[0] if len(stops) == 1 else None), ""  # a stop string of special tokens that do not show


def spelled(tokenizer: Tokenizer | None, token: int, as_id: bool = False) -> tuple[str, list[int]]:
    """Return a token's text and bytes; bytes that are no text are named, so that no two tokens look alike.

    Args:
        tokenizer: the model's; None = tokens are named by number.
        token: its id.
        as_id: name it by number.
    """
    if tokenizer is None or as_id:
        return f"token_id:{token}", []
    spellings = tokenizer.spellings
    raw = spellings[token] if token < len(spellings) else None
    if raw is None:
        text = tokenizer.token(token)
        return text, list(text.encode())
    try:
        return raw.decode(), list(raw)
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), list(raw)


def completion_log_probs(
    tokenizer: Tokenizer | None,
    tokens: Sequence[int],
    log_probs: Sequence[float | None],
    tops: Sequence[Top],
    offset: int = 0,
    as_id: bool = False,
) -> dict[str, Any]:
    """Return the log-probabilities of /v1/completions.

    Args:
        tokenizer: the model's.
        tokens, log_probs, tops: in order; None = there is none (the first token of a prompt).
        offset: characters before them.
        as_id: tokens are named by number.
    """
    names = [spelled(tokenizer, token, as_id)[0] for token in tokens]
    offsets, at = [], offset
    for token in tokens:
        offsets.append(at)
        at += len(spelled(tokenizer, token)[0])
    told: list[dict[str, float] | None] = []
    for name, log_prob, top in zip(names, log_probs, tops, strict=True):
        likely = {spelled(tokenizer, token, as_id)[0]: _finite(value) for token, value in top}
        told.append(None if log_prob is None else {**likely, name: _finite(log_prob)})
    return {
        "tokens": names,
        "token_logprobs": [None if value is None else _finite(value) for value in log_probs],
        "top_logprobs": told,
        "text_offset": offsets,
    }


def chat_log_probs(
    tokenizer: Tokenizer | None,
    tokens: Sequence[int],
    log_probs: Sequence[float | None],
    tops: Sequence[Top],
    as_id: bool = False,
) -> dict[str, Any]:
    """Return the log-probabilities of /v1/chat/completions; see `completion_log_probs`."""

    def one(token: int, value: float | None) -> dict[str, Any]:
        text, raw = spelled(tokenizer, token, as_id)
        return {"token": text, "logprob": None if value is None else _finite(value), "bytes": raw}

    told = [
        {**one(token, value), "top_logprobs": [one(*pair) for pair in top]}
        for token, value, top in zip(tokens, log_probs, tops, strict=True)
    ]
    return {"content": told, "refusal": None}


def prompt_log_probs(tokenizer: Tokenizer | None, result: Result) -> list[dict[str, Any] | None]:
    """Return vLLM's `prompt_logprobs`: per prompt token the likeliest in its place and itself, by id."""
    told: list[dict[str, Any] | None] = []
    for token, (log_prob, top) in zip(result.prompt_tokens, result.prompt_log_probs, strict=True):
        if log_prob is None:
            told.append(None)
            continue
        ranked = {other: (value, rank) for rank, (other, value) in enumerate(top, 1)}
        ranked.setdefault(token, (log_prob, 0))  # 0: beyond those that were asked for
        told.append(
            {
                str(other): {
                    "logprob": _finite(value),
                    "rank": rank or None,
                    "decoded_token": spelled(tokenizer, other)[0],
                }
                for other, (value, rank) in ranked.items()
            }
        )
    return told


def usage(results: Sequence[Result], num_prompt: int, num_written: int | None = None) -> dict[str, Any]:
    """Return what an answer cost.

    Args:
        results: of all samples.
        num_prompt: tokens of all prompts, each counted once.
        num_written: tokens written; None = those of the results.
    """
    written = sum(len(result.tokens) for result in results) if num_written is None else num_written
    cached = sum(result.cached_tokens for result in results if result.sample == 0)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": written,
        "total_tokens": num_prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
        "outpace": {
            "drafted": sum(result.usage.num_proposed for result in results),
            "accepted": sum(result.usage.num_accepted for result in results),
            "forwards": sum(result.usage.target_nfe for result in results),
            "steps": sum(result.usage.num_steps for result in results),
        },
    }


def speculative_metrics(result: Result, is_detailed: bool) -> dict[str, Any]:
    """Return `metrics.speculative_decoding` in vLLM's form: of the steps that drafted anything."""
    steps = [(drafted, accepted) for drafted, accepted in result.steps if drafted]
    drafted, accepted = (sum(step[part] for step in steps) for part in (0, 1))
    most = max((step[0] for step in steps), default=0)
    told: dict[str, Any] = {
        "mean_acceptance_length": 1 + accepted / len(steps) if steps else 1.0,
        "draft_acceptance_rate": accepted / drafted if drafted else 0.0,
        "acceptance_histogram": [sum(step[1] == kept for step in steps) for kept in range(most + 1)],
        "num_spec_steps": len(steps),
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": drafted,
        "num_spec_tokens": most,
    }
    if is_detailed:
        told["per_step_accepted"] = [step[1] for step in steps]
        told["per_step_drafted"] = [step[0] for step in steps]
    return {"speculative_decoding": told}


def traced(tokens: Iterable[Token]) -> list[dict[str, Any]]:
    """Return where tokens came from."""
    told = ("id", "text", "source", "drafter", "log_prob")
    return [{name: getattr(token, name) for name in told} for token in tokens]


def traced_piece(tokenizer: Tokenizer | None, piece: Piece) -> dict[str, Any]:
    """Return where a step's tokens came from, the text behind the last one, and what was drafted, spelled out too."""
    step = piece.step
    if step is not None:
        step = {**step, "texts": [spelled(tokenizer, token)[0] for token in step.get("tokens", ())]}
    return {"tokens": traced(piece.tokens), "rest": piece.rest, "step": step}


def _finite(value: float) -> float:
    return max(float(value), _LOWEST)
