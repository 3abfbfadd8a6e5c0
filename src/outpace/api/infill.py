"""Filling gaps between given pieces of text: from pieces to a prompt and a canvas, and back; marks of gaps and sets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from outpace.arguments import ids as read_ids
from outpace.arguments import whole
from outpace.errors import ConfigError

__all__ = ["Piece", "filled", "lay_pieces", "read_gaps", "read_sets"]

Piece = str | int | Sequence[int]
_GAP = re.compile(r"\[\[(\d+)\]\]")
_SET = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)


def read_gaps(text: str) -> list[Piece]:
    """Return the pieces of a text in which `[[12]]` stands for a gap of 12 tokens.

    Raises:
        ConfigError: there is no gap.
    """
    parts = _GAP.split(text)
    if len(parts) == 1:
        raise ConfigError("The text has no gap.", "Write [[12]] where 12 tokens are to be filled in.")
    pieces: list[Piece] = [int(part) if index % 2 else part for index, part in enumerate(parts)]
    return [piece for piece in pieces if piece != ""]


def read_sets(text: str) -> list[str | list[str]]:
    """Return the parts of a text in which `[[a|b|c]]` stands for members in no order.

    Raises:
        ConfigError: there is no set.
    """
    pieces = _SET.split(text)
    if len(pieces) == 1:
        raise ConfigError("The prompt has no set.", "Write [[a|b|c]] where parts have no order.")
    parts: list[str | list[str]] = [piece.split("|") if index % 2 else piece for index, piece in enumerate(pieces)]
    return [part for part in parts if part != ""]


def lay_pieces(
    pieces: Sequence[Piece], encode: Callable[[str, bool], list[int]], start: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the prompt, and the canvas behind it with -1 in the gaps.

    Args:
        pieces: text, ids, or the number of tokens of a gap.
        encode: text to ids, told whether it is the beginning.
        start: the prompt of a canvas that begins with a gap: the token that begins a text.

    Raises:
        ConfigError: no gap, an empty gap, or a gap at the very beginning and no start token.
    """
    ids: list[int] = []
    if isinstance(pieces, (str, bytes, Mapping)) or not isinstance(pieces, Sequence):
        raise ConfigError(
            f"The pieces are a {type(pieces).__name__}.", 'Give a list, such as ["Once", 12, "the end."].'
        )
    for piece in pieces:
        if not isinstance(piece, (str, Sequence)) and getattr(piece, "ndim", 0) == 0:
            piece = whole("a gap", piece)
        if isinstance(piece, int):
            if piece < 1:
                raise ConfigError(f"A gap has {piece} tokens.", "A gap must have 1 token or more.")
            ids += [-1] * piece
        else:
            ids += encode(piece, not ids) if isinstance(piece, str) else read_ids("a piece", piece)
    if -1 not in ids:
        raise ConfigError("No gap is to be filled.", "Give a number between the pieces: how many tokens it may take.")
    first = ids.index(-1)
    if not first and not start:
        raise ConfigError("The text begins with a gap, and the model has no start token.", "Give a piece before it.")
    return (ids[:first] or list(start)), ids[first:]


def filled(canvas: Sequence[int], tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Return the text written in each gap, in order; the last ones may be missing from a text that was cut short."""
    gaps: list[list[int]] = []
    for index, (given, token) in enumerate(zip(canvas, tokens, strict=False)):
        if given < 0:
            if index == 0 or canvas[index - 1] >= 0:
                gaps.append([])
            gaps[-1].append(token)
    return [decode(gap) for gap in gaps]
