"""Bringing a cache up to date with a text: chunked forwards, without logits unless asked, for targets and drafters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.run.layout import lay_out, soften
from outpace.types import NO_OUTPUTS, Adapter, Outputs, Proposal, Scores

__all__ = ["catch_up", "next_pieces", "no_nodes", "read_pieces"]


def catch_up(
    adapter: Adapter,
    cache: Cache,
    texts: Sequence[Sequence[int]],
    chunk: int = 256,
    skip: Sequence[int] = (),
    *,
    has_logits: bool = False,
    outputs: Outputs = NO_OUTPUTS,
    prompts: Sequence[Tensor | None] = (),
) -> Iterator[tuple[list[range], Scores]]:
    """Forward every pending token but the last of each row, yielding each chunk's positions per row, and its scores.

    Chunk borders lie at multiples of `chunk`, whatever was decoded before, so that results never depend on drafts.
    Under block attention only whole blocks are forwarded, and never the last token: its block, or the next one, is
    still to be written.

    Args:
        adapter: the model.
        cache: its cache; `lengths` tell what is valid already.
        texts: final tokens per row.
        chunk: most tokens per row and forward.
        skip: layers to leave out.
        has_logits: ask for logits at every token.
        outputs: ask for these at every token.
        prompts: per row, soft embeddings [P, hidden] of its first positions, or None; empty = no row has any.
    """
    offered = adapter.capabilities
    grain = offered.block_size if offered.attention == "block" else 1
    chunk = max(grain, chunk - chunk % grain)
    _turn(adapter, cache, texts)
    outputs = replace(outputs, has_logits=has_logits)
    while True:
        due = [(len(text) - 1) // grain * grain - length for text, length in zip(texts, cache.lengths, strict=True)]
        if max(due, default=0) <= 0:
            return
        take = [max(0, min(n, chunk - at % chunk)) for n, at in zip(due, cache.lengths, strict=True)]
        pending = [text[at : at + n] for text, at, n in zip(texts, cache.lengths, take, strict=True)]
        device = cache.device
        layout = lay_out(pending, cache.lengths, no_nodes(len(take), device))
        ask = None if has_logits or outputs else torch.zeros(len(take), 0, dtype=torch.int64, device=device)
        inputs = soften(adapter, layout, None, prompts, cache.lengths)
        places = [range(at, at + n) for at, n in zip(cache.lengths, take, strict=True)]
        given = (layout.tokens, layout.position, layout.visible, cache, ask)
        scores = adapter.score(*given, outputs=outputs, inputs=inputs, skip=skip)
        cache.keep([range(n) for n in take])
        yield places, scores


def _turn(adapter: Adapter, cache: Cache, texts: Sequence[Sequence[int]]) -> None:
    """Put rows whose texts are longer than the model's first rotations reach into the phase that serves them."""
    offered = adapter.capabilities
    if not offered.turns_at:
        return
    for row, text in enumerate(texts):
        is_due = len(text) > offered.turns_at and not cache.phases[row]
        if is_due and (offered.turns_anew or not cache.lengths[row]):
            cache.restart(row, 1 if offered.turns_anew else len(text))


def no_nodes(rows: int, device: torch.device) -> Proposal:
    """Return an empty window for `rows` rows."""
    return Proposal(torch.zeros(rows, 0, dtype=torch.int64, device=device), [0] * rows)


def next_pieces(
    texts: Sequence[Sequence[int]], held: Sequence[int], budget: int, chunk: int, *, is_free: bool
) -> list[list[int]]:
    """Return what is forwarded next of texts that are read one behind the other; the last token of each stays pending.

    Args:
        texts: final tokens per row, the first in line first.
        held: per row, how many are in its cache.
        budget: most tokens of all rows together.
        chunk: most tokens of a row.
        is_free: pieces may end anywhere; else at multiples of `chunk`, and a budget that is not 0 pays for the first.
    """
    pieces: list[list[int]] = []
    left, is_blocked = budget, False
    for text, at in zip(texts, held, strict=True):
        due = len(text) - 1 - at
        take = min(due, chunk, left) if is_free else min(due, chunk - at % chunk)
        if is_blocked or (take > left and (left <= 0 or any(pieces))):
            take = 0
        is_blocked |= take < due
        left -= take
        pieces.append(list(text[at : at + take]))
    return pieces


def read_pieces(
    adapter: Adapter,
    cache: Cache,
    first: int,
    pieces: Sequence[Sequence[int]],
    prompts: Sequence[Tensor | None] = (),
    *,
    has_logits: bool = False,
    outputs: Outputs = NO_OUTPUTS,
) -> Scores | None:
    """Forward pieces of texts for the last rows of a cache, and make them valid; return their scores where asked for.

    Args:
        adapter: the model.
        cache: of all rows.
        first: the first row that is read.
        pieces: per row from there on, its next tokens; some may be empty.
        prompts: per row of the cache, as `catch_up` takes them.
        has_logits: ask for logits at every token.
        outputs: ask for these at every token.
    """
    sizes = [len(piece) for piece in pieces]
    if not any(sizes):
        return None
    part = cache.part(range(first, len(cache.lengths)))
    layout = lay_out(pieces, part.lengths, no_nodes(len(pieces), cache.device))
    outputs = replace(outputs, has_logits=has_logits)
    ask = None if has_logits or outputs else torch.zeros(len(pieces), 0, dtype=torch.int64, device=cache.device)
    inputs = soften(adapter, layout, None, prompts[first:], part.lengths)
    scores = adapter.score(layout.tokens, layout.position, layout.visible, part, ask, outputs=outputs, inputs=inputs)
    part.keep([range(size) for size in sizes])
    return scores
