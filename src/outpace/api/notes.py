"""Streams of one text, written side by side: each reads the others' notes, and doubted blocks are taken back.

All streams write a block of `stride` tokens in one batch. Each block leaves a note on the bus, and a verification head
says of each whether it goes with the others' notes. A block that it doubts is taken back and written once more, beside
the notes of this round. Within a block the notes stand still, so that any exact method drafts for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from outpace.arguments import ids as read_ids
from outpace.errors import ConfigError
from outpace.models.notes import Noted, NoteNet
from outpace.types import Outputs

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = ["Stream", "write_streams"]


@dataclass(slots=True)
class Stream:
    """What became of a stream.

    Attributes:
        prompt: its token ids.
        tokens: what was written.
        text: the same as text; "" without a tokenizer.
        notes: [width] of each block.
        taken_back: blocks that were doubted and written again, by number.
        finish_reason: as of a `Result`; "" while it is written.
    """

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    notes: list[Tensor] = field(default_factory=list)
    taken_back: list[int] = field(default_factory=list)
    finish_reason: str = ""


def write_streams(
    lm: LanguageModel,
    prompts: Sequence[str | Sequence[int]],
    net: NoteNet,
    *,
    max_tokens: int = 64,
    stride: int = 16,
    threshold: float = 0.0,
    **arguments: Any,
) -> list[Stream]:
    """Write streams that read each other's notes.

    Args:
        lm: the trunk.
        prompts: of the streams, two or more; texts or token ids.
        net: the adapter.
        max_tokens: of each stream.
        stride: tokens of a block.
        threshold: blocks whose probability of agreement is below are written again; 0 = none is.
        **arguments: of `LanguageModel.generate`.

    Raises:
        ConfigError: fewer than two streams, or a number out of range.
        CapabilityError, ModelError: trunk and adapter do not go together.
    """
    if isinstance(prompts, str) or len(prompts) < 2 or stride < 1 or max_tokens < 1 or not 0 <= threshold <= 1:
        raise ConfigError(
            "Streams are two prompts or more, blocks have a token or more, a threshold lies in [0, 1].", "Correct that."
        )
    encoded = [lm.encode(one) if isinstance(one, str) else read_ids("a prompt", one) for one in prompts]
    streams = [Stream(list(one)) for one in encoded]
    net = net.to(lm.target.device, torch.float64 if lm.target.dtype is torch.float64 else torch.float32)
    while going := [at for at, one in enumerate(streams) if not one.finish_reason]:
        sizes = {at: min(stride, max_tokens - len(streams[at].tokens)) for at in going}
        bus = [list(one.notes) for one in streams]
        blocks = _written(lm, net, streams, going, sizes, bus, arguments)
        new = {at: _note(lm, net, streams[at], blocks[at][0]) for at in going}
        after = [[*bus[at], *([new[at]] if at in new else [])] for at in range(len(streams))]
        doubted = [at for at in going if _agreement(net, new[at], _others(after, at)) < threshold]
        if doubted:
            again = _written(lm, net, streams, doubted, sizes, after, arguments)
            for at in doubted:
                streams[at].taken_back.append(len(streams[at].notes))
                blocks[at], new[at] = again[at], _note(lm, net, streams[at], again[at][0])
        for at in going:
            stream, (tokens, finish) = streams[at], blocks[at]
            stream.tokens += tokens
            stream.notes.append(new[at])
            stream.finish_reason = finish if finish != "length" or len(stream.tokens) >= max_tokens else ""
    for stream in streams:
        stream.text = lm.tokenizer.decode(stream.tokens) if lm.tokenizer is not None else ""
    return streams


def _others(notes: Sequence[Sequence[Tensor]], at: int) -> list[Tensor]:
    return [note for other, own in enumerate(notes) if other != at for note in own]


def _written(
    lm: LanguageModel,
    net: NoteNet,
    streams: Sequence[Stream],
    chosen: Sequence[int],
    sizes: dict[int, int],
    bus: Sequence[Sequence[Tensor]],
    arguments: dict[str, Any],
) -> dict[int, tuple[list[int], str]]:
    """Return the next block of some streams, written in batches of one length, and why each ended."""
    found = dict[int, tuple[list[int], str]]()
    for size in sorted({sizes[at] for at in chosen}):
        rows = [at for at in chosen if sizes[at] == size]
        seen = [_others(bus, at) for at in rows]
        most, width = max(1, *map(len, seen)), net.write.out_features
        weight = net.write.weight
        notes = torch.zeros(len(rows), most, width, dtype=weight.dtype, device=weight.device)
        is_there = torch.zeros(len(rows), most, dtype=torch.bool, device=weight.device)
        for row, own in enumerate(seen):
            for place, note in enumerate(own):
                notes[row, place], is_there[row, place] = note, True
        other = lm.ending_with(lm.end_tokens)
        other.target = Noted(lm.target, net, notes, is_there)
        texts = [[*streams[at].prompt, *streams[at].tokens] for at in rows]
        results = other.generate(texts, max_tokens=size, **arguments)
        found |= {at: (list(one.tokens), one.finish_reason) for at, one in zip(rows, results, strict=True)}
    return found


@torch.no_grad()
def _note(lm: LanguageModel, net: NoteNet, stream: Stream, block: Sequence[int]) -> Tensor:
    """Return the note of a block behind a stream, by the trunk's own states."""
    text, device = [*stream.prompt, *stream.tokens, *block], lm.target.device
    place = torch.arange(len(text), device=device)
    cache = lm.target.new_cache(1, len(text))
    outputs = Outputs(has_last=True, has_logits=False)
    states = lm.target.score(torch.tensor([text], device=device), place[None], None, cache, None, outputs).last
    assert states is not None  # it was asked for
    return net.note(states[0, len(text) - len(block) :].to(net.write.weight.dtype))


@torch.no_grad()
def _agreement(net: NoteNet, note: Tensor, others: Sequence[Tensor]) -> float:
    return float(net.agreement(note, torch.stack(list(others))).sigmoid()) if others else 1.0
