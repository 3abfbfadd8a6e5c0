"""Texts as batches: which are held out, in what order they come, and how little of a batch is padding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outpace.heads.net import Batch, Frozen
from outpace.train.drafter.states import States
from outpace.train.drafter.texts import Text

__all__ = ["Shape", "draftable", "make_batch", "plan_epoch", "split_texts"]

_HELD_OUT = 0.04
_POOL = 32  # batches whose texts are sorted by length together


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a batch.

    Attributes:
        rows: texts of full length in a batch; of shorter ones there are more.
        length: tokens of a text, its first.
    """

    rows: int = 8
    length: int = 512


def split_texts(texts: Sequence[Text], length: int, share: float = _HELD_OUT) -> tuple[list[int], list[int]]:
    """Return the places of the texts to learn from and of those held out; attempts at one prompt stay together.

    Texts of which the first `length` tokens hold no answer are in neither.
    """
    used = [i for i, text in enumerate(texts) if len(text.prompt) + 3 < length and len(text.answer) > 2]
    held = [i for i in used if _draw(texts[i].group) < share] or used[-1:]
    taken = {texts[i].group for i in held}
    return [i for i in used if texts[i].group not in taken], held


def _draw(group: str) -> float:
    """Return a number in [0, 1) that follows from a name, so that a file that grows keeps its held-out texts."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:6], "big") / 2**48


def plan_epoch(texts: Sequence[Text], index: Sequence[int], shape: Shape, draw: int) -> list[list[int]]:
    """Return batches, as places of texts, in which every text of `index` comes once; texts of like length meet."""
    generator = torch.Generator().manual_seed(draw)
    order = [index[i] for i in torch.randperm(len(index), generator=generator).tolist()]
    size = {i: min(shape.length, len(texts[i].prompt) + len(texts[i].answer)) for i in order}
    room, found = shape.rows * shape.length, list[list[int]]()
    pool, held = list[int](), 0
    for i in [*order, -1]:
        if i < 0 or held + size[i] > room * _POOL:
            found += _cut(sorted(pool, key=lambda i: size[i]), size, room)
            pool, held = [], 0
        if i >= 0:
            pool.append(i)
            held += size[i]
    return [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]


def _cut(pool: list[int], size: dict[int, int], room: int) -> list[list[int]]:
    found: list[list[int]] = []
    for i in pool:
        if not found or (len(found[-1]) + 1) * size[i] > room:
            found.append([])
        found[-1].append(i)
    return found


def make_batch(
    texts: Sequence[Text], states: States, index: Sequence[int], length: int, width: int, hidden: int, frozen: Frozen
) -> Batch:
    """Return the batch of some texts, padded at the right.

    Args:
        texts: all of them.
        states: their states.
        index: which of them.
        length: tokens of a text, its first.
        width: of the states that the drafter reads; the last hidden state stands at the end of what is kept.
        hidden: width of the last hidden state.
        frozen: the target.
    """
    read = states.read(index)
    rows, size = len(index), max(map(len, read))
    tokens, is_taught = torch.zeros(rows, size, dtype=torch.int64), torch.zeros(rows, size, dtype=torch.bool)
    whole = torch.zeros(rows, size, read[0].shape[-1])
    for row, (i, part) in enumerate(zip(index, read, strict=True)):
        text = texts[i]
        tokens[row, : len(part)] = torch.tensor((text.prompt + text.answer)[:length])
        is_taught[row, len(text.prompt) : len(part)] = True
        whole[row, : len(part)] = part
    return Batch(tokens, is_taught, whole[..., :width], whole[..., -hidden:], frozen)


def draftable(texts: Sequence[Text], vocab_size: int, most: int, always: Sequence[int]) -> Tensor | None:
    """Return the tokens [K] that are drafted, ascending: the most frequent of the answers, end tokens among them.

    Args:
        texts: what the target wrote.
        vocab_size: tokens of the target.
        most: K; 0, or no fewer than there are = all (None).
        always: tokens that are among them whatever their number.
    """
    if not 0 < most < vocab_size:
        return None
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for text in texts:
        counts += torch.bincount(torch.tensor(text.answer), minlength=vocab_size)
    counts[list(always)] = counts.max() + 1
    # Of equally frequent tokens the smaller id comes first: byte pairs are numbered as they were merged.
    return counts.sort(descending=True, stable=True).indices[:most].sort().values
