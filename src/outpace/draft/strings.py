"""Two vocabularies over one text: how ids are spelled, and a text's ids in the other vocabulary, kept up to date.

Everything is decided on bytes, so that byte-level and sentencepiece vocabularies meet whatever sign they use for a
space. Mistakes here cost acceptance, never exactness: what comes out are drafts.
"""

from __future__ import annotations

import codecs
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from outpace.text.speller import Speller

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["Lexicon", "Respelling", "lexicon"]

_LOOK_BEHIND = 16  # tokens before new text that are tokenised again with it
_NO_SPECIAL = -1


class Lexicon:
    """A target's and a drafter's vocabulary side by side.

    Attributes:
        target, draft: how each spells.
        specials: the drafter's special token for each of the target's: called the same, or in the same role.
        shared, shared_ids: per target id the drafter's id that writes the same, -1 = none; as a list and a tensor.
    """

    def __init__(self, target: Speller, draft: Speller) -> None:
        self.target, self.draft = target, draft
        ours, theirs = target.tokenizer, draft.tokenizer
        self.specials = {index: draft.special[name] for name, index in target.special.items() if name in draft.special}
        for mine, other in (
            (ours.bos_id, theirs.bos_id),
            (ours.eos_id, theirs.eos_id),
        ):  # the end counts if both are one
            if mine is not None and other is not None and mine < target.size and other < draft.size:
                self.specials[mine] = other
        self.shared = [draft.ids.get(text, -1) if text else -1 for text in target.bytes]
        for mine, other in self.specials.items():
            self.shared[mine] = other
        self.shared_ids = torch.tensor(self.shared)
        self._back = {other: mine for mine, other in self.specials.items()}

    def special_of_draft(self, index: int) -> int:
        """Return the target's special token for one of the drafter's, -1 = none."""
        return self._back.get(index, _NO_SPECIAL)

    def to_target(self, text: Sequence[int], drafted: Sequence[int]) -> list[int]:
        """Return drafted ids as the target's tokens behind a text.

        The end of the text is tokenised again with what was drafted. Drafts begin where a new token begins at the
        text's own end; if none does, the piece up to the next border is spelled on its own.

        Args:
            text: the target's final tokens.
            drafted: the drafter's ids; a special token ends them.
        """
        # 1 The bytes that were drafted, up to a special token; half a character at the end waits for the
        # next drafts.
        stop = next((at for at, index in enumerate(drafted) if self.draft.bytes[index] is None), len(drafted))
        added = codecs.getincrementaldecoder("utf-8")("replace").decode(self.draft.join(drafted[:stop])).encode()
        # 2 The text's own end goes before it, as context for the tokenizer: not across a special token, and from the
        # beginning of a character on.
        first = _segment_start(text, self.target, max(0, len(text) - _LOOK_BEHIND))
        before = self.target.join(text[first:])
        before = before[next((at for at, byte in enumerate(before[:4]) if byte & 0xC0 != 0x80), 0) :]
        drafts = self._behind(before, added) if added else []
        # 3 A special token of the drafter ends the drafts with the target's one of the same role.
        special = self.special_of_draft(drafted[stop]) if stop < len(drafted) else _NO_SPECIAL
        return [*drafts, special] if special >= 0 else drafts

    def _behind(self, before: bytes, added: bytes) -> list[int]:
        whole = before + added
        ids = self.target.encode(whole.decode("utf-8", "replace"))
        if not self.target.join(ids).endswith(whole):  # the tokenizer rewrites text
            return self.target.spell(added)
        # Drafts have to begin where the text ends. Where the tokenizer made one token across that border, the piece
        # up to its next border is spelled by itself, and the rest stays as it was tokenised.
        starts = [*self.target.starts(ids, len(whole)), len(whole)]
        border = next(at for at, start in enumerate(starts) if start >= len(before))
        return [*self.target.spell(added[: starts[border] - len(before)]), *ids[border:]]


def _segment_start(ids: Sequence[int], speller: Speller, first: int) -> int:
    """Return where the last stretch of ids without a special token begins, at `first` or later."""
    return next((at for at in range(len(ids), first, -1) if speller.bytes[ids[at - 1]] is None), first)


@functools.lru_cache(maxsize=4)
def lexicon(target: Tokenizer, draft: Tokenizer, target_size: int, draft_size: int) -> Lexicon:
    """Return two vocabularies side by side; made once for each pair in use."""
    return Lexicon(Speller(target, target_size), Speller(draft, draft_size))


class Respelling:
    """One row's text in the drafter's ids, kept up to date as the target's tokens come in.

    Only the end is tokenised again: the last tokens with the new text, spliced in along the longest run of tokens that
    stayed the same. A special token begins a new stretch.

    Args:
        words: both vocabularies.
        start: what the drafter's own decoder begins with, where it has an encoder: the first token of either text then
            says nothing to the other.

    Attributes:
        ids: the drafter's ids; a character that is not complete yet is missing.
        held: ids whose entries the drafter's cache holds.
        seen: target tokens taken in.
    """

    def __init__(self, words: Lexicon, start: int | None = None) -> None:
        self.ids: list[int] = list(words.draft.opening) if start is None else [start]
        self.held: list[int] = []
        self.seen = int(start is not None)
        self._words = words
        self._first = len(self.ids)  # of the stretch
        self._text = b""  # of the stretch
        self._pending = b""  # of a character that is not complete

    def copy(self) -> Respelling:
        """Return an independent copy (a forked row)."""
        other = Respelling(self._words)
        vars(other).update(vars(self))
        other.ids, other.held = list(self.ids), list(self.held)
        return other

    @property
    def is_whole(self) -> bool:
        """Whether the text ends with a complete character."""
        return not self._pending

    @property
    def ratio(self) -> float:
        """The drafter's tokens per token of the target, on this text."""
        return max(0.25, min(8.0, len(self.ids) / max(1, self.seen)))

    def extend(self, text: Sequence[int]) -> None:
        """Take in the target's tokens that are new in `text`."""
        spelled, piece = self._words.target.bytes, b""
        for index in text[self.seen :]:
            written = spelled[index]
            if written is not None:
                piece += written
                continue
            self._write(piece)
            piece = b""
            self._add_special(self._words.specials.get(index, _NO_SPECIAL))
        self._write(piece)
        self.seen = len(text)

    def forget(self) -> int:
        """Drop held ids that are no longer a beginning of the text, and return how many stay: never all of the text."""
        most = min(len(self.held), len(self.ids) - 1)
        same = most if self.held[:most] == self.ids[:most] else _common(self.held, self.ids)
        self.held = self.held[: max(0, same)]
        return len(self.held)

    def _add_special(self, index: int) -> None:
        if index >= 0 and not (self.seen == 0 and self.ids == [index]):  # the opening may be there already
            self.ids.append(index)
        self._first, self._text, self._pending = len(self.ids), b"", b""

    def _write(self, piece: bytes) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        added = decoder.decode(self._pending + piece).encode()
        self._pending = decoder.getstate()[0]
        if not self._text and self._words.target.adds_space and added.startswith(b" "):
            added = added[1:]  # its mark for the beginning, not a space
        if added:
            self._splice(added)

    def _splice(self, added: bytes) -> None:
        # 1 Go back some tokens, on to the beginning of a character: new text may join what stood before it.
        draft, before = self._words.draft, self._text
        first = max(self._first, len(self.ids) - _LOOK_BEHIND)
        old = self.ids[first:]
        starts = draft.starts(old, len(before))
        while first > self._first and (starts[0] < 0 or before[starts[0]] & 0xC0 == 0x80):  # inside a character
            first -= 1
            old = self.ids[first:]
            starts = draft.starts(old, len(before))
        # 2 Tokenise from there to the end.
        self._text = before + added
        at = max(0, starts[0]) if first > self._first else 0
        new = draft.encode(self._text[at:].decode())
        # 3 The first new tokens lack their context: keep the old ones up to where both agree.
        if first > self._first:
            new = _along_longest_run(old, starts, new, draft.starts(new, len(self._text)))
        self.ids[first:] = new


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many leading items agree."""
    both = zip(left, right, strict=False)
    return next((at for at, (a, b) in enumerate(both) if a != b), min(len(left), len(right)))


def _along_longest_run(old: list[int], old_at: list[int], new: list[int], new_at: list[int]) -> list[int]:
    """Return `old` up to the end of the longest run of tokens that both have at the same places, and `new` behind it.

    The beginning of `new` was tokenised without what stands before it, the end of `old` without what has come since.
    """
    where = {(start, index): at for at, (start, index) in enumerate(zip(new_at, new, strict=True))}
    length, best = 0, (0, 0, 0)  # length, and where the run ends in old and new
    for at, key in enumerate(zip(old_at, old, strict=True)):
        length = length + 1 if key in where else 0
        if length > best[0]:
            best = (length, at + 1, where[key] + 1)
    return [*old[: best[1]], *new[best[2] :]]
