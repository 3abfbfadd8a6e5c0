"""What checkpoints ask of a text beyond penalties: n-grams, biased sequences, first and last tokens, lengths.

Source: the logits processors of transformers' `generate`, one by one and in their order, so that a checkpoint's
generation_config.json means here what it means there. Each function changes processed logits [N, V] in place, row by
row, from the rows' `History`; the prompt of an encoder-decoder is what its decoder starts with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from outpace.sampling.history import History
from outpace.sampling.settings import Sampling

__all__ = ["bias", "forbid", "force"]

_NEVER = float("-inf")


def bias(logits: Tensor, history: History, settings: Sampling) -> None:
    """Add sequence biases, then favour the tokens of the source; both come before every penalty."""
    most = torch.finfo(logits.dtype).max / 4  # a larger bias would be infinite, and the law none
    for row, tokens in enumerate(history.tokens):
        for sequence, value in settings.sequence_bias.items():
            if _ends_with(tokens, sequence[:-1]):
                logits[row, sequence[-1]] += value if value == _NEVER else max(-most, min(most, value))
    if settings.encoder_repetition_penalty != 1:
        scale = 1 / settings.encoder_repetition_penalty
        for row, source in enumerate(history.sources):
            ids = torch.tensor(sorted(set(source)), dtype=torch.int64, device=logits.device)
            found = logits[row, ids]
            logits[row, ids] = torch.where(found < 0, found * scale, found / scale)


def forbid(logits: Tensor, history: History, settings: Sampling) -> None:
    """Set the tokens to -inf that would repeat an n-gram, complete a bad word, or end the text too early."""
    words = [word for word in settings.bad_words if len(word) > 1]
    alone = sorted({word[0] for word in settings.bad_words if len(word) == 1})
    if alone:
        logits[:, alone] = _NEVER
    for row, tokens in enumerate(history.tokens):
        barred = _repeats(tokens, tokens, settings.no_repeat_ngram_size)
        barred += _repeats(history.sources[row], tokens, settings.encoder_no_repeat_ngram_size)
        barred += [word[-1] for word in words if _ends_with(tokens, word[:-1])]
        written = len(tokens) - history.prompts[row]
        if len(tokens) < settings.min_length or written < settings.min_tokens:
            barred += history.end_tokens[row]
        if barred:
            logits[row, barred] = _NEVER


def force(logits: Tensor, history: History, settings: Sampling) -> None:
    """Leave only the forced tokens first and last; then favour ends of long texts, and suppress tokens at the begin.

    Where a constraint allows none of the forced tokens, it holds and nothing is forced.
    """
    for row, tokens in enumerate(history.tokens):
        prompt, ends = history.prompts[row], history.end_tokens[row]
        forced = settings.forced_bos_token_id if len(tokens) == 1 else ()
        forced = settings.forced_eos_token_id if len(tokens) == history.limits[row] - 1 else forced
        if forced and (possible := _allowed(history, row, forced)):
            logits[row] = _NEVER
            logits[row, possible] = 0
        if settings.exponential_decay_length_penalty and ends:
            _decay(logits[row], ends, len(tokens) - prompt, *settings.exponential_decay_length_penalty)
        # A forced first token is not yet the begin of the text.
        begin = prompt + (1 if prompt == 1 and settings.forced_bos_token_id else 0)
        if settings.begin_suppress_tokens and len(tokens) == begin:
            logits[row, list(settings.begin_suppress_tokens)] = _NEVER


def _ends_with(tokens: list[int], head: Sequence[int]) -> bool:
    return not head or tokens[-len(head) :] == list(head)


def _repeats(text: Sequence[int], tokens: list[int], size: int) -> list[int]:
    """Return what follows, anywhere in a text, the last `size` - 1 of some tokens; nothing for size 0."""
    if size == 0 or len(tokens) < size - 1:
        return []
    if size == 1:
        return list(text)
    back, head = size - 2, tokens[len(tokens) - size + 1 :]
    last = head[-1]
    places = [at for at in range(back, len(text) - 1) if text[at] == last]
    return [text[at + 1] for at in places if list(text[at - back : at + 1]) == head]


def _allowed(history: History, row: int, tokens: Sequence[int]) -> list[int]:
    allowed = history.allowed(row)
    return [token for token in tokens if allowed is None or bool(allowed[token])]


def _decay(logits: Tensor, ends: Sequence[int], written: int, start: int, factor: float) -> None:
    """Raise the logits of end tokens [V] by a share of their size that grows with every token after `start`."""
    if written <= start:
        return
    gain = math.exp(min(600.0, (written - start) * math.log(factor))) - 1
    found = logits[list(ends)].double()
    found = torch.where(torch.isfinite(found), found + found.abs() * gain, found)
    most = torch.finfo(logits.dtype).max / 4
    logits[list(ends)] = found.clamp(max=most).to(logits.dtype)
